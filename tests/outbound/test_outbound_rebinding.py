"""DNS rebinding, for real: a name server of our own, asked by the system's resolver in namespaces of their own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHILD = Path(__file__).with_name("rebinding_child.py")
NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--mount")


def _can_unshare() -> bool:
    """Whether this machine lets us have namespaces; containers often don't."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    trial = subprocess.run(
        (*NAMESPACES, "mount", "--bind", "/etc/hosts", "/etc/hosts"), capture_output=True, check=False
    )
    return trial.returncode == 0


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the child saw."""
    if not _can_unshare():
        pytest.skip("this machine gives no user, network and mount namespaces")
    resolver_file = tmp_path_factory.mktemp("dns") / "resolv.conf"
    command = (*NAMESPACES, sys.executable, str(CHILD), str(resolver_file))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_name_is_looked_up_once_and_kept_to(observed: Any) -> None:
    """One question per connection: the address that was checked is the one that is called, under the original name."""
    assert observed["results"]["steady"] == {"outcome": "200 1.2.3.4", "asked": 1}
    assert observed["results"]["first"] == {"outcome": "200 1.2.3.4", "asked": 1}
    assert observed["seen"]["1.2.3.4"][:2] == ["steady.test:8080", "rebind.test:8080"]


def test_a_name_that_moves_inside_is_refused(observed: Any) -> None:
    """The second answer is 127.0.0.1, where somebody listens on that very port: nothing arrives there."""
    assert observed["results"]["rebound"] == {"outcome": "address.refused", "asked": 1}
    assert observed["results"]["metadata"]["outcome"] == "address.refused"
    assert observed["seen"]["127.0.0.1"] == []


def test_of_two_addresses_only_the_outer_is_called(observed: Any) -> None:
    """The name server puts 127.0.0.1 first; it is passed over."""
    assert observed["results"]["mixed"] == {"outcome": "200 1.2.3.4", "asked": 1}
    assert "mixed.test:8080" in observed["seen"]["1.2.3.4"]


def test_the_machines_own_public_address_is_refused(observed: Any) -> None:
    """An address that no list knows, but that is this machine's: the connection is closed before a byte is sent."""
    assert observed["results"]["own"]["outcome"] == "address.refused"
    assert observed["seen"]["5.6.7.8"] == []


def test_name_servers_that_say_no_or_nothing(observed: Any) -> None:
    """An unknown name and a silent name server have reasons of their own."""
    assert observed["results"]["unknown"]["outcome"] == "dns.unknown"
    assert observed["results"]["silent"]["outcome"] in ("dns.timeout", "dns.failed")
