"""Every scheme beside the node's own keys and tickets, made of the settings: tokens, identities, certificates."""

import random
from collections.abc import Callable, Iterator, Mapping
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
        self._published: list[PublishedKeys] = []
        roles = RoleBook(settings.roles)
        self.certificates = certificates
        self.tokens = self._jwt_scheme(roles, may_create)
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
        self.all: tuple[Scheme, ...] = (
            self.tokens, IdentityScheme(self.identities, self._nonces, may_create=may_create),
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
                for published in self._published:
                    nursery.start_soon(published.run)
                await trio.sleep_forever()
        finally:
            with trio.move_on_after(STOP_S, shield=True):
                await self._nonces.stop()

    def _jwt_scheme(self, roles: RoleBook, may_create: bool) -> JwtScheme:
        issuers, seen = [], set()
        for issuer in self._settings.jwt:
            try:
                roles.check((*issuer.roles, *(role for grant in issuer.grants for role in grant.roles)))
            except BadParameter as err:
                raise _invalid(issuer, err.detail, err.hint) from err
            if issuer.issuer in seen or issuer.name in seen:
                raise _invalid(issuer, "its name or issuer stands there twice")
            seen |= {issuer.issuer, issuer.name}
            issuers.append(Issuer(issuer, self._keys_of(issuer)))
        return JwtScheme(
            issuers,
            settings=self._settings,
            roles=roles,
            clock=self._clock,
            metrics=self._metrics,
            may_create=may_create,
        )

    def _keys_of(self, issuer: JwtSettings) -> FixedKeys | PublishedKeys:
        if not issuer.jwks_url:
            return read_key_file(issuer, self._environ, self._settings.jwks_keys_max)
        published = PublishedKeys(
            issuer, self._settings, self._fetch, on_change=lambda: self.on_change(), chance=self._chance,
            metrics=self._metrics,
        )  # fmt: skip
        self._published.append(published)
        return published


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
