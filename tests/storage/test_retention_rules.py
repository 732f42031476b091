"""Which packets go, against a model that is written from the rules' words; and a log against random histories."""

from pathlib import Path
from tempfile import TemporaryDirectory

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_rig import Rig, append, draft, forget_tail

from overlayd.model.bodies import ClockStep
from overlayd.model.definition import DedupRule, Definition, RetentionRule
from overlayd.model.entry import verify_entry
from overlayd.model.merkle import verify_inclusion
from overlayd.model.units import Duration, Size
from overlayd.storage.retention import RetentionSettings
from overlayd.storage.retention.clock_trust import STEP_US, ClockTrust
from overlayd.storage.retention.rules import Bounds, Candidate, bounds_of, choose

ANYTHING = 1 << 62
bounds_strategy = st.builds(
    Bounds,
    before_us=st.integers(0, 60),
    packets_max=st.none() | st.integers(0, 30),
    bytes_max=st.none() | st.integers(0, 200),
    young_us=st.integers(0, 60) | st.just(ANYTHING),
    needed_from=st.integers(0, 80) | st.just(ANYTHING),
    waits_until_us=st.integers(0, 60),
)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), max_size=30), bounds_strategy,
    st.sets(st.integers(1, 30)), st.integers(1, 8),
)  # fmt: skip
def test_choice_is_what_the_rules_say(
    steps: list[tuple[int, int]], bounds: Bounds, held: set[int], packets_max: int
) -> None:
    """Slice by slice exactly those go that are due, unheld, old enough, and needed by nobody or for too long."""
    packets, now = [], 0
    for number, (later, size) in enumerate(steps, start=1):
        now += later
        packets.append(Candidate(number, 2 * number, now, size))
    kept = {packet.sequence: packet for packet in packets}
    after, why = 0, "slice"
    while why == "slice":
        size = sum(packet.size for packet in kept.values())
        choice = choose(
            [packet for packet in kept.values() if packet.sequence > after], bounds, packets=len(kept), size=size,
            is_held=held.__contains__, packets_max=packets_max, size_max=50, after=after,
        )  # fmt: skip
        assert len(choice.taken) <= packets_max
        assert sum(packet.size for packet in choice.taken[:-1]) < 50
        for packet in choice.taken:
            del kept[packet.sequence]
        assert choice.why != "slice" or choice.taken
        after, why = choice.passed, choice.why
    assert set(kept) == model(packets, bounds, held)


def model(packets: list[Candidate], bounds: Bounds, held: set[int]) -> set[int]:
    """What stays, one packet at a time: the oldest that may go goes, as long as there is a reason."""
    stays = list(packets)
    for packet in packets:
        is_reason = (
            packet.appended_us < bounds.before_us
            or (bounds.packets_max is not None and len(stays) > bounds.packets_max)
            or (bounds.bytes_max is not None and sum(one.size for one in stays) > bounds.bytes_max)
        )
        is_needed = packet.offset >= bounds.needed_from and packet.appended_us >= bounds.waits_until_us
        if not is_reason or packet.appended_us > bounds.young_us or is_needed:
            break
        if packet.sequence not in held:
            stays.remove(packet)
    return {packet.sequence for packet in stays}


def test_a_doubtful_clock() -> None:
    """Nothing is too old, nothing old enough for min_age, nobody is waited for too long; counts bind."""
    rule = RetentionRule(max_age=Duration(10), min_age=Duration(5), max_packets=3, hold_max=Duration(20))
    trusted = bounds_of(rule, 100_000_000, is_clock_trusted=True, needed_from=7)
    assert (trusted.before_us, trusted.young_us, trusted.waits_until_us) == (90_000_000, 95_000_000, 80_000_000)
    doubtful = bounds_of(rule, 100_000_000, is_clock_trusted=False, needed_from=7)
    assert (doubtful.before_us, doubtful.young_us, doubtful.waits_until_us) == (0, 0, 0)
    assert doubtful.packets_max == 3


