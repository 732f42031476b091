"""Talking to systemd: notices sent, watchdog asked for."""

import socket
from pathlib import Path

import pytest

from overlayd.model.systemd import Notifier, watchdog_interval_s


def test_the_watchdog_is_fed_twice_per_period() -> None:
    """Half the period, for this process only, nothing without a period."""
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000"}, 7) == 15.0
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 7) == 15.0
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, 7) is None
    assert watchdog_interval_s({"WATCHDOG_USEC": "0"}, 7) is None
    assert watchdog_interval_s({}, 7) is None


def test_notices_arrive_as_datagrams(tmp_path: Path) -> None:
    """READY, STATUS, WATCHDOG and STOPPING reach the socket; a status stays one line."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(1)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert notifier.is_wanted
        assert notifier.ready("listening\non 7878")
        assert notifier.status("busy")
        assert notifier.alive()
        assert notifier.stopping()
        got = [listener.recv(1000) for _ in range(4)]
    assert got == [b"READY=1\nSTATUS=listening on 7878\n", b"STATUS=busy\n", b"WATCHDOG=1\n", b"STOPPING=1\n"]


def test_an_abstract_socket_works() -> None:
    """`@name` is a name in the abstract namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0overlayd-test-notify")
        listener.settimeout(1)
        assert Notifier({"NOTIFY_SOCKET": "@overlayd-test-notify"}).alive()
        assert listener.recv(100) == b"WATCHDOG=1\n"


@pytest.mark.parametrize("address", ["", "@", "relative", "/nowhere/at/all"])
def test_a_notice_that_cannot_be_sent_is_dropped(address: str) -> None:
    """Without systemd, or with a socket that is gone, nothing happens."""
    assert Notifier({"NOTIFY_SOCKET": address} if address else {}).ready() is False
