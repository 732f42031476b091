"""Every scheme beside the node's own keys and tickets, made of the settings: tokens, identities, certificates."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import trio

from overlayd.access.certificates import CertificateScheme
from overlayd.access.gate import Scheme
from overlayd.access.identity.book import IdentityBook
from overlayd.access.identity.nonces import ClockNonces, DurableNonces, Store
from overlayd.access.identity.scheme import IdentityScheme
from overlayd.access.jwt.keys import FixedKeys, read_key_file
from overlayd.access.jwt.published import Fetch, PublishedKeys
from overlayd.access.jwt.scheme import Issuer, JwtScheme
from overlayd.access.jwt.settings import JwtSettings
from overlayd.access.mutual.peer import MutualPeer
from overlayd.access.mutual.scheme import MutualScheme
from overlayd.access.mutual.sessions import SessionBook
from overlayd.access.roles import RoleBook
from overlayd.access.scopes import Grants
from overlayd.access.settings import AccessSettings, KeySettings
from overlayd.model.clock import Clock, Entropy
from overlayd.model.errors import BadParameter, ConfigInvalid
from overlayd.model.metrics import Metrics
from overlayd.signers import open_curve_key

IDENTITY_KEY = "identity.key"
STOP_S = 5.0


class NodeSchemes:
    """One for the node. `start` before anybody is let in; `run` beside everything."""

    def __init__(
        self, *, settings: AccessSettings, directory: Path, environ: Mapping[str, str], store: Store, fetch: Fetch,
        clock: Clock, entropy: Entropy, metrics: Metrics, may_create: bool, certificates: CertificateScheme,
        identity_key: str = "",
    ) -> None:  # fmt: skip
        """Reads small files. `may_create`: publishing from this machine creates unknown streams. `identity_key`:
        where the node's own key lies, as the settings say it. Raises ConfigInvalid, LogInconsistent."""
        self.on_change: Callable[[], None] = _tell_nobody
        """Called when something ended that let somebody in; the daemon sets it."""
        self._settings = settings
        self._fetch = fetch
        self._clock = clock
        self._metrics = metrics
        self._chance = random.Random(entropy.draw(8))  # noqa: S311 - spreads fetches, keeps no secret
        self._environ = environ
        self._nursery: trio.Nursery | None = None
        roles = RoleBook(settings.roles)
        self.certificates = certificates
        self._issuers = self._read_issuers(settings, roles)
        self.tokens = JwtScheme(
            self._issuers, settings=settings, roles=roles, clock=clock, metrics=metrics, may_create=may_create
        )
        self._roles = roles
        self.identities = IdentityBook(settings, roles)
        if settings.nonce_mode == "clock":
            self._nonces: ClockNonces | DurableNonces = ClockNonces(
                settings, store=store, clock=clock, entropy=entropy, metrics=metrics
            )
        else:
            self._nonces = DurableNonces(settings, store=store, metrics=metrics)
        self.mutual: MutualPeer | None = None
        if settings.mutual.enabled and self.identities.is_configured:
            self.mutual = MutualPeer(
                open_curve_key(
                    "node.identity_key", identity_key, file_name=IDENTITY_KEY, directory=directory, environ=environ,
                    entropy=entropy, must_derive=True,
                ), identities=self.identities,
                sessions=SessionBook(settings.mutual, metrics, trio.current_time), entropy=entropy,
            )  # fmt: skip
        self._signed = IdentityScheme(self.identities, self._nonces, may_create=may_create)
        self.all: tuple[Scheme, ...] = (
            self.tokens, self._signed,
            MutualScheme(self.mutual, settings.mutual, metrics, may_create=may_create), self.certificates,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"NodeSchemes({', '.join(map(repr, self.all))})"

    @property
    def issuers(self) -> int:
        """Whose tokens count."""
        return len(self.tokens)

    @property
    def has_identities(self) -> bool:
        """Whether somebody could come in by a key on secp256k1."""
        return self.mutual is not None or bool(self.identities.schemes)

    def find_grants(self, name: str) -> Grants | None:
        """What the principal of an identity or certificate may do by the settings; None when they don't know it."""
        kind, _, rest = name.partition(":")
        if kind == "identity":
            return self.identities.find_grants(rest)
        return self.certificates.find_grants(rest) if kind == "certificate" else None

    async def start(self) -> None:
        """Reads what is stored. Checkpoint."""
        await self._nonces.start()

    async def run(self) -> None:
        """Fetches published keys, until cancelled; then notes what must outlive the process. Checkpoint."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._start_fetching(self._issuers)
                await trio.sleep_forever()
        finally:
            self._nursery = None
            with trio.move_on_after(STOP_S, shield=True):
                await self._nonces.stop()

    def prepare(self, settings: AccessSettings) -> Callable[[], None]:
        """What makes other settings count, roles, identities, certificates and issuers of them; nothing has changed before
        it is called. What somebody was let in by is ended unless it is still the same. Reads small files, blocking.
        Raises ConfigInvalid."""
        roles = RoleBook(settings.roles)
        identities = IdentityBook(settings, roles)
        certificates = CertificateScheme(settings.certificates, roles, is_asked=self.certificates.is_asked)
        issuers = self._read_issuers(settings, roles)

        def adopt() -> None:
            renamed = self._roles.adopt(roles)
            self.identities.adopt(identities)
            self._signed.refresh()
            self.certificates.adopt(certificates)
            self._adopt_issuers(issuers, renamed)
            self._settings = settings

        return adopt

    def is_mutual_as(self, settings: AccessSettings) -> bool:
        """Whether mutual authentication would be on or off with other settings as it is now: that is settled at start."""
        is_wanted = settings.mutual.enabled and bool(settings.identities or settings.identity.anyone)
        return is_wanted is (self.mutual is not None)

    def _adopt_issuers(self, issuers: list[Issuer], renamed: frozenset[str]) -> None:
        """`renamed`: roles that mean something else now."""
        before = {issuer.settings.name: issuer for issuer in self._issuers}
        found, new = [], []
        for issuer in issuers:
            known = before.get(issuer.settings.name)
            if known is None or known.settings != issuer.settings or not renamed.isdisjoint(_roles_of(issuer.settings)):
                new.append(issuer)
                found.append(issuer)
                continue
            del before[issuer.settings.name]
            if isinstance(issuer.keys, FixedKeys) and isinstance(known.keys, FixedKeys):
                issuer.keys.keep(known.keys)
                found.append(issuer)
            else:
                found.append(known)
        for gone in before.values():
            gone.keys.end()
        self._issuers = found
        self.tokens.adopt(found)
        self._start_fetching(new)

    def _start_fetching(self, issuers: Iterable[Issuer]) -> None:
        """Those that publish their keys are fetched from, once `run` runs."""
        for issuer in issuers:
            if self._nursery is not None and isinstance(issuer.keys, PublishedKeys):
                self._nursery.start_soon(issuer.keys.run)

    def _read_issuers(self, settings: AccessSettings, roles: RoleBook) -> list[Issuer]:
        """Raises ConfigInvalid."""
        issuers, seen = [], set()
        for issuer in settings.jwt:
            try:
                roles.check(_roles_of(issuer))
            except BadParameter as err:
                raise _invalid(issuer, err.detail, err.hint) from err
            if issuer.issuer in seen or issuer.name in seen:
                raise _invalid(issuer, "its name or issuer stands there twice")
            seen |= {issuer.issuer, issuer.name}
            issuers.append(Issuer(issuer, self._keys_of(issuer)))
        return issuers

    def _keys_of(self, issuer: JwtSettings) -> FixedKeys | PublishedKeys:
        if not issuer.jwks_url:
            return read_key_file(issuer, self._environ, self._settings.jwks_keys_max)
        return PublishedKeys(
            issuer, self._settings, self._fetch, on_change=lambda: self.on_change(), chance=self._chance,
            metrics=self._metrics,
        )  # fmt: skip


def _roles_of(issuer: JwtSettings) -> tuple[str, ...]:
    return (*issuer.roles, *(role for grant in issuer.grants for role in grant.roles))


def named_policies(settings: AccessSettings, keys: tuple[KeySettings, ...]) -> Iterator[tuple[str, str]]:
    """Quota policies that the settings name, each with who has it."""
    named = [
        *((f"keys.{key.name}", key.policy) for key in keys),
        *((f"access.jwt {issuer.name}", issuer.policy) for issuer in settings.jwt),
        *((f"access.identities {known.name}", known.policy) for known in settings.identities),
        *((f"access.certificates {rule.name}", rule.policy) for rule in settings.certificates),
        ("access.identity.anyone_policy", settings.identity.anyone_policy),
    ]
    for place, policy in named:
        if policy:
            yield place, policy


def _invalid(issuer: JwtSettings, detail: str, hint: str = "") -> ConfigInvalid:
    return ConfigInvalid(f"access.jwt {issuer.name}: {detail}", subject=f"access.jwt {issuer.name}", hint=hint)


def _tell_nobody() -> None:
    """Nobody is in yet."""
