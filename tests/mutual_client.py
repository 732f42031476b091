"""A client of mutual authentication, written from the protocol: signs requests, verifies answers. For tests."""

from base64 import b64decode, b64encode
from hashlib import sha256

import msgspec

from overlayd.bsv.brc42 import derive_private, derive_public
from overlayd.bsv.keys import PrivateKey, PublicKey
from overlayd.model.clock import Entropy
from overlayd.model.wire_mutual import HandshakeBody, HandshakeIn

ENTROPY = Entropy()
INVOICE = "2-auth message signature-"
Pairs = tuple[tuple[bytes, bytes], ...]


class SignedHead(msgspec.Struct, frozen=True):
    """The head of a signed request."""

    method: str
    path: str
    query: str
    headers: Pairs

    def get(self, name: bytes) -> str | None:
        return next((value.decode("latin-1") for known, value in self.headers if known == name), None)

    def raw(self, body: bytes = b"") -> bytes:
        """The request as it goes over the wire."""
        target = self.path + (f"?{self.query}" if self.query else "")
        lines = [f"{self.method} {target} HTTP/1.1".encode(), *(name + b": " + value for name, value in self.headers)]
        if body:
            lines.append(b"content-length: %d" % len(body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + body


def length(count: int) -> bytes:
    """Bitcoin's VarInt; -1 for what is absent."""
    if count < 0:
        return b"\xff" * 9
    if count < 0xFD:
        return bytes([count])
    return b"\xfd" + count.to_bytes(2, "little") if count < 1 << 16 else b"\xfe" + count.to_bytes(4, "little")


def named(text: bytes) -> bytes:
    """A text behind its length."""
    return length(len(text)) + text


class MutualClient:
    """Somebody with a key, and one session."""

    def __init__(self, key: PrivateKey, nonce: bytes | None = None) -> None:
        self.key = key
        self.nonce = b64encode(ENTROPY.draw(48) if nonce is None else nonce).decode()
        self.session = ""
        self.node = key.public_key

    def hello(self) -> HandshakeIn:
        """The first message."""
        return HandshakeIn("0.1", "initialRequest", self.key.public_key.hex(), self.nonce)

    def meet(self, told: HandshakeBody) -> None:
        """The node's half. Raises SignatureInvalid when it isn't that of the key that it shows."""
        assert (told.version, told.message_type, told.your_nonce) == ("0.1", "initialResponse", self.nonce)
        assert len(b64decode(told.initial_nonce)) == 48
        node = PublicKey.parse_hex(told.identity_key)
        child = derive_public(node, self.key, f"{INVOICE}{self.nonce} {told.initial_nonce}")
        child.verify(b64decode(self.nonce) + b64decode(told.initial_nonce), bytes(told.signature))
        self.session, self.node = told.initial_nonce, node

    def sign(
        self, method: str, path: str, query: str = "", body: bytes = b"", headers: Pairs = (), *, nonce: str = "",
        request_id: bytes = b"",
    ) -> SignedHead:  # fmt: skip
        """A request's head. `headers` go with it; those that have to be are signed."""
        request_id = request_id or ENTROPY.draw(32)
        nonce = nonce or b64encode(ENTROPY.draw(32)).decode()
        signed = [(name, value) for name, value in headers if name == b"authorization" or name.startswith(b"x-bsv-")]
        signed += [(name, value.split(b";")[0].strip()) for name, value in headers if name == b"content-type"]
        payload = request_id + named(method.encode()) + named(path.encode())
        payload += named(b"?" + query.encode()) if query else length(-1)
        payload += length(len(signed)) + b"".join(named(name) + named(value) for name, value in sorted(signed))
        payload += named(body) if body else length(-1)
        child = derive_private(self.key, self.node, f"{INVOICE}{nonce} {self.session}")
        auth = {
            "version": "0.1", "identity-key": self.key.public_key.hex(), "nonce": nonce, "your-nonce": self.session,
            "request-id": b64encode(request_id).decode(), "signature": child.sign_digest(sha256(payload).digest()).hex(),
        }  # fmt: skip
        pairs = tuple((f"x-bsv-auth-{name}".encode(), value.encode()) for name, value in auth.items())
        return SignedHead(method, path, query, ((b"host", b"localhost"), *headers, *pairs))

    def verify(self, head: SignedHead, status: int, headers: Pairs, body: bytes) -> None:
        """An answer to the request, as `@bsv/sdk` reads it. Raises SignatureInvalid."""
        found = {name.decode(): value.decode() for name, value in headers if name.startswith(b"x-bsv-auth-")}
        assert found["x-bsv-auth-version"] == "0.1"
        assert found["x-bsv-auth-identity-key"] == self.node.hex()
        assert found["x-bsv-auth-your-nonce"] == self.nonce
        assert found["x-bsv-auth-request-id"] == head.get(b"x-bsv-auth-request-id")
        signed = sorted(
            (name, value)
            for name, value in headers
            if name == b"authorization" or (name.startswith(b"x-bsv-") and not name.startswith(b"x-bsv-auth"))
        )
        payload = b64decode(found["x-bsv-auth-request-id"]) + length(status) + length(len(signed))
        payload += b"".join(named(name) + named(value) for name, value in signed) + named(body)
        child = derive_public(self.node, self.key, f"{INVOICE}{found['x-bsv-auth-nonce']} {self.nonce}")
        child.verify(payload, bytes.fromhex(found["x-bsv-auth-signature"]))
