"""`overlayd smoke`: the whole way of a packet on a running node, tried once."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import click
import msgspec
import trio

from overlayd.cli.output import json_option, print_json
from overlayd.cli.target import Target, target_options
from overlayd.client import Client, Live, LogView
from overlayd.client.retry import ONCE
from overlayd.model.clock import Entropy
from overlayd.model.errors import (
    Forbidden,
    NodeUnreachable,
    OverlaydError,
    Unauthorized,
    UnknownStream,
    VerificationFailed,
)
from overlayd.model.wire import PacketMessage, ReceiptBody

T = TypeVar("T")
PACKETS = 3
ARRIVAL_S = 10.0


@click.command("smoke")
@click.argument("address", metavar="[URL]", required=False)
@target_options
@json_option
def command(address: str | None, target: Target, as_json: bool) -> None:
    """Publish, read live, read back, verify a proof and repeat a packet on a running node, then clean up.

    It uses a stream of its own, smoke-<random>. Deleting that needs the right to manage, which a client of the Unix
    socket with the service's user id has; without it the stream is left, and that is said. Exits 0 if all worked.
    """
    if address is not None:
        target = msgspec.structs.replace(target, url=address)
    report = _Report(is_quiet=as_json)
    failure = trio.run(partial(_smoke, target, report))
    if as_json:
        print_json({"url": target.url, "passed": failure is None, "steps": report.steps, "left": report.left})
    if failure is not None:
        raise failure


class _Report:
    """What was tried, how long it took and what came of it."""

    def __init__(self, *, is_quiet: bool) -> None:
        self.steps: list[dict[str, Any]] = []
        self.left = ""
        self._is_quiet = is_quiet

    async def step(self, name: str, work: Callable[[], Awaitable[T]], describe: Callable[[T], str]) -> T:
        """Runs one step and prints it with its time. Raises what it raises."""
        started = trio.current_time()
        try:
            result = await work()
        except OverlaydError as error:
            self.note(name, False, trio.current_time() - started, error.detail)
            raise
        self.note(name, True, trio.current_time() - started, describe(result))
        return result

    def note(self, name: str, is_good: bool, seconds: float, detail: str) -> None:
        """Keeps and prints what a step gave."""
        self.steps.append({"step": name, "ok": is_good, "ms": round(seconds * 1000, 3), "detail": detail})
        if not self._is_quiet:
            click.echo(f"{'ok' if is_good else 'FAILED':<6} {name:<10} {seconds * 1000:8.2f} ms  {detail}")

    def note_left(self, stream: str, error: OverlaydError) -> None:
        """The stream couldn't be deleted."""
        self.left = stream
        if not self._is_quiet:
            click.echo(f"left   stream {stream} with its {PACKETS} packets: {error.detail}", err=True)
            click.echo(f"       overlayd streams delete {stream} on the node's machine takes it away", err=True)


async def _smoke(target: Target, report: _Report) -> OverlaydError | None:
    """Runs every step, cleans up in any case; the error that ended it, if one did."""
    stream = f"smoke-{Entropy().draw(6).hex()}"
    try:
        async with Client(target.url, target.key, tls=target.tls, verify=True, retry=ONCE) as client:
            failure = None
            try:
                await _steps(client, stream, report)
            except OverlaydError as error:
                failure = error
            if failure is None or not isinstance(failure, NodeUnreachable):
                await _clean_up(client, stream, report)
            return failure
    except OverlaydError as error:
        return error


async def _steps(client: Client, stream: str, report: _Report) -> None:
    node = await report.step("node", client.node, lambda node: f"{node.node}, log {node.log}, head {node.head}")
    async with client.live(stream) as live:
        data = [{"n": number, "of": PACKETS} for number in range(1, PACKETS + 1)]
        receipts = await report.step(
            "publish", partial(_publish, client, stream, data),
            lambda receipts: f"{PACKETS} packets durable, sequence {receipts[0].sequence} to {receipts[-1].sequence}",
        )  # fmt: skip
        await report.step(
            "live", partial(_receive, live, receipts), lambda count: f"{count} packets arrived, content hashes fit"
        )
    await report.step(
        "read", partial(_read_back, client, stream, receipts), lambda count: f"{count} packets read back, the same"
    )
    view = LogView()
    view.adopt(node)
    await report.step(
        # Not the number PACKETS: after a restore sequences begin above all that the old epoch may have given.
        "proof", partial(client.verify_proof, stream, receipts[-1].sequence, view, subject=receipts[-1]),
        lambda verdict: f"entry {verdict.offset} is in the signed tree of {verdict.checkpoint_size} "
                        "(key taken from the node itself)",
    )  # fmt: skip
    await report.step(
        "repeat", partial(_repeat, client, stream, data[0], receipts[0]), lambda _: "the same id gave the first receipt"
    )


async def _publish(client: Client, stream: str, data: list[dict[str, int]]) -> list[ReceiptBody]:
    return [await client.publish(stream, item, id=f"{stream}-{item['n']}", type="overlayd.smoke") for item in data]


async def _receive(live: Live, receipts: list[ReceiptBody]) -> int:
    expected = [(receipt.sequence, receipt.content_hash, receipt.leaf_hash) for receipt in receipts]
    found: list[tuple[int, str, str]] = []
    with trio.move_on_after(ARRIVAL_S):
        while len(found) < len(expected):
            message = await live.receive()
            if isinstance(message, PacketMessage):
                packet = message.packet
                found.append((packet.packet_sequence, packet.content_hash, packet.leaf_hash))
    if found != expected:
        raise VerificationFailed(f"expected {len(expected)} packets as in their receipts, got {found}", subject="live")
    return len(found)


async def _read_back(client: Client, stream: str, receipts: list[ReceiptBody]) -> int:
    page = await client.read(stream)
    found = [packet.content_hash for packet in page.packets]
    if found != [receipt.content_hash for receipt in receipts]:
        raise VerificationFailed("what was read back isn't what the receipts say", subject=stream)
    return len(found)


async def _repeat(client: Client, stream: str, data: dict[str, int], first: ReceiptBody) -> None:
    (again,) = await _publish(client, stream, [data])
    if not again.duplicate or again.offset != first.offset:
        raise VerificationFailed("a repeated id was appended again", subject=stream)


async def _clean_up(client: Client, stream: str, report: _Report) -> None:
    started = trio.current_time()
    try:
        gone = await client.delete(stream)
    except (Forbidden, Unauthorized) as error:
        report.note_left(stream, error)
    except UnknownStream:
        return  # nothing was published
    else:
        report.note("clean up", True, trio.current_time() - started, f"{gone.packets_removed} packets deleted")
