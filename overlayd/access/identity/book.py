"""Who is known by a public key, and what they may do; however they prove that they hold its private half."""

from collections.abc import Iterable

import msgspec

from overlayd.access.identity.settings import SchemeName
from overlayd.access.origin import Origin
from overlayd.access.principal import Principal, Standing
from overlayd.access.roles import RoleBook
from overlayd.access.scopes import Grants, grants_of
from overlayd.access.settings import AccessSettings
from overlayd.bsv.keys import PublicKey
from overlayd.model.errors import BadParameter, ConfigInvalid, MalformedChainData, Unauthorized

KEY_CHARS = 66


class Identity(msgspec.Struct, frozen=True):
    """Somebody. `name` is what their principal is called, `owner` what the streams that they create belong to."""

    name: str
    key: PublicKey
    grants: Grants
    owner: str
    policy: str
    scheme: SchemeName
    standing: Standing

    def principal(self, origin: Origin, *, may_create: bool) -> Principal:
        """Who comes in. `may_create`: publishing from this machine creates unknown streams."""
        return Principal(
            name=self.name, kind="identity", rights=self.grants.everywhere, address=origin.address,
            may_create=may_create and origin.is_local, grants=self.grants, owner=self.owner, standing=self.standing,
            policy=self.policy, identity_key=self.key.hex(),
        )  # fmt: skip


class IdentityBook:
    """The identities that the settings name, and those that they let in without naming them."""

    def __init__(self, settings: AccessSettings, roles: RoleBook) -> None:
        """Raises ConfigInvalid for what isn't a key, for a key or name that stands twice, and for unknown roles."""
        self._common = settings.identity
        self._strangers = Standing()
        """Of all who aren't listed."""
        self._anyone = grants_of(roles.scopes_of(settings.identity.anyone, ()))
        self._known: dict[str, Identity] = {}
        self._by_name: dict[str, Identity] = {}
        for known in settings.identities:
            try:
                roles.check(known.roles)
                key = PublicKey.parse_hex(known.key)
            except (BadParameter, MalformedChainData) as err:
                raise _invalid(known.name, err.detail, err.hint) from err
            if known.key in self._known or known.name in self._by_name:
                raise _invalid(known.name, "its key or name stands there twice")
            self._known[known.key] = self._by_name[known.name] = Identity(
                name=f"identity:{known.name}", key=key,
                grants=grants_of(roles.scopes_of(known.scopes, known.roles)), owner=known.owner or known.name,
                policy=known.policy, scheme=known.scheme or self._common.scheme, standing=Standing(),
            )  # fmt: skip

    def adopt(self, other: "IdentityBook") -> None:
        """The other's identities from now on. Who is the same stays in; who isn't, is ended."""
        for text, was in self._known.items():
            now = other._known.get(text)
            if now is not None and msgspec.structs.replace(now, standing=was.standing) == was:
                other._known[text] = other._by_name[now.name.removeprefix("identity:")] = was
            else:
                was.standing.ended = "revoked" if now is None else "changed"
        terms = [(one._anyone, one._common.anyone_policy, one._common.scheme) for one in (self, other)]
        if terms[0] != terms[1] or self._known.keys() != other._known.keys():  # a stranger may have got a name
            self._strangers.ended, self._strangers = "changed", Standing()
        self._common, self._anyone = other._common, other._anyone
        self._known, self._by_name = other._known, other._by_name

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"IdentityBook(known={len(self)}, anyone={self.is_open})"

    @property
    def is_open(self) -> bool:
        """Whether keys that nobody listed are let in."""
        return bool(self._common.anyone)

    @property
    def is_configured(self) -> bool:
        """Whether there is anybody."""
        return bool(self._known) or self.is_open

    @property
    def schemes(self) -> frozenset[SchemeName]:
        """The ways in which somebody may sign headers."""
        listed: Iterable[SchemeName] = (identity.scheme for identity in self._known.values())
        return frozenset((*listed, *((self._common.scheme,) if self.is_open else ()))) - {""}

    def find(self, text: str) -> Identity:
        """The holder of a key, 66 hex digits. Raises Unauthorized, in the same words for what isn't a key."""
        text = text.lower()
        known = self._known.get(text)
        if known is not None:
            return known
        if self.is_open and len(text) == KEY_CHARS:
            try:
                return self._stranger(PublicKey.parse_hex(text))
            except MalformedChainData:
                pass
        raise Unauthorized(
            "the identity isn't known here", subject="identity",
            hint="[[access.identities]] lists keys, 66 hex digits, compressed",
        )  # fmt: skip

    def find_grants(self, name: str) -> Grants | None:
        """What somebody may do by the name that the settings give them, or by their key; None for nobody."""
        known = self._by_name.get(name)
        if known is not None:
            return known.grants
        return self._anyone if self.is_open and len(name) == KEY_CHARS else None

    def _stranger(self, key: PublicKey) -> Identity:
        """Each such key is somebody, who owns what they create."""
        name = f"identity:{key.hex()}"
        return Identity(
            name=name, key=key, grants=self._anyone, owner=name, policy=self._common.anyone_policy,
            scheme=self._common.scheme, standing=self._strangers,
        )  # fmt: skip


def _invalid(name: str, detail: str, hint: str = "") -> ConfigInvalid:
    return ConfigInvalid(f"access.identities {name}: {detail}", subject=f"access.identities {name}", hint=hint)
