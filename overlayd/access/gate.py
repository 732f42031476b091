"""The gate: who asks, in two steps.

*Claim*, from a request's head alone, before a byte of its body is taken: where it comes from, which credential it
brings, whether that counts. *Prove*, once the body is there, for schemes whose signature covers it. Every way in goes
through here: a scheme is anything that knows a kind of credential (`Scheme`), and the gate asks the one whose
credential a request brings.

What a kept-alive connection said last is remembered with it, so that a producer that sends the same headers with each
packet is known by comparing them.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from overlayd.access.failures import FailureBook
from overlayd.access.origin import (
    LOOKED_AT,
    SAFE_METHODS,
    AccessRules,
    Origin,
    Peer,
    judge_origin,
    keyless_principal,
)
from overlayd.access.principal import Principal, Standing
from overlayd.access.secret_text import holds_key
from overlayd.access.unix_users import UnixUsers
from overlayd.model.audit import AuditRecord, AuditSink
from overlayd.model.clock import Clock
from overlayd.model.errors import BadRequest, Forbidden, KeyInUrl, LimitReached, Unauthorized
from overlayd.model.metrics import Metrics

KEY_MARK = "_live_"
"""Part of every API key."""


OPEN_PATHS = frozenset(
    ("/healthz", "/readyz", "/docs", "/docs/errors", "/docs/style.css", "/openapi.json", "/asyncapi.json")
)
"""What tells nothing but whether the node is well and how its API works; asked without a credential by probes."""


class RequestHead(Protocol):
    """What is asked of a request's head. Header names are in lower case, in the order that they came in."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def query(self) -> str: ...
    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...

    def get(self, name: bytes) -> str | None: ...


Prove = Callable[[bytes], Awaitable[None]]
"""Gets the whole body as it was sent. Raises Unauthorized when the proof doesn't hold."""


class Seal(Protocol):
    """Signs the answer to one request, for a client that wants to know that it is the node's."""

    @property
    def bytes_max(self) -> int:
        """Of the answer's body, which must be whole and not empty."""
        ...

    def count_hit(self) -> None:
        """An answer was larger."""
        ...

    def headers(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
    ) -> list[tuple[bytes, bytes]]:  # fmt: skip
        """Further headers of an answer that has these."""
        ...


class Claim(msgspec.Struct, frozen=True):
    """Who a request says it is from. `is_lasting`: the same headers on the same connection say it again. `prove`: what
    must come true before anything is done, None when the head was proof enough. `seal`: what signs the answer once that
    is so, None when nobody asks for it."""

    principal: Principal
    is_lasting: bool = True
    prove: Prove | None = None
    seal: Seal | None = None


class Scheme(Protocol):
    """One kind of credential.

    `name` is for metrics and audit records. `headers`: names, in lower case, of the headers that it looks at.
    `is_ambient`: the credential comes with the connection, not with the request, so that a browser could be made to
    use it. `is_costly`: looking at a wrong credential takes more than a look-up.
    """

    @property
    def name(self) -> str: ...
    @property
    def headers(self) -> frozenset[bytes]: ...
    @property
    def is_ambient(self) -> bool: ...
    @property
    def is_costly(self) -> bool: ...

    @property
    def is_configured(self) -> bool:
        """Whether anybody could come in by it: then keyless clients can't any more."""
        ...

    def is_brought(self, head: RequestHead, peer: Peer) -> bool:
        """Whether the request brings a credential of this kind, right or wrong. Quick; never raises."""
        ...

    async def claim(self, head: RequestHead, peer: Peer, origin: Origin) -> Claim:
        """Raises Unauthorized for a credential that doesn't count; it says what is wrong with its form, and nothing
        that helps to guess one."""
        ...


class Remembered:
    """What a connection said last, and who that was. One per connection."""

    __slots__ = ("generation", "is_change", "looked", "principal")

    def __init__(self) -> None:
        self.generation = -1
        self.is_change = False
        self.looked: list[tuple[bytes, bytes]] = []
        self.principal: Principal | None = None


