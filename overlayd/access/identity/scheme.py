"""Signed headers as a scheme of the gate: claimed by key and nonce, proven over the body."""

from typing import Protocol

from overlayd.access.gate import Claim, Prove, RequestHead
from overlayd.access.identity.book import Identity, IdentityBook
from overlayd.access.identity.headers import (
    HEADERS,
    KEY_HEADER,
    SIGNATURE_HEADER,
    Signed,
    parse_identity_headers,
    signed_digest,
)
from overlayd.access.origin import Origin, Peer
from overlayd.model.errors import SignatureInvalid, Unauthorized


class Nonces(Protocol):
    """Whether a nonce still counts."""

    def check(self, key: bytes, nonce: str) -> None: ...
    async def use(self, key: bytes, nonce: str, digest: bytes) -> None: ...


class IdentityScheme:
    """`X-Identity-Key`, `X-Nonce` and `X-Signature`. A `Scheme` of the gate."""

    name = "identity"
    headers = HEADERS
    is_ambient = False
    is_costly = True

    def __init__(self, identities: IdentityBook, nonces: Nonces, *, may_create: bool) -> None:
        """`may_create`: publishing from this machine creates unknown streams."""
        self._identities = identities
        self._nonces = nonces
        self._may_create = may_create
        self.refresh()

    def refresh(self) -> None:
        """Looks again at whether anybody signs so. Call it when the identities have changed."""
        self._is_on = bool(self._identities.schemes)

    def __repr__(self) -> str:
        return f"IdentityScheme({self._identities!r})"

    @property
    def is_configured(self) -> bool:
        return self._is_on

    def is_brought(self, head: RequestHead, peer: Peer) -> bool:
        """Where nobody signs so, the headers mean nothing, as to a server that doesn't know them."""
        return self._is_on and any(name in (KEY_HEADER, SIGNATURE_HEADER) for name, _ in head.headers)

    async def claim(self, head: RequestHead, peer: Peer, origin: Origin) -> Claim:
        signed = parse_identity_headers(head)
        identity = self._identities.find(signed.key)
        if not identity.scheme:
            raise Unauthorized(
                "this identity comes by mutual authentication alone", subject="identity",
                hint="access.identity.scheme, or that of the identity, says how X-Signature is made",
            )  # fmt: skip
        self._nonces.check(identity.key.encoded, signed.nonce)
        who = identity.principal(origin, may_create=self._may_create)
        return Claim(who, is_lasting=False, prove=self._prover(identity, signed))

    def _prover(self, identity: Identity, signed: Signed) -> Prove:
        async def prove(body: bytes) -> None:
            digest = signed_digest(identity.scheme, signed.nonce, body)
            try:
                identity.key.verify_digest(digest, signed.signature)
            except SignatureInvalid as err:
                raise Unauthorized(
                    "X-Signature doesn't verify", subject="signature",
                    hint=f"this identity signs as {identity.scheme}; the body must be the very bytes that were signed",
                ) from err  # fmt: skip
            await self._nonces.use(identity.key.encoded, signed.nonce, digest)

        return prove
