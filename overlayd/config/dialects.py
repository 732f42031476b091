"""The tables of dialects. Each is a package that can be taken away whole; then its table can't switch anything on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from overlayd.config.convert import Given, Origin
from overlayd.config.schema import Path
from overlayd.storage.migrations import Feature

if TYPE_CHECKING:
    from overlayd.dialects.agentpipe.settings import AgentPipeSettings
else:
    try:
        from overlayd.dialects.agentpipe.settings import AgentPipeSettings
    except ModuleNotFoundError:

        class AgentPipeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
            """Stands where the package isn't there."""

            enabled: Annotated[bool, Meta(description="Not possible: this program was built without AgentPipe")] = False

            def __post_init__(self) -> None:
                if self.enabled:
                    raise ValueError("this program was built without AgentPipe")


__all__ = ["AgentPipeSettings", "agentpipe_features", "agentpipe_operations", "load_agentpipe", "read_foreign"]
AGENTPIPE_ENABLED: Path = ("agentpipe", "enabled")


def load_agentpipe(settings: AgentPipeSettings) -> Any:
    """The module that puts AgentPipe's surface together; None while it is off, so that nothing of it is loaded."""
    if not settings.enabled:
        return None
    from overlayd.dialects.agentpipe import assemble

    return assemble


def agentpipe_features(settings: AgentPipeSettings) -> tuple[Feature, ...]:
    """The tables that it needs."""
    module = load_agentpipe(settings)
    return () if module is None else (module.AGENTPIPE_FEATURE,)


def agentpipe_operations(settings: AgentPipeSettings) -> tuple[Any, ...]:
    """What the served OpenAPI document says about it."""
    module = load_agentpipe(settings)
    return () if module is None else tuple(module.OPERATIONS)


def read_foreign(given: Mapping[Path, Given], environ: Mapping[str, str]) -> dict[Path, Given]:
    """What variables of other systems say, whose dialects are switched on by what is `given`."""
    if not _is_true(given.get(AGENTPIPE_ENABLED)):
        return {}
    try:
        from overlayd.dialects.agentpipe.environment import read_variables
    except ModuleNotFoundError:
        return {}
    return {
        tuple(one.key.split(".")): Given(one.text, Origin("environment", one.variable), is_text=True)
        for one in read_variables(environ)
    }


def _is_true(given: Given | None) -> bool:
    value: Any = None if given is None else given.value
    return value is True or (isinstance(value, str) and value.strip().lower() in ("true", "1", "yes", "on"))