class Gate:
    """Lets requests in, or not. One for the node."""

    def __init__(
        self, *, rules: AccessRules, schemes: Sequence[Scheme], failures: FailureBook, audit: AuditSink, clock: Clock,
        metrics: Metrics, unix_users: UnixUsers = UnixUsers(()), is_loopback_free: bool = False,  # noqa: B008 - holds nothing
        open_paths: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        """`audit`: gets failures; it must bear many of them. `open_paths`: those that need no credential, too."""
        self._open_paths = OPEN_PATHS | open_paths
        self._rules = rules
        self._schemes = tuple(schemes)
        self._failures = failures
        self._audit = audit
        self._clock = clock
        self._unix_users = unix_users
        self._is_loopback_free = is_loopback_free
        self._watched: frozenset[bytes] = LOOKED_AT.union(*(scheme.headers for scheme in schemes))
        self._keyless = Standing()
        self._had_credentials = False
        self.generation = 0
        self.next_end_us = 0
        """When the first of those expires who were let in since it was set to 0."""
        self.on_expiring: Callable[[], None] = _tell_nobody
        """Called when that is known, after nobody was let in who expires; whoever looks after it sets it."""
        claims = metrics.counter("overlayd_access_claims", "Requests by how they came in", "scheme", "outcome")
        self._claims = {
            (scheme, outcome): claims.labels(scheme, outcome)
            for scheme in ("keyless", *(scheme.name for scheme in schemes))
            for outcome in ("accepted", "refused", "throttled")
        }

    def __repr__(self) -> str:
        return f"Gate(schemes={[scheme.name for scheme in self._schemes]}, generation={self.generation})"

    @property
    def has_credentials(self) -> bool:
        """Whether somebody could come in by a credential: a key that counts, or another scheme."""
        return any(scheme.is_configured for scheme in self._schemes)

    def refresh(self) -> bool:
        """Looks again at whether there are credentials; whether that changed who may come in without one. Call it
        whenever that may have changed."""
        if self.has_credentials == self._had_credentials:
            return False
        self._had_credentials = not self._had_credentials
        self._end_keyless()
        return True

    def judge_anew(self) -> None:
        """What connections remember counts no more. Nobody is ended by that."""
        self.generation += 1

    def adopt(self, unix_users: UnixUsers, *, is_loopback_free: bool) -> None:
        """Who may come in without a credential is said anew; whoever did so under other rules comes in again."""
        if not self._unix_users.adopt(unix_users) and is_loopback_free is self._is_loopback_free:
            return
        self._is_loopback_free = is_loopback_free
        self._end_keyless()

    def _end_keyless(self) -> None:
        self.generation += 1
        ended, self._keyless = self._keyless, Standing()
        ended.ended = "changed"

    def is_good(self, principal: Principal, generation: int) -> bool:
        """Whether somebody who was let in at a generation of the gate's still counts."""
        standing = principal.standing
        if standing.ended or generation != self.generation:
            return False
        if principal.expires_us and principal.expires_us <= self._clock.now_us():
            return False
        standing.is_used = True
        return True

    def recall(self, memory: Remembered, head: RequestHead) -> Principal | None:
        """Who the connection was known as, when the request says the same again and that still counts."""
        principal = memory.principal
        if principal is None or not self.is_good(principal, memory.generation):
            return None
        if head.query and (KEY_MARK in head.query or "ticket=" in head.query):
            return None
        if (head.method not in SAFE_METHODS) is not memory.is_change:
            return None
        watched = self._watched
        if [pair for pair in head.headers if pair[0] in watched] != memory.looked:
            return None
        return principal

    async def claim(
        self, memory: Remembered, peer: Peer, head: RequestHead, *, is_websocket: bool = False
    ) -> Claim:  # fmt: skip
        """Who asks, from the head alone. `recall` may be asked first, except for WebSockets.

        Raises Unauthorized, LimitReached (too many wrong credentials), KeyInUrl, BadRequest, and what `judge_origin`
        raises.
        """
        memory.principal = None
        _check_url(head)
        scheme = self._scheme_of(head, peer)
        is_credentialed = scheme is not None and not scheme.is_ambient
        origin = judge_origin(
            self._rules, peer, method=head.method, headers=head.headers, is_websocket=is_websocket,
            is_credentialed=is_credentialed,
        )  # fmt: skip
        if scheme is None:
            claim = self._without_credential(origin, head)
        else:
            claim = await self._with_credential(scheme, head, peer, origin)
        if end_us := claim.principal.expires_us:
            is_first = not self.next_end_us
            self.next_end_us = min(self.next_end_us or end_us, end_us)
            if is_first:
                self.on_expiring()
        if claim.is_lasting and claim.prove is None and not is_websocket:
            memory.generation = self.generation
            memory.is_change = head.method not in SAFE_METHODS
            memory.looked = [pair for pair in head.headers if pair[0] in self._watched]
            memory.principal = claim.principal
        return claim

    def note_refused(self, scheme: str, address: str, error: Unauthorized) -> None:
        """A credential of an address was wrong: counted against it, and told to the audit."""
        self._failures.note(address)
        self._audit(
            AuditRecord("access.failed", "refused", address=address, detail={"scheme": scheme, "reason": error.subject})
        )

    def _scheme_of(self, head: RequestHead, peer: Peer) -> Scheme | None:
        """The scheme whose credential the request brings. One that it brings by itself beats an ambient one."""
        brought = [scheme for scheme in self._schemes if scheme.is_brought(head, peer)]
        own = [scheme for scheme in brought if not scheme.is_ambient]
        if len(own) > 1:
            raise BadRequest(
                f"the request brings more than one credential: {', '.join(scheme.name for scheme in own)}",
                subject="Authorization", hint="send one of them",
            )  # fmt: skip
        if own:
            return own[0]
        if head.get(b"authorization") is not None:
            raise Unauthorized(
                "the Authorization header holds nothing that this node knows", subject="Authorization",
                hint="send Authorization: Bearer and an API key",
            )  # fmt: skip
        return brought[0] if brought else None

    async def _with_credential(self, scheme: Scheme, head: RequestHead, peer: Peer, origin: Origin) -> Claim:
        wait_s = self._failures.wait_s(origin.address)
        if wait_s and scheme.is_costly:
            raise self._throttle(scheme, origin, wait_s)
        try:
            claim = await scheme.claim(head, peer, origin)
        except Unauthorized as error:
            if wait_s:
                raise self._throttle(scheme, origin, wait_s) from None
            self._claims[scheme.name, "refused"].inc()
            self.note_refused(scheme.name, origin.address, error)
            raise
        self._claims[scheme.name, "accepted"].inc()
        claim.principal.standing.is_used = True
        if claim.prove is None:
            return claim
        return msgspec.structs.replace(claim, prove=self._noting(scheme, origin, claim.prove))

    def _noting(self, scheme: Scheme, origin: Origin, prove: Prove) -> Prove:
        """The proof, whose failures count like those of a claim."""

        async def prove_or_note(body: bytes) -> None:
            try:
                await prove(body)
            except Unauthorized as error:
                self._claims[scheme.name, "refused"].inc()
                self.note_refused(scheme.name, origin.address, error)
                raise

        return prove_or_note

    def _throttle(self, scheme: Scheme, origin: Origin, wait_s: float) -> LimitReached:
        self._claims[scheme.name, "throttled"].inc()
        return self._failures.refusal(origin.address, wait_s)

    def _without_credential(self, origin: Origin, head: RequestHead) -> Claim:
        """Raises Unauthorized, and Forbidden where no credential would help."""
        is_open = head.path in self._open_paths and head.method in SAFE_METHODS
        try:
            claim = Claim(self._keyless_principal(origin))
        except (Unauthorized, Forbidden):
            if not is_open:
                self._claims["keyless", "refused"].inc()
                raise
            claim = Claim(
                Principal(name="nobody", kind="open", rights=frozenset(), address=origin.address), is_lasting=False
            )
        self._claims["keyless", "accepted"].inc()
        return claim

    def _keyless_principal(self, origin: Origin) -> Principal:
        if origin.is_unix:
            known = self._unix_users.find(origin)
            if known is not None:
                return Principal(
                    name=f"unix:{origin.uid}", kind="unix", rights=known.grants.everywhere, address=origin.address,
                    may_create=self._rules.auto_create, grants=known.grants, standing=known.standing,
                )  # fmt: skip
            if origin.uid in (0, self._rules.service_uid):
                return keyless_principal(self._rules, origin)
        if not self._had_credentials or (self._is_loopback_free and origin.is_local):
            return keyless_principal(self._rules, origin, self._keyless)
        raise Unauthorized(
            "this node wants a credential", subject="Authorization",
            hint="send Authorization: Bearer and an API key, or use overlayd.sock in the data directory as the "
            "service's user or as root",
        )  # fmt: skip


def _tell_nobody() -> None:
    """Nobody looks after it."""


def _check_url(head: RequestHead) -> None:
    """Raises KeyInUrl: such a key is in somebody's logs by now."""
    if KEY_MARK not in head.query and KEY_MARK not in head.path:
        return
    if holds_key(head.query) or holds_key(head.path):
        raise KeyInUrl(
            "an API key stands in the URL, where logs and histories keep it", subject="URL",
            hint="send it as Authorization: Bearer, and rotate it; pages in a browser use POST /v1/tickets",
        )  # fmt: skip
