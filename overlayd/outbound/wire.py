"""A connection's bytes: clear or TLS, written without waiting where the kernel takes them, read as they come.

TLS runs in memory, so that a request is encrypted at once and its answer can be read while the rest of it goes out.
"""

import errno
import socket
import ssl
from contextlib import suppress

import trio

READ_BYTES = 16 << 10


class Wire:
    """A connected socket, clear or, after `start_tls`, encrypted. One task reads, one writes.

    Everything that touches the network raises OSError when the other side is gone.
    """

    __slots__ = ("_inbound", "_is_closed", "_outbound", "_socket", "_tls")

    def __init__(self, connected: socket.socket) -> None:
        """Takes over a connected, non-blocking socket."""
        self._socket = connected
        self._tls: ssl.SSLObject | None = None
        self._inbound = ssl.MemoryBIO()
        self._outbound = ssl.MemoryBIO()
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Handshake with the server that `host` names. Checkpoint. Raises ssl.SSLError, OSError, EOFError."""
        tls = context.wrap_bio(self._inbound, self._outbound, server_hostname=host)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush_tls()
                raw = await self._receive_raw()
                if not raw:
                    raise EOFError("the other side closed the connection") from None
                self._inbound.write(raw)
            except ssl.SSLError:
                self._send_alert()
                raise
            else:
                break
        self._tls = tls
        await self._flush_tls()

    def write_now(self, data: bytes) -> memoryview:
        """Hands the kernel what it takes at once; gives what is left, for `write_rest`. Never blocks."""
        if self._tls is not None:
            plain = memoryview(data)
            while plain:  # a record at a time
                plain = plain[self._tls.write(plain) :]
            data = self._outbound.read()
        return self._send_raw(memoryview(data))

    async def write_rest(self, rest: memoryview) -> None:
        """Writes what `write_now` left. Checkpoint."""
        while rest:
            await trio.lowlevel.wait_writable(self._socket)
            rest = self._send_raw(rest)

    async def receive(self) -> bytes:
        """The next bytes, b"" at the end of what the other side sends. Checkpoint."""
        if self._tls is None:
            return await self._receive_raw()
        while True:
            try:
                data = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                await trio.lowlevel.checkpoint()
                return b""
            else:
                await trio.lowlevel.checkpoint()
                return data
            raw = await self._receive_raw()
            if not raw:
                return b""  # without TLS's own goodbye, as most HTTP servers end
            self._inbound.write(raw)

    def is_usable(self) -> bool:
        """Whether a connection that lay idle can take another request: still open, and nothing said unasked."""
        if self._is_closed:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False  # an end, or words that belong to no request

    def close(self) -> None:
        """Closes at once; what the other side sends later is answered with a reset. Again does nothing."""
        if not self._is_closed:
            self._is_closed = True
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def _receive_raw(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(READ_BYTES)
            except BlockingIOError:
                continue  # readable was a false alarm

    def _send_raw(self, data: memoryview) -> memoryview:
        while data:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                return data
            data = data[sent:]
        return data

    async def _flush_tls(self) -> None:
        await self.write_rest(self._send_raw(memoryview(self._outbound.read())))

    def _send_alert(self) -> None:
        """Tells the other side why the handshake ends, if it still listens."""
        with suppress(OSError):
            self._send_raw(memoryview(self._outbound.read()))


async def connect(host: str, port: int) -> Wire:
    """A clear connection to an address. Checkpoint. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    connecting = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        failed = connecting.connect_ex((host, port))
        if failed in (errno.EINPROGRESS, errno.EINTR):
            await trio.lowlevel.wait_writable(connecting)
            failed = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            await trio.lowlevel.checkpoint()
        if failed:
            raise OSError(failed, errno.errorcode.get(failed, str(failed)))
    except BaseException:
        connecting.close()
        raise
    return Wire(connecting)


def is_own_address(wire: Wire) -> bool:
    """Whether the connection leads back to this machine: both ends have one address. Raises OSError."""
    connected = wire._socket
    return bool(connected.getsockname()[0] == connected.getpeername()[0])
