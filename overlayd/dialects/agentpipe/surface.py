"""What AgentPipe's routes share: the node's parts that they are handed, who may see which conversation, and bodies."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import trio
from quart import Request

from overlayd.access import Principal
from overlayd.access.scopes import Scope
from overlayd.access.stream_guard import StreamGuard
from overlayd.dialects.agentpipe.events import PATTERN, PREFIX, cuid_of
from overlayd.dialects.agentpipe.follower import Follower
from overlayd.dialects.agentpipe.settings import AgentPipeSettings
from overlayd.dialects.agentpipe.throttle import Throttle
from overlayd.model.clock import Clock, Entropy, format_time_us
from overlayd.model.definition import Definition
from overlayd.model.errors import BodyTooLarge
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.net.app import read_body
from overlayd.net.content import Bodies, Hold
from overlayd.net.lane import Lane
from overlayd.net.publish import Publisher
from overlayd.pipeline.json_text import parse_json
from overlayd.storage import Log

CATCH_UP_S = 2.0
"""A read waits at most so long for the sessions to hold what was in the log when it came."""
THREAD_BYTES = 128 << 10
SHOWN_ID_CHARS = 3000


class Surface:
    """One for the node."""

    def __init__(
        self, *, settings: AgentPipeSettings, log: Log, limits: Limits, lane: Lane, bodies: Bodies, publisher: Publisher,
        streams: StreamGuard, follower: Follower, throttle: Throttle, defaults: Definition, clock: Clock,
        entropy: Entropy, metrics: Metrics,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.log = log
        self.limits = limits
        self.lane = lane
        self.publisher = publisher
        self.streams = streams
        self.follower = follower
        self.throttle = throttle
        self.clock = clock
        self.entropy = entropy
        self.metrics = metrics
        self._bodies = bodies
        self._defaults = defaults
        self._threads = trio.CapacityLimiter(1)

    # Bodies.

    def hold(self) -> Any:
        """A place among the bodies in flight, as a block."""
        return self._bodies.hold()

    async def read_body(self, asked: Request, hold: Hold, bytes_max: int, limit: str) -> bytes:
        """The whole body. Checkpoint. Raises BodyTooLarge, and as `BodyReader.read_all`."""
        return await read_body(asked, self._bodies, hold, bytes_max, limit)

    async def parse(self, raw: bytes) -> Any:
        """The value of a JSON text; large ones in a thread. Raises MalformedJson, UnusableJson."""
        depth = self.limits.json_depth_max
        if len(raw) <= THREAD_BYTES:
            return parse_json(raw, depth)
        return await self.in_thread(partial(parse_json, raw, depth))

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """Work that would hold the loop; it holds no place in the lane. Checkpoint."""
        async with self.lane.step_out():
            return await trio.to_thread.run_sync(work, limiter=self._threads)

    def refuse_size(self, size: int, bytes_max: int, limit: str) -> None:
        """Raises BodyTooLarge."""
        if size > bytes_max:
            self.metrics.count_limit_hit(limit)
            raise BodyTooLarge(f"{size} bytes; {bytes_max} are taken", subject=limit)

    # Streams of conversations.

    def draw_id(self) -> str:
        """An id for a conversation, in the form of AgentPipe's server."""
        return cuid_of(self.entropy.draw(20))

    def now(self) -> str:
        """The time, as events hold it."""
        return format_time_us(self.clock.now_us())

    async def ensure_stream(self, stream: StreamName, conversation: str, principal: Principal) -> None:
        """The conversation's stream exists when it returns. Checkpoint only for a new one. Raises as
        `Log.define_stream`."""
        if self.log.find_stream(stream) is not None:
            return
        what = f"Conversation {conversation[:SHOWN_ID_CHARS]}" if conversation else "Clients that connected"
        definition = msgspec.structs.replace(
            self._defaults, title="AgentPipe", description=what, visibility=self.settings.visibility
        )
        async with self.lane.step_out():
            await self.log.define_stream(stream, definition, principal=principal.name)

    def may_read(self, principal: Principal, stream: str) -> bool:
        """Whether somebody may know of a conversation."""
        return self.streams.may(principal, "read", stream)

    def visible_streams(self, principal: Principal) -> tuple[str, ...] | None:
        """The streams of conversations that somebody may read; None for all of them."""
        if "read" in principal.rights or principal.grants.is_wider(Scope("read", PATTERN)):
            return None
        names = (stream.name for stream in self.log.list_streams() if stream.name.startswith(f"{PREFIX}."))
        return tuple(name for name in names if self.may_read(principal, name))

    async def catch_up(self) -> None:
        """Until the sessions hold what is in the log now, or a bound of time. Checkpoint."""
        head = self.log.head
        if self.follower.position >= head:
            await trio.lowlevel.checkpoint()
            return
        async with self.lane.step_out():
            with trio.move_on_after(CATCH_UP_S):
                await self.follower.wait_for(head)
