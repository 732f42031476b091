"""Users of this machine that the settings name, told by what the kernel says about a Unix socket's peer."""

from collections.abc import Iterable

from overlayd.access.origin import Origin
from overlayd.access.roles import RoleBook
from overlayd.access.scopes import Grants, grants_of
from overlayd.access.settings import UnixUserSettings
from overlayd.model.errors import BadParameter, ConfigInvalid


class UnixUsers:
    """Who may do what over a Unix socket without a key. The first entry that fits counts."""

    def __init__(self, users: Iterable[UnixUserSettings], roles: RoleBook | None = None) -> None:
        """Raises ConfigInvalid for a role that there isn't."""
        roles = roles or RoleBook()
        self._users: list[tuple[UnixUserSettings, Grants]] = []
        for user in users:
            try:
                roles.check(user.roles)
            except BadParameter as err:
                raise ConfigInvalid(
                    f"access.unix_users {user.name}: {err.detail}", subject=user.name, hint=err.hint
                ) from err
            self._users.append((user, grants_of(roles.scopes_of(user.scopes, user.roles))))

    def find(self, origin: Origin) -> Grants | None:
        """What the peer may do; None when no entry is about it."""
        for user, grants in self._users:
            if user.uid >= 0 and user.uid != origin.uid:
                continue
            if user.gid >= 0 and user.gid not in (origin.gid, *origin.groups):
                continue
            return grants
        return None
