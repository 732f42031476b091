"""Publishes under quotas until it is killed: `python metered_publisher.py DIRECTORY`. Prints `going` once it does."""

import sys
from pathlib import Path

import structlog
import trio

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "net")]
from metering_rig import MeteredNode, holder, open_metered  # noqa: E402 - found only then

PRINCIPALS = 4
TASKS_EACH = 3
PACKETS_PER_REQUEST = 3


async def publish_forever(node: MeteredNode, principal: str, size: int) -> None:
    """One request behind the other."""
    who = holder(principal, "free")
    while True:
        reply = await node.publish(f"s-{size % 2}", PACKETS_PER_REQUEST, who=who, size=size)
        assert reply.status == 201, reply


async def main() -> None:
    """Until the process is killed."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    async with open_metered(Path(sys.argv[1])) as node:
        await node.put_policy(name="free")
        async with trio.open_nursery() as nursery:
            for number in range(PRINCIPALS):
                for task in range(TASKS_EACH):
                    nursery.start_soon(publish_forever, node, f"key:{number}", 10 + 7 * task + number)
            await node.parts.log.wait_beyond(40)
            print("going", flush=True)


if __name__ == "__main__":
    trio.run(main)
