"""Listening sockets: TCP, Unix, and those that the service manager opened for us (sd_listen_fds(3))."""

import errno
import os
import resource
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import structlog
import trio

from overlayd.access import Peer
from overlayd.access.origin import normalize_address
from overlayd.model.errors import ConfigInvalid
from overlayd.model.limits import Limits
from overlayd.net.exposure import Credentials, check_exposure
from overlayd.net.peer_rules import PeerRules, peer_rules_of
from overlayd.net.settings import ListenSettings, PlainListener, TlsListener
from overlayd.net.tls import TlsEndpoint

SOCKET_NAME = "overlayd.sock"
SEND_BUFFER_BYTES = 128 << 10
UNIX_PATH_BYTES_MAX = 107
FIRST_INHERITED_FD = 3
INHERITED = "fd:"
ACCEPT_PAUSE_S = 0.1
DESCRIPTORS_KEPT = 128
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))
_USELESS = frozenset((errno.EBADF, errno.EINVAL, errno.ENOTSOCK))
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_GROUP, _GROUPS_MAX = struct.Struct("I"), 64
_Inherited = tuple[str, socket.socket]
_log = structlog.get_logger("net.listeners")


class Bound(msgspec.Struct, frozen=True):
    """A listening socket. `url` is `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`; `unlink` is what to remove
    at the end. `rules` judges TCP peers."""

    sock: socket.socket
    url: str
    unlink: str = ""
    rules: PeerRules = PeerRules()
    tls: TlsEndpoint | None = None

    @property
    def is_unix(self) -> bool:
        return self.sock.family == socket.AF_UNIX


class _Terms(msgspec.Struct, frozen=True):
    """What every listener is opened with."""

    settings: ListenSettings
    limits: Limits
    credentials: Credentials
    rules: PeerRules
    """Of listeners without rules of their own."""


def open_listeners(
    settings: ListenSettings,
    directory: Path,
    limits: Limits,
    *,
    endpoints: Iterable[TlsEndpoint] = (),
    credentials: Credentials = Credentials(),  # noqa: B008 - frozen
) -> list[Bound]:
    """Opens everything that the settings, the directory and the environment ask for.

    `endpoints`: those of `settings.tls`, in its order. Inherited TCP sockets that no listener names stand in for
    `[listen] tcp`. Blocking, but for a moment only: names other than localhost aren't looked up. Raises ConfigInvalid;
    then nothing stays open.
    """
    opened: list[Bound] = []
    inherited = _inherited_sockets()
    terms = _Terms(settings, limits, credentials, peer_rules_of(settings))
    try:
        for listener in settings.plain:
            opened += _open_own(listener, None, inherited, terms)
        for endpoint in endpoints:
            opened += _open_own(endpoint.settings, endpoint, inherited, terms)
        rest = [_adopt(sock, "an inherited socket", terms) for _, sock in _take_all(inherited)]
        opened += rest
        if all(bound.is_unix for bound in rest):
            for text in settings.tcp:
                opened += _open_tcp(text, terms, terms.rules, None)
        for path in (directory / SOCKET_NAME, *map(Path, settings.unix)):
            opened.append(_open_unix(path, settings))
    except BaseException:
        close_listeners(opened)
        for _, sock in inherited:
            sock.close()
        raise
    return _in_order(opened)


def close_listeners(opened: Sequence[Bound]) -> None:
    """Stops listening and removes the socket files."""
    for bound in opened:
        bound.sock.close()
        if bound.unlink:
            Path(bound.unlink).unlink(missing_ok=True)


