"""Mutual authentication as a scheme of the gate: handshakes get in to be answered, requests by their signature."""

from collections.abc import Iterable

from overlayd.access.gate import Claim, RequestHead
from overlayd.access.mutual.messages import (
    AUTH_PATH,
    HEADERS,
    PREFIX,
    GeneralHead,
    parse_general_head,
    request_bytes,
)
from overlayd.access.mutual.peer import MutualPeer
from overlayd.access.mutual.sessions import Session
from overlayd.access.mutual.settings import MutualSettings
from overlayd.access.origin import Origin, Peer
from overlayd.access.principal import Principal
from overlayd.model.errors import MethodNotAllowed
from overlayd.model.metrics import Metrics

LIMIT = "signed_answer_bytes"


class MutualSeal:
    """Signs the answer to one request. A `Seal` of the gate."""

    __slots__ = ("_metrics", "_peer", "_request_id", "_session", "bytes_max")

    def __init__(
        self, peer: MutualPeer, session: Session, request_id: bytes, bytes_max: int, metrics: Metrics
    ) -> None:  # fmt: skip
        self._peer = peer
        self._session = session
        self._request_id = request_id
        self._metrics = metrics
        self.bytes_max = bytes_max

    def count_hit(self) -> None:
        self._metrics.count_limit_hit(LIMIT)

    def headers(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> list[tuple[bytes, bytes]]:  # fmt: skip
        return self._peer.seal(self._session, self._request_id, status, headers, body)


class MutualScheme:
    """`x-bsv-auth-*`. A `Scheme` of the gate."""

    name = "mutual"
    headers = HEADERS
    is_ambient = False
    is_costly = True

    def __init__(
        self, peer: MutualPeer | None, settings: MutualSettings, metrics: Metrics, *, may_create: bool
    ) -> None:  # fmt: skip
        """`peer`: None where nobody may come in this way. `may_create`: publishing from this machine creates streams."""
        self._peer = peer
        self._settings = settings
        self._metrics = metrics
        self._may_create = may_create

    def __repr__(self) -> str:
        return f"MutualScheme({self._peer!r})"

    @property
    def is_configured(self) -> bool:
        return self._peer is not None

    def is_brought(self, head: RequestHead, peer: Peer) -> bool:
        """Where nobody may come in this way, the headers mean nothing."""
        if self._peer is None:
            return False
        return _is_handshake(head) or any(name.startswith(PREFIX) for name, _ in head.headers)

    async def claim(self, head: RequestHead, peer: Peer, origin: Origin) -> Claim:
        assert self._peer is not None
        if _is_handshake(head):
            nobody = Principal(name="handshake", kind="open", rights=frozenset(), address=origin.address)
            return Claim(nobody, is_lasting=False)
        if head.method == "HEAD":
            raise MethodNotAllowed(
                "an answer without a body can't be verified", subject="HEAD", hint="use GET",
                extra={"allow": ["GET", "POST", "PUT", "PATCH", "DELETE"]},
            )  # fmt: skip
        general = parse_general_head(head)
        session = self._peer.find(general)
        who = session.identity.principal(origin, may_create=self._may_create)
        seal = MutualSeal(
            self._peer, session, general.request_id, int(self._settings.signed_answer_bytes), self._metrics
        )  # fmt: skip
        return Claim(who, is_lasting=False, prove=_Proof(self._peer, session, general, head), seal=seal)


class _Proof:
    """The second step for one request."""

    __slots__ = ("_general", "_head", "_peer", "_session")

    def __init__(self, peer: MutualPeer, session: Session, general: GeneralHead, head: RequestHead) -> None:
        self._peer = peer
        self._session = session
        self._general = general
        self._head = head

    async def __call__(self, body: bytes) -> None:
        """Raises Unauthorized."""
        self._peer.verify(self._session, self._general, request_bytes(self._head, self._general.request_id, body))


def _is_handshake(head: RequestHead) -> bool:
    return head.path == AUTH_PATH and head.method == "POST"
