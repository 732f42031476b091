"""Users of this machine that the settings name, told by what the kernel says about a Unix socket's peer."""

from collections.abc import Iterable

import msgspec

from overlayd.access.origin import Origin
from overlayd.access.principal import Standing
from overlayd.access.roles import RoleBook
from overlayd.access.scopes import Grants, grants_of
from overlayd.access.settings import UnixUserSettings
from overlayd.model.errors import BadParameter, ConfigInvalid


class KnownUser(msgspec.Struct, frozen=True):
    """An entry of the settings, made ready. `standing`: of everybody whom it let in."""

    settings: UnixUserSettings
    grants: Grants
    standing: Standing


class UnixUsers:
    """Who may do what over a Unix socket without a key. The first entry that fits counts."""

    def __init__(self, users: Iterable[UnixUserSettings], roles: RoleBook | None = None) -> None:
        """Raises ConfigInvalid for a role that there isn't."""
        roles = roles or RoleBook()
        self._users: list[KnownUser] = []
        for user in users:
            try:
                roles.check(user.roles)
            except BadParameter as err:
                raise ConfigInvalid(
                    f"access.unix_users {user.name}: {err.detail}", subject=user.name, hint=err.hint
                ) from err
            self._users.append(KnownUser(user, grants_of(roles.scopes_of(user.scopes, user.roles)), Standing()))

    def adopt(self, other: "UnixUsers") -> bool:
        """The other's entries from now on; whether they are different. Whoever was let in by any of these is then let in
        anew, because another entry may come first now."""
        if [(user.settings, user.grants) for user in self._users] == [(u.settings, u.grants) for u in other._users]:
            return False
        for known in self._users:
            known.standing.ended = "changed"
        self._users = other._users
        return True

    def find(self, origin: Origin) -> KnownUser | None:
        """Who the peer is; None when no entry is about it."""
        for known in self._users:
            user = known.settings
            if user.uid >= 0 and user.uid != origin.uid:
                continue
            if user.gid >= 0 and user.gid not in (origin.gid, *origin.groups):
                continue
            return known
        return None