def raise_descriptor_limit(limits: Limits) -> int:
    """Raises the soft limit of descriptors to the hard one, and says how many connections fit under it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return limits.connections_max
    fitting = max(1, hard - DESCRIPTORS_KEPT)
    if fitting < limits.connections_max // 2:
        _log.warning(
            "descriptor limit is below connections_max", connections_max=limits.connections_max, fitting=fitting
        )
    return min(limits.connections_max, fitting)


def peer_of(sock: trio.socket.SocketType) -> Peer:
    """Who is at the other end. Raises OSError when it is gone."""
    if sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, gid = struct.unpack("3i", credentials)
        return Peer(family="unix", uid=uid, gid=gid, groups=_groups_of(sock))
    address, port = sock.getpeername()[:2]
    local, local_port = sock.getsockname()[:2]
    return Peer(
        family="tcp",
        address=normalize_address(address),
        port=port,
        local=normalize_address(local),
        local_port=local_port,
    )


def _groups_of(sock: trio.socket.SocketType) -> tuple[int, ...]:
    """Further groups of a Unix socket's peer, as they were when it connected."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_MAX * _GROUP.size)
    except OSError:  # more groups than that
        return ()
    return tuple(group for (group,) in _GROUP.iter_unpack(raw))


async def accept_connections(
    bound: Bound, take: Callable[[Bound, trio.SocketStream], None], count_error: Callable[[str], None]
) -> None:
    """Hands every connection to `take`. Runs until cancelled; a full table of descriptors pauses it."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound.sock))
    while True:
        try:
            stream = await listener.accept()
        except OSError as err:
            count_error(errno.errorcode.get(err.errno or 0, "unknown"))
            if err.errno in _USELESS:
                raise
            if err.errno in _NO_ROOM:
                _log.error("can't accept connections", listener=bound.url, reason=os.strerror(err.errno or 0))
                await trio.sleep(ACCEPT_PAUSE_S)
        else:
            take(bound, stream)


def _open_own(
    listener: PlainListener | TlsListener, endpoint: TlsEndpoint | None, inherited: list[_Inherited], terms: _Terms
) -> list[Bound]:
    """A listener with rules of its own, or with TLS."""
    rules = peer_rules_of(terms.settings, listener)
    if not listener.address.startswith(INHERITED):
        return _open_tcp(listener.address, terms, rules, endpoint)
    name = listener.address.removeprefix(INHERITED)
    found = [one for one in inherited if one[0] == name]
    if not found:
        raise ConfigInvalid(
            f"the service manager passed no socket named {name!r}", subject="listen",
            hint="FileDescriptorName= in the socket unit gives it one",
        )  # fmt: skip
    for one in found:
        inherited.remove(one)
    return [_adopt(sock, listener.address, terms, rules, endpoint) for _, sock in found]


def _open_tcp(text: str, terms: _Terms, rules: PeerRules, endpoint: TlsEndpoint | None) -> list[Bound]:
    host, port = _parse_address(text)
    addresses = ["127.0.0.1", "::1"] if host == "localhost" else [host]
    bounds: list[Bound] = []
    for address in addresses:
        _check_exposure(address, text, terms, rules, endpoint)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            if bounds:
                continue  # localhost without IPv6
            raise
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address == "::" else 1)
            sock.bind((address, port))
        except OSError as err:
            sock.close()
            if bounds and err.errno == errno.EADDRNOTAVAIL:
                continue
            raise ConfigInvalid(
                f"can't listen on {text}: {err.strerror}", subject="listen.tcp",
                hint="another program may be using the port; port 0 takes a free one",
            ) from err  # fmt: skip
        port = sock.getsockname()[1]
        bounds.append(_listen_tcp(sock, terms, rules, endpoint))
    return bounds


def _listen_tcp(sock: socket.socket, terms: _Terms, rules: PeerRules, endpoint: TlsEndpoint | None) -> Bound:
    """Options of a listening socket are those of the connections it accepts."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(terms.limits.stall_timeout * 1000))
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.listen(terms.settings.backlog)
    sock.setblocking(False)
    address, port = sock.getsockname()[:2]
    host = f"[{address}]" if ":" in address else address
    scheme = "http" if endpoint is None else "https"
    return Bound(sock=sock, url=f"{scheme}://{host}:{port}", rules=rules, tls=endpoint)


