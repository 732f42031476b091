"""Listening sockets: addresses, modes, leftovers, inheritance, full tables of descriptors."""

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing
from net_rig import open_edge

from overlayd.model.errors import ConfigInvalid
from overlayd.model.limits import Limits
from overlayd.net.listeners import (
    SOCKET_NAME,
    Bound,
    accept_connections,
    close_listeners,
    open_listeners,
    raise_descriptor_limit,
)
from overlayd.net.settings import ListenSettings

LIMITS = Limits()


def test_addresses(tmp_path: Path) -> None:
    """IPv4, IPv6 and localhost addresses are bound, port 0 to a free one, and reported as URLs."""
    settings = ListenSettings(tcp=("127.0.0.1:0", "[::1]:0", "localhost:0"))
    opened = open_listeners(settings, tmp_path, LIMITS)
    urls = [bound.url for bound in opened]
    close_listeners(opened)
    assert urls[0].startswith("http://127.0.0.1:")
    assert urls[1].startswith("http://[::1]:")
    assert urls[2].rsplit(":", 1)[1] == urls[3].rsplit(":", 1)[1] != "0"
    assert urls[4] == f"unix:{tmp_path / SOCKET_NAME}"


def test_socket_options_are_inherited(tmp_path: Path) -> None:
    """Accepted connections have keep-alive, the user timeout, no Nagle and a small send buffer."""
    opened = open_listeners(ListenSettings(tcp=("127.0.0.1:0",)), tmp_path, LIMITS)
    opened[0].sock.setblocking(True)
    with socket.create_connection(opened[0].sock.getsockname()) as client:
        accepted, _ = opened[0].sock.accept()
        with accepted:
            assert client
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * (128 << 10)
    close_listeners(opened)


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:70000", "node.example:80", "a:b", ":x"])
def test_wrong_addresses(tmp_path: Path, text: str) -> None:
    """What isn't an address and a port is a start-up error that shows how to write one."""
    with pytest.raises(ConfigInvalid) as caught:
        open_listeners(ListenSettings(tcp=(text,)), tmp_path, LIMITS)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:0"])
def test_exposed_without_keys(tmp_path: Path, text: str) -> None:
    """An address that other machines reach is a start-up error unless `insecure = true`; nothing stays open."""
    with pytest.raises(ConfigInvalid, match="no keys"):
        open_listeners(ListenSettings(tcp=("127.0.0.1:0", text)), tmp_path, LIMITS)
    assert not (tmp_path / SOCKET_NAME).exists()


def test_exposed_on_purpose(tmp_path: Path) -> None:
    """With `insecure = true` any address is bound."""
    close_listeners(open_listeners(ListenSettings(tcp=("0.0.0.0:0",), insecure=True), tmp_path, LIMITS))


def test_port_in_use(tmp_path: Path) -> None:
    """A port that another program holds is a start-up error that says so."""
    with socket.create_server(("127.0.0.1", 0)) as holder, pytest.raises(ConfigInvalid, match="in use"):
        open_listeners(ListenSettings(tcp=(f"127.0.0.1:{holder.getsockname()[1]}",)), tmp_path, LIMITS)


@pytest.mark.parametrize("mode", ["0600", "0660", "0666"])
def test_unix_mode_and_end(tmp_path: Path, mode: str) -> None:
    """The socket file has the mode of the settings, and is gone at the end."""
    opened = open_listeners(ListenSettings(tcp=(), unix_mode=mode), tmp_path, LIMITS)  # type: ignore[arg-type]
    path = tmp_path / SOCKET_NAME
    assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
    close_listeners(opened)
    assert not path.exists()


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    """A socket file that a killed node left is replaced."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / SOCKET_NAME))
    close_listeners(open_listeners(ListenSettings(tcp=()), tmp_path, LIMITS))


def test_used_socket_and_file_are_kept(tmp_path: Path) -> None:
    """A socket that somebody listens on, or a file that isn't one, is never removed."""
    taken, plain = tmp_path / "taken.sock", tmp_path / "plain"
    plain.write_text("precious")
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(taken))
        holder.listen()
        with pytest.raises(ConfigInvalid, match="another program"):
            open_listeners(ListenSettings(tcp=(), unix=(str(taken),)), tmp_path, LIMITS)
    with pytest.raises(ConfigInvalid, match="isn't a socket"):
        open_listeners(ListenSettings(tcp=(), unix=(str(plain),)), tmp_path, LIMITS)
    assert plain.read_text() == "precious"


def test_too_long_path(tmp_path: Path) -> None:
    """A path that the system can't bind is an error that names the length."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with pytest.raises(ConfigInvalid, match="107 bytes"):
        open_listeners(ListenSettings(tcp=()), deep, LIMITS)


def test_inherited_sockets(tmp_path: Path) -> None:
    """A socket passed by the service manager stands in for `[listen] tcp`, and the environment is cleared."""
    script = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from pathlib import Path
from overlayd.model.limits import Limits
from overlayd.net.listeners import close_listeners, open_listeners
from overlayd.net.settings import ListenSettings
opened = open_listeners(ListenSettings(), Path(sys.argv[1]), Limits())
print([bound.url for bound in opened], "LISTEN_FDS" in os.environ)
close_listeners(opened)
"""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        port = passed.getsockname()[1]

        def put_at_three() -> None:
            os.dup2(passed.fileno(), 3)

        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env={**os.environ, "LISTEN_FDS": "1"}, preexec_fn=put_at_three, close_fds=False,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert f"['http://127.0.0.1:{port}', 'unix:{tmp_path}/{SOCKET_NAME}'] False" in run.stdout


async def test_full_descriptor_table_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Accepting goes on after EMFILE and after a peer that was gone; both are counted."""
    opened = open_listeners(ListenSettings(tcp=()), tmp_path, LIMITS)
    errors = [OSError(errno.EMFILE, "full"), OSError(errno.ECONNABORTED, "gone"), OSError(errno.EBADF, "closed")]
    counted: list[str] = []

    async def fail(self: object) -> None:
        await trio.lowlevel.checkpoint()
        raise errors.pop(0)

    monkeypatch.setattr(trio.SocketListener, "accept", fail)
    with pytest.raises(OSError, match="closed"):
        await accept_connections(opened[0], lambda stream: None, counted.append)
    assert counted == ["EMFILE", "ECONNABORTED", "EBADF"]
    assert trio.current_time() >= 0.1
    close_listeners(opened)


def test_descriptor_limit() -> None:
    """The number of connections fits under the descriptors that the system gives."""
    assert 0 < raise_descriptor_limit(LIMITS) <= LIMITS.connections_max


async def test_unix_peer_is_known(tmp_path: Path) -> None:
    """A Unix peer's uid comes from the kernel."""
    async with open_edge(tmp_path, service_uid=os.getuid()) as edge, await edge.connect_unix() as client:
        assert (await client.request("GET", "/echo")).json["principal"] == f"unix:{os.getuid()}"


def test_bound_says_what_it_is(tmp_path: Path) -> None:
    """A listener knows whether it is a Unix socket."""
    opened: list[Bound] = open_listeners(ListenSettings(tcp=("127.0.0.1:0",)), tmp_path, LIMITS)
    assert [bound.is_unix for bound in opened] == [False, True]
    close_listeners(opened)
