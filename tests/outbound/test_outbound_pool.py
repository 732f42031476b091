"""Connections that are kept: used again, checked, bounded, closed."""

import chaos_sink as chaos
import pytest
import trio
from outbound_rig import LOOPBACK, FixedResolver, RigMaker
from trio.testing import MockClock

from overlayd.outbound import OutboundRequest, Reason
from overlayd.outbound.networks import NetworkPolicy, parse_networks


async def test_a_connection_serves_many_calls(make_rig: RigMaker) -> None:
    """One after the other, calls share a connection; at the same time each has its own."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        for _ in range(5):
            await rig.post(sink.url)
        assert sink.connections == 1
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(rig.post, sink.url)
        assert sink.connections == 3
    assert rig.count("overlayd_outbound_connections_total") == 3


async def test_a_connection_that_was_closed_meanwhile_is_not_used(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """A server that closes an idle connection costs nobody a failure, and no request is sent twice."""
    rig = make_rig()

    async def answer_then_close(turn: chaos.Turn) -> None:
        await chaos.answer(200)(turn)
        await turn.close()

    async with chaos.open_sink() as sink:
        sink.play(answer_then_close)
        for _ in range(3):
            assert (await rig.post(sink.url)).status == 200
            await trio.sleep(1)  # virtual: until the end of the connection has arrived
        assert (sink.connections, len(sink.turns)) == (3, 3)
    assert rig.count("overlayd_outbound_repeats_total") == 0


@pytest.mark.parametrize("step", [chaos.close_silently, chaos.reset])
async def test_a_repeatable_call_survives_a_dying_connection(step: chaos.Step, make_rig: RigMaker) -> None:
    """When a kept connection dies under a request that may be repeated, it is sent once more over a new one."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        sink.play(chaos.answer(200), step, chaos.answer(202))
        await rig.post(sink.url)
        assert (await rig.post(sink.url, is_repeatable=True)).status == 202
        assert [turn.connection for turn in sink.turns] == [1, 1, 2]
    assert rig.count("overlayd_outbound_repeats_total") == 1


async def test_a_call_is_repeated_once_and_only_where_it_may_be(make_rig: RigMaker) -> None:
    """Not on a new connection, not without leave, not once something of an answer came."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        sink.play(chaos.answer(200), chaos.close_silently)
        await rig.post(sink.url)
        assert (await rig.refuse(sink.url, is_repeatable=True)).reason == Reason.ANSWER_CLOSED
        assert len(sink.turns) == 3

        sink.play(chaos.close_silently)
        assert (await rig.refuse(sink.url, is_repeatable=True)).reason == Reason.ANSWER_CLOSED
        assert len(sink.turns) == 4

        sink.play(chaos.answer(200), chaos.close_silently, chaos.answer(200))
        await rig.post(sink.url)
        assert (await rig.refuse(sink.url)).reason == Reason.ANSWER_CLOSED

        sink.play(chaos.answer(200), chaos.raw(b"HTTP/1.1 2"), chaos.answer(200))
        await rig.post(sink.url)
        assert (await rig.refuse(sink.url, is_repeatable=True)).reason == Reason.ANSWER_CLOSED


async def test_words_without_a_request_spoil_a_connection(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """An answer that belongs to no request is never taken for the next one's."""
    rig = make_rig()

    async def speak_twice(turn: chaos.Turn) -> None:
        await chaos.answer(200)(turn)
        await chaos.answer(666, b"not yours")(turn)

    async with chaos.open_sink() as sink:
        sink.play(speak_twice, chaos.answer(200))
        assert (await rig.post(sink.url)).status == 200
        await trio.sleep(1)
        assert (await rig.post(sink.url)).status == 200
        sink.play(
            chaos.raw(b"HTTP/1.1 200 O\r\ncontent-length: 0\r\n\r\nHTTP/1.1 666 X\r\n\r\n", is_last=False),
            chaos.answer(201),
        )
        assert (await rig.post(sink.url)).status == 200
        assert (await rig.post(sink.url)).status == 201


async def test_idle_connections_are_bounded(make_rig: RigMaker) -> None:
    """Per host and in all; the one that lay idle longest goes."""
    rig = make_rig(outbound_idle_per_host=2, outbound_idle_connections=3)

    async def burst(url: str, count: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(rig.post, url)

    async with chaos.open_sink() as first, chaos.open_sink() as second:
        await burst(first.url, 4)
        assert rig.count("overlayd_outbound_connections_idle") == 2
        assert rig.hits("outbound_idle_per_host") == 2
        await burst(second.url, 2)
        assert rig.count("overlayd_outbound_connections_idle") == 3
        assert rig.hits("outbound_idle_connections") == 1
    nothing_kept = make_rig(outbound_idle_per_host=0)
    async with chaos.open_sink() as sink:
        await nothing_kept.post(sink.url)
        assert nothing_kept.count("overlayd_outbound_connections_idle") == 0


async def test_idle_connections_close_after_a_while(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """Without any further call, after `outbound_idle_timeout`; and all of them at the end."""
    rig = make_rig()
    async with chaos.open_sink() as sink, trio.open_nursery() as nursery:
        nursery.start_soon(rig.out.keep_house)
        await rig.post(sink.url)
        await trio.sleep(29)
        assert rig.count("overlayd_outbound_connections_idle") == 1
        await trio.sleep(32)
        assert rig.count("overlayd_outbound_connections_idle") == 0
        await rig.post(sink.url)
        nursery.cancel_scope.cancel()
    assert rig.count("overlayd_outbound_connections_idle") == 0


async def test_connections_grow_old(make_rig: RigMaker, patient_clock: MockClock) -> None:
    """However busy, a connection is replaced after five minutes, so that a name that moved is followed."""
    rig = make_rig(outbound_idle_timeout=400)
    async with chaos.open_sink() as sink:
        await rig.post(sink.url)
        await trio.sleep(200)
        await rig.post(sink.url)
        await trio.sleep(200)
        await rig.post(sink.url)
        assert sink.connections == 1
        await rig.post(sink.url)
        assert sink.connections == 2


async def test_connections_are_not_shared_between_rules(make_rig: RigMaker) -> None:
    """A connection that one caller's rules allow doesn't serve a caller whose rules refuse it."""
    rig = make_rig(resolver=FixedResolver(("127.0.0.1",)))
    async with chaos.open_sink(name="hook.example") as sink:
        await rig.post(sink.url)
        failure = await rig.refuse(sink.url, policy=NetworkPolicy())
        assert failure.reason == Reason.ADDRESS_REFUSED
        await rig.post(sink.url, policy=NetworkPolicy(parse_networks(LOOPBACK)))
        assert sink.connections == 1


async def test_get_is_repeatable_by_itself(make_rig: RigMaker) -> None:
    """Asking twice changes nothing."""
    rig = make_rig()
    async with chaos.open_sink() as sink:
        sink.play(chaos.answer(200), chaos.reset, chaos.answer(203))
        request = OutboundRequest("GET", sink.url)
        await rig.out.send(request)
        assert (await rig.out.send(request)).status == 203
