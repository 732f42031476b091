"""TLS over a socket as a PushStream: what Trio's SSLStream is, with writes that never wait and little held while idle.

OpenSSL works on two buffers in memory that only ever grow. So ciphertext goes in and out of them in pieces of a few
KiB: an idle session then holds its state and two small buffers, whatever went over it before.
"""

import ssl
from contextlib import suppress

import trio

from overlayd.model.push_stream import SocketPushStream

RECORD_BYTES = 4 << 10
"""Clear text in one record. A larger one would make OpenSSL's outgoing buffer larger for good."""
FEED_BYTES = 2 << 10
"""Ciphertext given to OpenSSL at a time, for the same reason."""
READ_BYTES = 16 << 10
BEHIND_BYTES_MAX = 16 << 10
"""What OpenSSL may have to say by itself while the peer reads nothing."""
_ENDED = "the peer is gone, or the connection was cut on this side"


class TlsStream(trio.abc.HalfCloseableStream):
    """A PushStream, encrypted, on the server's side. `step` comes first; then one task reads, any number write.

    A raw end of the connection counts as the peer's end, as many clients leave out the alert that says so: whether a
    request was cut off is for HTTP's own framing to tell.
    """

    __slots__ = (
        "_behind",
        "_cipher",
        "_incoming",
        "_is_broken",
        "_is_ended",
        "_is_kernel_full",
        "_link",
        "_object",
        "_outgoing",
        "_plain",
    )

    def __init__(self, link: SocketPushStream, context: ssl.SSLContext, received: bytes) -> None:
        """Takes the link over. `received`: what was read from it already."""
        self._link = link
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._cipher = received
        """Received, not yet given to OpenSSL."""
        self._plain = b""
        """Decrypted, not yet asked for."""
        self._behind = b""
        """Encrypted by a read (an alert, an answer to a change of keys) while there was a tail."""
        self._is_ended = False
        self._is_broken = False
        self._is_kernel_full = False
        """Whether the last read that didn't wait took all that was asked for, so that the kernel may have more."""

    def __repr__(self) -> str:
        return f"TlsStream({self._link!r}, unsent={self.unsent})"

    @property
    def socket(self) -> trio.socket.SocketType:
        return self._link.socket

    @property
    def unsent(self) -> int:
        return self._link.unsent + len(self._behind)

    @property
    def wire_bytes_moved(self) -> int:
        return self._link.wire_bytes_moved

    @property
    def has_bytes(self) -> bool:
        """Whether a read would give something, or the end, at once; or the kernel has the beginning of something."""
        if not self._plain and not self._is_ended:
            try:
                self._plain = self._decrypt(READ_BYTES) or b""
            except trio.BrokenResourceError:
                return True
        return bool(self._plain) or self._is_ended or self._link.has_bytes

    @property
    def version(self) -> str:
        """Of the protocol: `TLSv1.3`."""
        return self._object.version() or ""

    @property
    def cipher(self) -> str:
        """The cipher suite's name."""
        return (self._object.cipher() or ("", "", 0))[0]

    @property
    def is_resumed(self) -> bool:
        """Whether the session goes on from an earlier one."""
        return bool(self._object.session_reused)

    @property
    def is_tls(self) -> bool:
        return True

    def peer_certificate(self) -> bytes:
        """The peer's certificate in DER, which was verified; b"" without one."""
        return self._object.getpeercert(binary_form=True) or b""

    def step(self) -> bool:
        """Goes as far in the handshake as the received bytes allow; whether it is done. Touches nothing but what is
        this object's own, so it may run in a thread. Raises ssl.SSLError."""
        while True:
            try:
                self._object.do_handshake()
                return True
            except ssl.SSLWantReadError:
                if not self._feed():
                    return False

    async def exchange(self) -> bool:
        """Between two steps: sends what there is, and receives. Whether the peer goes on. Checkpoint. Raises
        BrokenResourceError."""
        await self.send_produced()
        self._cipher = await self._link.receive_some(READ_BYTES)
        return bool(self._cipher)

    async def send_produced(self) -> None:
        """Sends what OpenSSL has to say by itself: the handshake's last messages, an alert. Checkpoint. Raises
        BrokenResourceError."""
        self._push_produced()
        await self.flush()

    def produce(self) -> bool:
        """Hands on what OpenSSL has to say by itself; whether there was anything."""
        has_words = self._outgoing.pending > 0
        self._push_produced()
        return has_words

    def write_now(self, data: bytes) -> int:
        assert not self.unsent, "a tail goes out first"
        return self._link.write_now(self._encrypt(data))

    async def flush(self) -> None:
        await self._link.flush()
        while self._behind:
            behind, self._behind = self._behind, b""
            self._link.write_now(behind)
            await self._link.flush()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as view:
            while self.unsent:
                await self.flush()
            if self.write_now(bytes(view)):
                await self.flush()
            else:
                await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await self.flush()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        count = max_bytes or READ_BYTES
        if self._plain:
            await trio.lowlevel.checkpoint()
            data, self._plain = self._plain[:count], self._plain[count:]
            return data
        has_waited = False
        while True:
            plain = self._decrypt(count)
            if plain is not None:
                if not has_waited:
                    await trio.lowlevel.checkpoint()
                return plain
            self._cipher = await self._link.receive_some(READ_BYTES)
            has_waited = True
            if not self._cipher:
                self._is_ended = True

    @property
    def holds_bytes(self) -> bool:
        has_cipher = (
            self._cipher or self._incoming.pending or self._is_kernel_full
        )  # of which OpenSSL tells nothing yet
        return bool(self._plain or has_cipher or self._object.pending())

    def read_now(self, max_bytes: int) -> bytes | None:
        if self._plain:
            data, self._plain = self._plain[:max_bytes], self._plain[max_bytes:]
            return data
        while True:
            plain = self._decrypt(max_bytes)
            if plain is not None:
                return plain
            cipher = self._link.read_now(READ_BYTES)
            if cipher is None:
                self._is_kernel_full = False
                return None
            self._cipher, self._is_kernel_full = cipher, len(cipher) == READ_BYTES
            if not cipher:
                self._is_ended = True

    async def send_eof(self) -> None:
        """Says goodbye in TLS, then in TCP. Reads go on."""
        await self.flush()
        with suppress(ssl.SSLError, ValueError):  # it wants to read the peer's goodbye, for which nobody here waits
            self._object.unwrap()
        await self.send_produced()
        await self._link.send_eof()

    def abort(self) -> None:
        self._is_broken = True
        self._cipher = self._plain = self._behind = b""
        self._link.abort()

    async def aclose(self) -> None:
        self.abort()
        await trio.lowlevel.checkpoint()

    def _decrypt(self, count: int) -> bytes | None:
        """What the received bytes hold; b"" once the peer sends no more; None when more must come."""
        while True:
            if self._is_broken:
                raise trio.BrokenResourceError(_ENDED)
            try:
                data = self._object.read(count)
            except ssl.SSLWantReadError:
                self._push_produced()
                if self._feed():
                    continue
                return b"" if self._is_ended else None
            except ssl.SSLError as err:
                self._is_broken = True
                self._push_produced()
                raise trio.BrokenResourceError(f"not TLS any more: {err.reason}") from err
            if not data:
                self._is_ended = True
            return data

    def _feed(self) -> bool:
        """Gives OpenSSL some more of what was received. Whether there was any."""
        if not self._cipher:
            return False
        self._incoming.write(self._cipher[:FEED_BYTES])
        self._cipher = self._cipher[FEED_BYTES:]
        return True

    def _encrypt(self, data: bytes) -> bytes:
        """Records with the data in them, in one piece."""
        if self._is_broken:
            raise trio.BrokenResourceError(_ENDED)
        if not data:
            return b""
        records = []
        try:
            for at in range(0, len(data), RECORD_BYTES):
                self._object.write(data if len(data) <= RECORD_BYTES else memoryview(data)[at : at + RECORD_BYTES])
                records.append(self._outgoing.read())
        except ssl.SSLError as err:  # after send_eof
            raise trio.BrokenResourceError(_ENDED) from err
        return records[0] if len(records) == 1 else b"".join(records)

    def _push_produced(self) -> None:
        """Hands on what OpenSSL has to say by itself."""
        if not self._outgoing.pending:
            return
        produced = self._outgoing.read()
        if not self.unsent:
            with suppress(trio.BrokenResourceError):  # a read still finds what came before
                self._link.write_now(produced)
        elif len(self._behind) + len(produced) <= BEHIND_BYTES_MAX:
            self._behind += produced
        else:  # a peer that makes us answer and doesn't read
            self.abort()