def _open_unix(path: Path, settings: ListenSettings) -> Bound:
    text = str(path.absolute())
    if len(os.fsencode(text)) > UNIX_PATH_BYTES_MAX:
        raise ConfigInvalid(
            f"the path of the Unix socket is over {UNIX_PATH_BYTES_MAX} bytes: {text}", subject="listen.unix",
            hint="the system allows no longer ones; use a data directory with a shorter path",
        )  # fmt: skip
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _bind_with_mode(sock, text, int(settings.unix_mode, 8))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.listen(settings.backlog)
        sock.setblocking(False)
    except OSError as err:
        sock.close()
        raise ConfigInvalid(f"can't listen on {text}: {err.strerror}", subject="listen.unix") from err
    return Bound(sock=sock, url=f"unix:{text}", unlink=text)


def _bind_with_mode(sock: socket.socket, path: str, mode: int) -> None:
    """Nobody gets in between bind and chmod: the file comes into being closed to all but the owner."""
    before = os.umask(0o177)
    try:
        sock.bind(path)
    finally:
        os.umask(before)
    os.chmod(path, mode)


def _remove_stale(path: Path) -> None:
    """Removes a socket file that nobody listens on. The caller holds the directory's lock, but sockets named in
    the settings may lie anywhere. Raises ConfigInvalid for what isn't a socket or is in use."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise ConfigInvalid(f"{path} exists and isn't a socket", subject="listen.unix")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise ConfigInvalid(f"another program listens on {path}", subject="listen.unix")


def _inherited_sockets() -> list[_Inherited]:
    """Sockets passed by the service manager, with their names; the environment that named them is cleared, for
    children of ours."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isascii() or not count.isdigit():
        return []
    sockets = []
    for at in range(int(count)):
        fd = FIRST_INHERITED_FD + at
        os.set_inheritable(fd, False)
        sockets.append((names[at] if at < len(names) else "", socket.socket(fileno=fd)))
    return sockets


def _take_all(inherited: list[_Inherited]) -> list[_Inherited]:
    taken = inherited.copy()
    inherited.clear()
    return taken


def _adopt(
    sock: socket.socket, text: str, terms: _Terms, rules: PeerRules | None = None, endpoint: TlsEndpoint | None = None
) -> Bound:
    is_unix = sock.family == socket.AF_UNIX
    if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        raise ConfigInvalid("an inherited descriptor isn't a stream socket", subject="LISTEN_FDS")
    if is_unix and rules is not None:
        raise ConfigInvalid(
            f"{text} is a Unix socket, which takes neither TLS nor rules over networks", subject="listen"
        )
    if is_unix:
        sock.listen(terms.settings.backlog)
        sock.setblocking(False)
        return Bound(sock=sock, url=f"unix:{os.fsdecode(sock.getsockname())}")
    rules = rules or terms.rules
    _check_exposure(sock.getsockname()[0], text, terms, rules, endpoint)
    return _listen_tcp(sock, terms, rules, endpoint)


def _check_exposure(address: str, text: str, terms: _Terms, rules: PeerRules, endpoint: TlsEndpoint | None) -> None:
    tls = None if endpoint is None else endpoint.settings
    check_exposure(text, address, rules, terms.settings, terms.credentials, tls)


def _in_order(opened: list[Bound]) -> list[Bound]:
    """Those of `tcp` first: the first address that is printed is the one a reader takes."""
    return sorted(opened, key=lambda bound: (bound.is_unix, bound.tls is not None))


def _parse_address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigInvalid(
            f"not an address to listen on: {text!r}", subject="listen.tcp",
            hint='write for example "127.0.0.1:7878", "[::1]:7878" or "localhost:0"',
        )  # fmt: skip
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104 - what ":7878" means; _check_exposure judges it
    if host == "localhost":
        return host, int(port)
    try:
        return normalize_address(host), int(port)
    except ValueError as err:
        raise ConfigInvalid(
            f"not an address to listen on: {text!r}", subject="listen.tcp", hint="use an IP address or localhost"
        ) from err
