"""A bar chart as PNG, without a drawing library: rectangles and the letters of benchmarks/letters.py."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.letters import CELL, GLYPH_ROWS, glyph

SCALE = 2
WIDTH = 1200
MARGIN, LABEL_WIDTH, BAR_WIDTH = 20, 520, 540
BAR_HEIGHT, BAR_PITCH, GROUP_GAP = 16, 22, 18
TITLE_HEIGHT = 26
WHITE, INK, GRAY, OURS, DURABLE, VOLATILE = range(6)
PALETTE = bytes.fromhex("ffffff1f29337b87940f766e5b7fa6d3dae3")

Rows = list[bytearray]


@dataclass(frozen=True, slots=True)
class Bar:
    """One contender's figure; `said` stands at its end."""

    label: str
    value: float
    said: str
    is_ours: bool
    is_durable: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Bars that share a scale."""

    title: str
    bars: list[Bar]


def draw_chart(groups: Sequence[Group], foot: str) -> bytes:
    """The PNG file."""
    drawn = [group for group in groups if group.bars]
    height = sum(TITLE_HEIGHT + BAR_PITCH * len(group.bars) + GROUP_GAP for group in drawn) + 2 * MARGIN + TITLE_HEIGHT
    rows: Rows = [bytearray([WHITE]) * WIDTH for _ in range(height)]
    top = MARGIN
    for group in drawn:
        write(rows, MARGIN, top, group.title, INK)
        top += TITLE_HEIGHT
        largest = max(bar.value for bar in group.bars) or 1.0
        for bar in group.bars:
            draw_bar(rows, top, bar, largest)
            top += BAR_PITCH
        top += GROUP_GAP
    write(rows, MARGIN, top, foot, GRAY)
    return encode_png(rows)


def draw_bar(rows: Rows, top: int, bar: Bar, largest: float) -> None:
    """Label, bar and figure."""
    write(rows, MARGIN, top + 1, bar.label, OURS if bar.is_ours else INK)
    color = OURS if bar.is_ours else DURABLE if bar.is_durable else VOLATILE
    length = max(2, round(BAR_WIDTH * bar.value / largest))
    for row in rows[top : top + BAR_HEIGHT]:
        row[LABEL_WIDTH : LABEL_WIDTH + length] = bytes([color]) * length
    write(rows, LABEL_WIDTH + length + 8, top + 1, bar.said, INK)


def write(rows: Rows, left: int, top: int, text: str, color: int) -> None:
    """Letters, cut off at the right edge."""
    for number, letter in enumerate(text):
        at = left + number * CELL * SCALE
        if at + CELL * SCALE > WIDTH:
            return
        for column, bits in enumerate(glyph(letter)):
            for line in range(GLYPH_ROWS):
                if bits >> line & 1:
                    for y in range(SCALE):
                        x = at + column * SCALE
                        rows[top + line * SCALE + y][x : x + SCALE] = bytes([color]) * SCALE


def encode_png(rows: Rows) -> bytes:
    """PNG (ISO/IEC 15948): 8-bit palette, no filters."""
    head = struct.pack("!IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows), 9)
    chunks = ((b"IHDR", head), (b"PLTE", PALETTE), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data)) for kind, data in chunks
    )
