"""The requests about statistics as values (calls.py)."""

from typing import Literal

from overlayd.client.calls import Call, decoder_of, stream_path
from overlayd.model.wire_statistics import StatsBody, StreamStats

_NODE = decoder_of(StatsBody)
_STREAM = decoder_of(StreamStats)


def show_stats(*, limit: int = 0, after: str = "", order: Literal["name", "recent"] = "name") -> Call[StatsBody]:
    """The node's figures and a page of its streams'."""
    named = (("limit", str(limit or "")), ("after", after), ("order", "" if order == "name" else order))
    return Call("GET", "/v1/stats", _NODE, params=tuple((name, value) for name, value in named if value))


def show_stream_stats(stream: str) -> Call[StreamStats]:
    """What happened to a stream since it was created."""
    return Call("GET", stream_path(stream, "stats"), _STREAM)
