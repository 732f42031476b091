"""Sessions of mutual authentication: how many, for how long, and which of their nonces were used. Sans-IO.

Anybody can shake hands in anybody's name; only the first signed request shows that the client holds the key. So sessions
that nothing has proven yet stand apart, live shortly, and push out none but their like.
"""

from collections import OrderedDict
from collections.abc import Callable

from overlayd.access.identity.book import Identity
from overlayd.access.mutual.settings import MutualSettings
from overlayd.model.metrics import Metrics


class Session:
    """One handshake and what came after it. `shared`: the point that only the node and the client know. `own_nonce` and `peer_nonce` as sent, base64. Times are monotonic."""

    __slots__ = ("began_s", "identity", "is_proven", "own_nonce", "peer_nonce", "seen", "shared", "used_s")

    def __init__(
        self, identity: Identity, shared: bytes, *, own_nonce: str, peer_nonce: str, now_s: float
    ) -> None:  # fmt: skip
        self.identity = identity
        self.shared = shared
        self.own_nonce = own_nonce
        self.peer_nonce = peer_nonce
        self.began_s = now_s
        self.used_s = now_s
        self.is_proven = False
        self.seen: set[int] = set()
        """Hashes of the nonces of its requests, keyed by the process: 60 bytes each instead of 150. Two that are equal by
        chance would only make the client sign again."""

    def __repr__(self) -> str:
        return f"Session({self.identity.name}, requests={len(self.seen)})"


class SessionBook:
    """All sessions, found by the node's nonce."""

    def __init__(self, settings: MutualSettings, metrics: Metrics, now_s: Callable[[], float]) -> None:
        self._settings = settings
        self._handshake_ttl_s = float(settings.handshake_ttl)
        self._ttl_s = float(settings.session_ttl)
        self._idle_s = float(settings.session_idle)
        self._metrics = metrics
        self.now_s = now_s
        self._fresh: OrderedDict[str, Session] = OrderedDict()
        """Not proven; the oldest first."""
        self._proven: OrderedDict[str, Session] = OrderedDict()
        """The one used longest ago first."""
        self._of: dict[str, OrderedDict[str, None]] = {}
        """Proven ones of each key, in the same order."""
        self._nonces = 0
        metrics.gauge("overlayd_access_mutual_sessions", "Sessions of mutual authentication").set_function(
            lambda: len(self._proven)
        )
        metrics.gauge("overlayd_access_mutual_nonces", "Nonces that these sessions remember").set_function(
            lambda: self._nonces
        )

    def __len__(self) -> int:
        return len(self._proven) + len(self._fresh)

    def __repr__(self) -> str:
        return f"SessionBook(proven={len(self._proven)}, fresh={len(self._fresh)}, nonces={self._nonces})"

    def open(self, session: Session) -> None:
        """A handshake was made."""
        self._drop_old()
        self._fresh[session.own_nonce] = session
        if len(self._fresh) > self._settings.handshakes_max:
            self._metrics.count_limit_hit("handshakes_max")
            self._fresh.popitem(last=False)

    def find(self, own_nonce: str) -> Session | None:
        """The session, unless it is over."""
        session = self._proven.get(own_nonce) or self._fresh.get(own_nonce)
        if session is None or not self._is_over(session):
            return session
        self._drop(session)
        return None

    def holds(self, session: Session) -> bool:
        """Whether nothing has ended the session since it was found."""
        held = self._proven if session.is_proven else self._fresh
        return held.get(session.own_nonce) is session

    def is_used(self, session: Session, nonce: str) -> bool:
        """Whether a request of the session had this nonce."""
        return hash(nonce) in session.seen

    def note(self, session: Session, nonce: str) -> None:
        """A request of the session was proven. What has to make room for it does."""
        settings = self._settings
        if not session.is_proven:
            self._prove(session)
        session.used_s = self.now_s()
        self._proven.move_to_end(session.own_nonce)
        self._of[session.identity.key.hex()].move_to_end(session.own_nonce)
        session.seen.add(hash(nonce))
        self._nonces += 1
        if len(session.seen) >= settings.requests_per_session:
            self._metrics.count_limit_hit("requests_per_session")
            self._drop(session)
        while self._nonces > settings.peer_nonces_max and len(self._proven) > 1:
            self._metrics.count_limit_hit("peer_nonces_max")
            self._drop(next(iter(self._proven.values())))

    def _prove(self, session: Session) -> None:
        """From now on it counts as its key's own."""
        settings, key = self._settings, session.identity.key.hex()
        self._fresh.pop(session.own_nonce, None)
        session.is_proven = True
        self._proven[session.own_nonce] = session
        own = self._of.setdefault(key, OrderedDict())
        own[session.own_nonce] = None
        if len(own) > settings.peer_sessions_each:
            self._metrics.count_limit_hit("peer_sessions_each")
            self._drop(self._proven[next(iter(own))])
        if len(self._proven) > settings.peer_sessions_max:
            self._metrics.count_limit_hit("peer_sessions_max")
            self._drop(next(iter(self._proven.values())))

    def _drop(self, session: Session) -> None:
        self._fresh.pop(session.own_nonce, None)
        if self._proven.pop(session.own_nonce, None) is None:
            return
        self._nonces -= len(session.seen)
        key = session.identity.key.hex()
        own = self._of[key]
        del own[session.own_nonce]
        if not own:
            del self._of[key]

    def _is_over(self, session: Session) -> bool:
        now = self.now_s()
        if session.identity.standing.ended:
            return True
        if not session.is_proven:
            return now - session.began_s > self._handshake_ttl_s
        return now - session.began_s > self._ttl_s or now - session.used_s > self._idle_s

    def _drop_old(self) -> None:
        """Those at the front that are over; the others are found when they are asked for."""
        for sessions in (self._fresh, self._proven):
            while sessions:
                first = next(iter(sessions.values()))
                if not self._is_over(first):
                    break
                self._drop(first)
