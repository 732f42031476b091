"""The requests of a node's administration as values (calls.py)."""

from overlayd.client.calls import Call, decoder_of
from overlayd.model.wire_admin import ReloadBody

_RELOAD = decoder_of(ReloadBody)


def reload_settings(*, is_dry: bool = False) -> Call[ReloadBody]:
    """Has the node read its configuration anew. `is_dry`: only tell what would change."""
    return Call("POST", "/v1/admin/reload", _RELOAD, params=(("dry_run", "true"),) if is_dry else ())
