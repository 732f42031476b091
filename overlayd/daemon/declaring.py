"""Brings the streams that the configuration declares into the log."""

from collections.abc import Sequence

from overlayd.config import Settings, StreamSettings
from overlayd.daemon.reloading import refuse
from overlayd.model.errors import InvalidDefinition
from overlayd.model.limits import Limits
from overlayd.model.names import is_node_name
from overlayd.pipeline.definitions import check_definition
from overlayd.pipeline.schema import SchemaCache
from overlayd.storage import Log


async def check_streams(streams: Sequence[StreamSettings], schemas: SchemaCache, limits: Limits) -> None:
    """Whether all can be defined. Raises ConfigInvalid, naming file and line."""
    for stream in streams:
        try:
            await check_definition(stream.definition, schemas, limits)
        except InvalidDefinition as error:
            raise refuse(stream.declared_in, f"streams.{stream.name}", error) from error


async def declare_streams(log: Log, settings: Settings, schemas: SchemaCache) -> None:
    """Brings the streams of the configuration into the log. One that is declared no more keeps its packets and
    definition, and may be changed through the API again. Raises ConfigInvalid."""
    declared = {stream.name for stream in settings.streams}
    await check_streams(settings.streams, schemas, settings.limits)
    for stream in settings.streams:
        await log.define_stream(stream.name, stream.definition, owner="config", principal="config")
    for found in log.list_streams():
        if found.owner == "config" and found.name not in declared and not is_node_name(found.name):
            await log.release_stream(found.name)