def test_who_waits_follows_what_retention_says() -> None:
    """Twice the age, whatever that is; what is said by itself counts, 0 too."""
    hour = 3_600_000_000

    def waits(**rule: Duration) -> int:
        return 100 * hour - bounds_of(
            RetentionRule(**rule), 100 * hour, is_clock_trusted=True, needed_from=7
        ).waits_until_us  # fmt: skip

    assert waits(max_age=Duration(3600)) == 2 * hour
    assert waits(max_age=Duration(400 * 86_400)) == 800 * 24 * hour
    assert waits() == waits(max_age=Duration(0)) == 60 * 24 * hour
    assert waits(max_age=Duration(3600), hold_max=Duration(7200 * 2)) == 4 * hour
    assert waits(max_age=Duration(3600), hold_max=Duration(0)) == 0


def test_trust_in_the_clock() -> None:
    """A step of more than a day makes it doubtful until a time source sets it; a small one doesn't."""
    trust = ClockTrust(is_always=False, synced=None)
    assert trust.is_trusted
    assert not trust.note(ClockStep(STEP_US))
    assert trust.is_trusted
    assert trust.note(ClockStep(-STEP_US - 1))
    assert (trust.is_trusted, trust.trouble) == (False, "the clock stepped by more than a day")
    assert not trust.note(ClockStep(0, clock_synced=False))
    assert trust.note(ClockStep(3 * STEP_US, clock_synced=True))
    assert trust.is_trusted
    assert not trust.note(ClockStep(0, clock_synced=False))
    assert (trust.is_trusted, trust.trouble) == (False, "the clock isn't synchronized")
    always = ClockTrust(is_always=True, synced=False)
    always.note(ClockStep(2 * STEP_US))
    assert always.is_trusted


actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 12)),
        st.tuples(st.just("wait"), st.integers(1, 5)),
        st.tuples(st.just("look"), st.just(0)),
        st.tuples(st.just("hold"), st.integers(1, 40)),
        st.tuples(st.just("lift"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None)
@given(actions, st.integers(0, 6), st.integers(0, 15), st.integers(0, 4))
def test_random_histories(
    history: list[tuple[str, int]], max_age: int, max_packets: int, min_age: int
) -> None:  # fmt: skip
    """Held and young packets never go, what stays after a look is what the model keeps, and every proof holds."""
    rule = RetentionRule(
        max_age=Duration(max_age), max_packets=max_packets, min_age=Duration(min_age), max_bytes=Size(0),
        hold_max=Duration(0),
    )  # fmt: skip
    with TemporaryDirectory() as place:
        trio.run(run_history, Path(place), history, rule)


async def run_history(place: Path, history: list[tuple[str, int]], rule: RetentionRule) -> None:
    """Plays a history on a log and compares after every act."""
    rig = Rig(place)
    kept: dict[int, int] = {}
    held: list[tuple[int, int]] = []
    left = list(history)
    while left:
        async with rig.open(retention=RetentionSettings(trust_clock=True, share=1.0, slice_packets=5)) as log:
            await log.define_stream("s", Definition(retention=rule, dedup=DedupRule(window=Duration(1))))
            stream = log.find_stream("s")
            assert stream is not None
            while left:
                act, number = left.pop(0)
                if act == "restart":
                    break
                if act == "append":
                    await append(log, "s", [draft() for _ in range(number)])
                    first = stream.head_sequence - number + 1
                    kept |= dict.fromkeys(range(first, stream.head_sequence + 1), rig.clock.us)
                elif act == "wait":
                    rig.clock.advance(number)
                elif act == "hold":
                    hold = await log.holds.place(stream, number, number + 5, reason="r", principal="p")
                    held.append((hold.id, number))
                elif act == "lift" and held:
                    await log.holds.lift(stream, held.pop(0)[0])
                elif act == "look":
                    await log.retention.look()
                    candidates = [Candidate(sequence, sequence, us, 1) for sequence, us in sorted(kept.items())]
                    bounds = bounds_of(rule, rig.clock.us, is_clock_trusted=True, needed_from=ANYTHING)
                    holds = {at for _, low in held for at in range(low, low + 6)}
                    stays = model(candidates, bounds, holds)
                    kept = {sequence: us for sequence, us in kept.items() if sequence in stays}
                forget_tail(log)
                entries = await log.read_packets(stream, 0, 1000)
                assert {entry.sequence for entry in entries if not entry.is_reduced} == set(kept)
                assert stream.packets == len(kept)
                root = await log.root_at(log.head)
                for entry in entries[::7]:
                    verify_entry(entry, None)
                    path = await log.inclusion_path(entry.offset - 1, log.head)
                    verify_inclusion(entry.leaf, entry.offset - 1, log.head, path, root)
