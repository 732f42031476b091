"""Roles: named sets of scopes, built in or of the settings (docs/security.md, Scopes and roles)."""

from collections.abc import Iterable, Mapping

from overlayd.access.scopes import RIGHTS, Scope, parse_scope
from overlayd.access.settings import RoleSettings
from overlayd.model.errors import BadParameter, ConfigInvalid

BUILT_IN: Mapping[str, frozenset[Scope]] = {
    "producer": frozenset((Scope("publish"),)),
    "consumer": frozenset((Scope("read"), Scope("subscribe"))),
    "operator": frozenset((Scope("publish"), Scope("read"), Scope("subscribe"), Scope("manage"))),
    "auditor": frozenset((Scope("read"), Scope("subscribe"), Scope("audit"))),
    "agent": frozenset((Scope("agent"),)),
    "admin": frozenset(map(Scope, RIGHTS)),
}


class RoleBook:
    """The roles of the node."""

    def __init__(self, declared: Iterable[RoleSettings] = ()) -> None:
        """Raises ConfigInvalid for scopes that aren't any."""
        self._roles = dict(BUILT_IN)
        for role in declared:
            try:
                self._roles[role.name] = frozenset(map(parse_scope, role.scopes))
            except BadParameter as err:
                raise ConfigInvalid(
                    f"access.roles {role.name}: {err.detail}", subject=role.name, hint=err.hint
                ) from err

    def adopt(self, other: "RoleBook") -> frozenset[str]:
        """The other's roles from now on; gives the names of those that mean something else now."""
        before, self._roles = self._roles, other._roles
        return frozenset(
            name for name in before.keys() | self._roles.keys() if before.get(name) != self._roles.get(name)
        )

    @property
    def names(self) -> list[str]:
        """Known roles, by name."""
        return sorted(self._roles)

    def check(self, roles: Iterable[str]) -> None:
        """Raises BadParameter for a role that there isn't."""
        for role in roles:
            if role not in self._roles:
                raise BadParameter(
                    f"there is no role {role[:64]!r}", subject="roles", hint=f"known are {', '.join(self.names)}"
                )

    def scopes_of(self, scopes: Iterable[str], roles: Iterable[str]) -> frozenset[Scope]:
        """All scopes together. A role that there is no more gives none. Raises BadParameter."""
        found = set(map(parse_scope, scopes))
        for role in roles:
            found |= self._roles.get(role, frozenset())
        return frozenset(found)
