"""What every table that gives rights has in common: a name, and scopes that can be understood."""

import re
from collections.abc import Iterable

from overlayd.access.scopes import parse_scope
from overlayd.model.errors import OverlaydError

SCOPES_TEXT = 'Rights, maybe over a pattern: "publish:weather.*", "read", "manage:@own"'
ROLES_TEXT = "Named sets of scopes"
POLICY_TEXT = "Quota policy; empty: the default one"
_NAME = re.compile(r"[a-z0-9_-]{1,64}", re.ASCII)


def check_named_scopes(name: str, scopes: Iterable[str]) -> None:
    """Raises ValueError."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"not a name: {name[:80]!r}; at most 64 of a-z, 0-9, _ and -")
    try:
        for scope in scopes:
            parse_scope(scope)
    except OverlaydError as err:
        raise ValueError(f"{name}: {err.detail}") from err
