"""The node as a peer of mutual authentication (BRC-103 over HTTP, BRC-104): handshakes, requests, answers. Sans-IO."""

from base64 import b64encode
from collections.abc import Iterable

from overlayd.access.identity.book import IdentityBook
from overlayd.access.mutual.messages import (
    NONCE_BYTES,
    SESSION_NONCE_BYTES,
    VERSION,
    GeneralHead,
    answer_bytes,
    answer_headers,
    check_nonce,
    refusal,
)
from overlayd.access.mutual.sessions import Session, SessionBook
from overlayd.bsv.brc42 import child_tweak, invoice_number
from overlayd.bsv.hashes import sha256
from overlayd.model.clock import Entropy
from overlayd.model.errors import BadRequest, ConfigInvalid, MalformedChainData, SignatureInvalid
from overlayd.model.signer import CurveKey
from overlayd.model.wire_mutual import HandshakeBody, HandshakeIn, RequestedCertificates

PROTOCOL = "auth message signature"
_INVOICE = invoice_number(2, PROTOCOL, "x")[:-1]


class MutualPeer:
    """Decides; whoever calls does the reading and writing."""

    def __init__(
        self, key: CurveKey, *, identities: IdentityBook, sessions: SessionBook, entropy: Entropy
    ) -> None:  # fmt: skip
        """`key`: the node's identity; in memory, since each request needs it. Raises ConfigInvalid for another."""
        if not (key.is_quick and key.can_derive):
            raise ConfigInvalid(
                "mutual authentication agrees on a secret with each client, which the node's identity key can't",
                subject="access.mutual", hint="keep the identity key in a file or credential, or set enabled = false",
            )  # fmt: skip
        self.sessions = sessions
        self.key = key.public_key.hex()
        """The node's public key, 66 hex digits."""
        self._key = key
        self._identities = identities
        self._entropy = entropy
        self._now_s = sessions.now_s

    def __repr__(self) -> str:
        return f"MutualPeer({self.key}, {self.sessions!r})"

    def shake(self, asked: HandshakeIn) -> HandshakeBody:
        """Begins a session. Raises Unauthorized for somebody who isn't known, BadRequest for other messages."""
        if asked.version != VERSION:
            raise BadRequest(f"this node speaks version {VERSION} of mutual authentication", subject="version")
        if asked.message_type != "initialRequest":
            raise BadRequest(
                f"a message of type {asked.message_type[:40]!r} isn't answered here", subject="messageType",
                hint="handshakes begin with initialRequest; the node has no certificates, and asks for none",
            )  # fmt: skip
        theirs = check_nonce(asked.initial_nonce, "initialNonce")
        identity = self._identities.find(asked.identity_key)
        ours = self._entropy.draw(SESSION_NONCE_BYTES)
        session = Session(
            identity, self._key.agree(identity.key.encoded), own_nonce=b64encode(ours).decode(),
            peer_nonce=asked.initial_nonce, now_s=self._now_s(),
        )  # fmt: skip
        signature = self._sign(session, f"{session.peer_nonce} {session.own_nonce}", theirs + ours)
        self.sessions.open(session)
        return HandshakeBody(
            version=VERSION, message_type="initialResponse", identity_key=self.key, initial_nonce=session.own_nonce,
            your_nonce=session.peer_nonce, requested_certificates=RequestedCertificates(), signature=list(signature),
        )  # fmt: skip

    def find(self, general: GeneralHead) -> Session:
        """The session that a request names. Raises Unauthorized."""
        session = self.sessions.find(general.your_nonce)
        if session is None:
            raise refusal("there is no such session, or it is over")
        if session.identity.key.hex() != general.key:
            raise refusal("the session is somebody else's")
        if session.identity.standing.ended:  # the settings say something else about the key now, or nothing
            session.identity = self._identities.find(general.key)
        if self.sessions.is_used(session, general.nonce):
            raise refusal("x-bsv-auth-nonce was used before")
        return session

    def verify(self, session: Session, general: GeneralHead, signed: bytes) -> None:
        """Whether the request is the session's; it counts once. Raises Unauthorized."""
        try:
            tweak = child_tweak(session.shared, f"{_INVOICE}{general.nonce} {session.own_nonce}")
            session.identity.key.verify_as_child(signed, general.signature, tweak)
        except (SignatureInvalid, MalformedChainData) as err:
            raise refusal("x-bsv-auth-signature doesn't verify") from err
        # Its body may have been long in coming.
        if not self.sessions.holds(session):
            raise refusal("there is no such session, or it is over")
        if self.sessions.is_used(session, general.nonce):
            raise refusal("x-bsv-auth-nonce was used before")
        self.sessions.note(session, general.nonce)

    def seal(
        self, session: Session, request_id: bytes, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> list[tuple[bytes, bytes]]:  # fmt: skip
        """The headers that make an answer the node's own. `body` isn't empty."""
        nonce = b64encode(self._entropy.draw(NONCE_BYTES)).decode()
        signed = answer_bytes(request_id, status, headers, body)
        signature = self._sign(session, f"{nonce} {session.peer_nonce}", signed)
        return answer_headers(self.key, nonce, session.peer_nonce, request_id, signature)

    def _sign(self, session: Session, key_id: str, message: bytes) -> bytes:
        return self._key.sign_digest(sha256(message), child_tweak(session.shared, _INVOICE + key_id))
