"""No loss and no repeat, whatever happens in between: appends, removals, kills at any moment, any page size."""

from typing import Any

import msgspec
import trio
import trio.testing
from delivery_fakes import FakeLog, make_delivery, query_of
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.delivery.delivery import OpenReader
from overlayd.delivery.frames import encode_message
from overlayd.model.cursor import Cursor
from overlayd.model.limits import Limits

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(["a", "b", "c"]), st.sampled_from(["x", "y"])),
        st.tuples(st.just("other"), st.integers(1, 4)),
        st.tuples(st.just("read"), st.integers(1, 3)),
        st.tuples(st.just("kill"), st.booleans()),
        st.tuples(st.just("cancel"), st.integers(0, 3)),
        st.tuples(st.just("remove"), st.sampled_from(["a", "b"]), st.integers(1, 20), st.integers(0, 10)),
    ),
    max_size=40,
)


class Consumer:
    """A client that keeps what it got and the cursor behind it, and can die at any moment."""

    def __init__(self, log: FakeLog, query: dict[str, Any]) -> None:
        self.log = log
        self.query = query
        self.delivery = make_delivery(log, progress_entries=5)
        self.cursor = log.cursor(0)
        self.offsets: list[int] = []
        self.gaps: list[tuple[int, int]] = []
        self.opened: OpenReader | None = None

    async def connect(self) -> OpenReader:
        if self.opened is None:
            self.opened = await self.delivery.open_reader(query_of(after=self.cursor, **self.query), "test")
        return self.opened

    async def read(self, *, messages_max: int | None = None) -> bool:
        """Takes one batch, or only its first messages and then dies. Whether the reader is at the head."""
        opened = await self.connect()
        batch = await opened.reader.read()
        taken = batch.messages[:messages_max]
        for message in taken:
            body = msgspec.json.decode(encode_message(message, "packet"))
            if body["type"] == "packet":
                self.offsets.append(body["packet"]["offset"])
            elif body["type"] == "gap":
                self.gaps.append((Cursor.parse(body["from"]).offset, Cursor.parse(body["to"]).offset))
            self.cursor = body["cursor"]
        if messages_max is None:
            self.cursor = str(batch.cursor)
        else:
            self.die()
        return batch.is_at_head

    async def read_cancelled(self, checkpoints: int) -> None:
        """A read that is cancelled at one of its checkpoints changes nothing."""
        opened = await self.connect()
        before = opened.reader.cursor
        passed = 0
        with trio.CancelScope() as scope:

            class CancelAt(trio.abc.Instrument):
                def before_task_step(self, task: trio.lowlevel.Task) -> None:
                    nonlocal passed
                    if task is mine:
                        passed += 1
                        if passed > checkpoints:
                            scope.cancel()

            mine = trio.lowlevel.current_task()
            instrument = CancelAt()
            trio.lowlevel.add_instrument(instrument)
            try:
                batch = await opened.reader.read()
                self.offsets += [m.subject.entry.offset for m in batch.messages if m.kind == "packet"]  # type: ignore[union-attr]
                self.gaps += [
                    (m.subject.from_offset, m.subject.to_offset)  # type: ignore[union-attr]
                    for m in batch.messages if m.kind == "gap"
                ]  # fmt: skip
                self.cursor = str(batch.cursor)
            except trio.Cancelled:
                assert opened.reader.cursor == before
                raise
            finally:
                trio.lowlevel.remove_instrument(instrument)

    def die(self) -> None:
        if self.opened is not None:
            self.opened.close()
            self.opened = None


async def play(steps: list[tuple[Any, ...]], page_entries: int, query: dict[str, Any]) -> None:
    """Plays the steps and checks that the consumer knows of every entry that was meant for it."""
    log = FakeLog(page_entries=page_entries)
    consumer = Consumer(log, query)
    wanted: set[int] = set()
    for step, *arguments in steps:
        if step == "add":
            entry = log.add(arguments[0], len(wanted), type=arguments[1])
            is_wanted = arguments[0] != "c" and (not query.get("type") or arguments[1] == query["type"])
            wanted |= {entry.offset} if is_wanted else set()
        elif step == "other":
            log.add_other(arguments[0])
        elif step == "read":
            for _ in range(arguments[0]):
                await consumer.read()
        elif step == "kill":
            await consumer.read(messages_max=1 if arguments[0] else 0)
        elif step == "cancel":
            await consumer.read_cancelled(arguments[0])
        elif step == "remove" and log.find_stream(arguments[0]) is not None:
            low = min(arguments[1], log.head)
            high = min(low + arguments[2], log.head)
            if log.count_kept(arguments[0], low, high):
                log.remove(arguments[0], low, high, "retention")
    while not await consumer.read():
        pass
    assert len(consumer.offsets) == len(set(consumer.offsets)), "a packet came twice"
    assert consumer.offsets == sorted(consumer.offsets)
    announced = {offset for low, high in consumer.gaps for offset in range(low, high + 1)}
    assert wanted <= set(consumer.offsets) | announced, "a packet was lost without a word"
    assert set(consumer.offsets) <= wanted


@settings(max_examples=80, deadline=None)
@given(STEPS, st.integers(1, 7), st.sampled_from([{}, {"type": "x"}]))
def test_no_loss_no_repeat(steps: list[tuple[Any, ...]], page_entries: int, narrowed: dict[str, str]) -> None:
    """Over any interleaving each wanted packet comes exactly once, or is announced as gone."""
    trio.run(play, steps, page_entries, {"stream": ["a", "b"]} | narrowed)


async def test_reading_always_yields() -> None:
    """Every read is a checkpoint, with and without messages, shared or not, so that no loop around it can freeze."""
    log = FakeLog(page_entries=2)
    for number in range(6):
        log.add("a", number)
    delivery = make_delivery(log)
    for _ in range(2):
        with await delivery.open_reader(query_of(**{"from": "beginning"}), "test") as opened:
            for _ in range(6):
                with trio.testing.assert_checkpoints():
                    await opened.reader.read()
            log.add("a", "more")
            with trio.testing.assert_checkpoints():
                await opened.reader.wait()


async def test_a_long_search_lets_others_run() -> None:
    """While a reader searches a long log for nothing, another task gets its turn between any two pages."""
    log = FakeLog(page_entries=10)
    log.add_other(2000)
    delivery = make_delivery(log, limits=Limits())
    turns = 0
    async with trio.open_nursery() as nursery:

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(other)
        with await delivery.open_reader(query_of(stream="a", **{"from": "beginning"}), "test") as opened:
            while not (await opened.reader.read()).is_at_head:
                pass
        nursery.cancel_scope.cancel()
    assert turns >= 190
