"""Decoding a request's packets: together where they are small and sound, alone where not, and never for long."""

import time
from collections.abc import Sequence
from functools import partial

import trio

from overlayd.model.errors import OverlaydError, PacketTooLarge
from overlayd.model.limits import Limits
from overlayd.pipeline.decode import Decoded, ValueBudget, decode_packet, decode_packets

SLICE_S = 0.003
"""Work on the loop after which others get their turn."""

THREAD_BYTES = 128 << 10
"""A packet above it is decoded and judged in a thread."""

RUN_BYTES = 32 << 10
"""Text that is decoded at once: a fraction of a millisecond."""


class Slices:
    """Lets others run when this task has held the loop for a slice."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = time.perf_counter() + SLICE_S

    @property
    def is_over(self) -> bool:
        return time.perf_counter() > self._until

    async def pause(self) -> None:
        """A checkpoint, and another slice. Whoever asks only once a slice `is_over` ends with one that always is."""
        await trio.lowlevel.checkpoint()
        self._until = time.perf_counter() + SLICE_S


async def decode_request(
    objects: Sequence[bytes], first_index: int, limits: Limits, threads: trio.CapacityLimiter
) -> tuple[list[Decoded], dict[int, OverlaydError]]:
    """What could be decoded and what couldn't, by place. A checkpoint whenever it takes long."""
    decoded: list[Decoded] = []
    rejections: dict[int, OverlaydError] = {}
    slices, values, at, alone_to = Slices(), ValueBudget(), 0, 0
    while at < len(objects):
        end, found = at + 1, None
        if at >= alone_to:
            alone_to = _end_of_run(objects, at, int(limits.packet_bytes))
            if alone_to > end:
                found = decode_packets(objects[at:alone_to], first_index + at, limits)
        if found is not None:
            end = alone_to
        else:
            found = [await _decode_alone(objects[at], first_index + at, limits, threads)]
        for index, one in enumerate(found, first_index + at):
            if isinstance(one, OverlaydError):
                rejections[index] = one
            else:
                decoded.append(values.trim(one))
        at = end
        if slices.is_over:
            await slices.pause()
    return decoded, rejections


def too_large(size: int, bytes_max: int) -> PacketTooLarge:
    """What refuses a packet of so many bytes."""
    return PacketTooLarge(f"the packet has {size} bytes; {bytes_max} are taken", subject="packet_bytes")


def _end_of_run(objects: Sequence[bytes], start: int, bytes_max: int) -> int:
    """The place after the last of the packets from `start` on that are small enough together."""
    room = RUN_BYTES
    for at in range(start, len(objects)):
        size = len(objects[at])
        room -= size
        if room < 0 or size > bytes_max:
            return at
    return len(objects)


async def _decode_alone(
    raw: bytes, index: int, limits: Limits, threads: trio.CapacityLimiter
) -> Decoded | OverlaydError:  # fmt: skip
    """A checkpoint for large packets only."""
    try:
        if len(raw) > limits.packet_bytes:
            raise too_large(len(raw), int(limits.packet_bytes))
        if len(raw) > THREAD_BYTES:
            return await trio.to_thread.run_sync(partial(_decode_large, raw, index, limits), limiter=threads)
        return decode_packet(raw, index, limits)
    except OverlaydError as refusal:
        return refusal


def _decode_large(raw: bytes, index: int, limits: Limits) -> Decoded:
    """For a thread, which also takes the value down: that takes as long as building it up."""
    decoded = decode_packet(raw, index, limits)
    decoded.forget()
    return decoded
