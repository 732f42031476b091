"""Pays for packets and kills itself between two steps, at one after the other: `python paying_node.py DIRECTORY packet|batch`.

Each round copies a directory with packets that wait for a transaction, forks a process that pays, broadcasts and asks until
it kills itself, and then one that goes on from what the first left. Prints a line for each round: the step before which it
was killed, empty for the one that ran through. Ends with 1 where a coin was lost or spent twice, or a packet not confirmed.
"""

import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
import trio

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "chain")]
from chain_rig import FixedClock  # noqa: E402 - found only then
from watch_rig import Node, keep_books, watching  # noqa: E402

PACKETS = 2
STEPS_MAX = 80


class Killer:
    """Counts steps down; at none left the process is gone, without a word to anybody but the pipe."""

    def __init__(self, left: int, told: int) -> None:
        self._left = left
        self._told = told

    def pass_by(self, step: str) -> None:
        """Before each step."""
        if not self._left:
            os.write(self._told, step.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1

    def before(self, name: str, original: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """The step, with a place to die in front of it."""

        async def call(*args: Any, **named: Any) -> Any:
            self.pass_by(f"before {name}")
            return await original(*args, **named)

        return call

    def around_write(self, original: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """A write, with places to die in front of it, between its statements and its commit, and right after the commit."""

        async def call(job: Callable[..., Any]) -> Any:
            def job_to_die_after(c: Any) -> Any:
                result = job(c)
                self.pass_by("before the commit")
                return result

            self.pass_by("before write")
            result = await original(job_to_die_after)
            self.pass_by("after the commit")
            return result

        return call


async def pay(directory: Path, killer: Killer) -> None:
    """What a node does for packets without a transaction, until killed."""
    async with watching(directory, clock=FixedClock()) as node:
        node.log.write = killer.around_write(node.log.write)  # type: ignore[method-assign]
        for owner, name in steps_of(node):
            setattr(owner, name, killer.before(name, getattr(owner, name)))
        await work(node)
        for owner, name in [*steps_of(node), (node.log, "write")]:
            delattr(owner, name)


def steps_of(node: Node) -> list[tuple[object, str]]:
    """Beside the writes."""
    return [
        (node.wallet, "choose"), (node.wallet, "sign"), (node.log, "append_heads"), (node.log, "checkpoint"),
        (node.log, "append_statuses"), (node.chain, "submit"), (node.chain, "look_up"),
    ]  # fmt: skip


async def work(node: Node) -> None:
    """Pays, anchors, broadcasts, asks."""
    await node.engine.payer.pay_all()
    await node.engine.anchorer.anchor()
    await node.watcher.step()


async def go_on(directory: Path, offsets: list[int], confirming: int) -> None:
    """The next start: every packet is confirmed, told in so many entries, and nothing that was written down is left."""
    async with watching(directory, clock=FixedClock()) as node:
        await work(node)
        await node.settle()
        await node.mine(2)
        for offset in offsets:
            assert (await node.now(offset)).state == "confirmed"
        told = [line for line in await node.told() if line.endswith("confirmed1")]
        assert len(told) == confirming, await node.told()
        assert all(line.height is not None for line in await node.wallet.read_history(1 << 62, 100))


async def begin(directory: Path, commit: str) -> list[int]:
    """A directory with coins in a block, and packets that wait; their offsets."""
    async with watching(directory, clock=FixedClock()) as node:
        await node.define(commit=commit)
        await node.fund(3)
        return [receipt.offset for receipt in await node.append(PACKETS)]


def forked(run: Callable[[int], None]) -> tuple[int, str]:
    """Runs something in a process of its own: how that ended, and what it told."""
    told, telling = os.pipe()
    process = os.fork()
    if not process:
        try:
            run(telling)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(telling)
    _, status = os.waitpid(process, 0)
    with os.fdopen(told) as pipe:
        return os.waitstatus_to_exitcode(status), pipe.read()


def main(directory: Path, commit: str) -> None:
    """Every place to die, one after the other."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    base = directory / "base"
    base.mkdir(parents=True)
    code, said = forked(lambda pipe: [os.write(pipe, b"%d\n" % one) for one in trio.run(begin, base, commit)] and None)
    assert code == 0
    offsets = [int(line) for line in said.splitlines()]
    assert len(offsets) == PACKETS
    confirming = PACKETS if commit == "packet" else 1  # the range of one anchor
    for number in range(STEPS_MAX):
        place = directory / str(number)
        shutil.copytree(base, place)
        code, step = forked(lambda pipe, number=number, place=place: trio.run(pay, place, Killer(number, pipe)))  # type: ignore[misc]
        assert (code, bool(step)) in ((-signal.SIGKILL, True), (0, False)), f"round {number}: ended with {code}"
        print(step, flush=True)
        keep_books(place)
        code, _ = forked(lambda pipe, place=place: trio.run(go_on, place, offsets, confirming))  # type: ignore[misc]
        assert code == 0, f"killed {step}, it didn't go on"
        keep_books(place)
        shutil.rmtree(place)
        if not step:
            return
    raise AssertionError("it never ran through")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
