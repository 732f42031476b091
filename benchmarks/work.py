"""The work: the same packets for everybody, about 256 bytes of JSON each, and how many go where."""

import random
import secrets
from dataclasses import dataclass
from typing import Literal

DATA_BYTES = 256
SCHEMA = {
    "type": "object",
    "required": ["station", "seq", "temperature"],
    "properties": {
        "station": {"type": "string", "maxLength": 32},
        "seq": {"type": "integer", "minimum": 0},
        "temperature": {"type": "number", "minimum": -90, "maximum": 60},
        "wind": {"type": "object", "properties": {"speed": {"type": "number"}, "dir": {"enum": ["N", "E", "S", "W"]}}},
        "ok": {"type": "boolean"},
    },
}
_BEFORE = '{"station":"weather-001","seq":'
_AFTER = ',"temperature":21.5,"humidity":48.2,"pressure":1013.2,"wind":{"speed":3.4,"dir":"W"},"ok":true,"note":"'
_SEQ_MIN, _SEQ_MAX = 100_000, 999_999

BEFORE = _BEFORE.encode()
AFTER = (_AFTER + "x" * (DATA_BYTES - len(_BEFORE) - 6 - len(_AFTER) - 2) + '"}').encode()
STREAMS = 100
SCHEMA_EVERY = 5

Form = Literal["single", "array", "lines"]


@dataclass(frozen=True, slots=True)
class Work:
    """What each client sends, over and over, with one request (or one batch) in flight.

    `streams`: requests go to that many, by chance. `is_checked`: all streams have a schema, instead of every fifth.
    """

    clients: int
    form: Form = "single"
    batch: int = 1
    has_ids: bool = True
    streams: int = STREAMS
    readers: int = 0
    is_checked: bool = False

    @property
    def content_type(self) -> str:
        return "application/x-ndjson" if self.form == "lines" else "application/json"


class Maker:
    """Draws packets; random, as producers make them."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._random = random.Random(secrets.randbits(64))  # noqa: S311 - load, not secrets

    def data(self) -> bytes:
        """One payload."""
        return b"%b%d%b" % (BEFORE, self._random.randint(_SEQ_MIN, _SEQ_MAX), AFTER)

    def packet_id(self) -> bytes:
        """A random UUID (version 4) as text."""
        digits = f"{self._random.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}".encode()

    def stream(self) -> int:
        """Number of the stream of the next request."""
        return self._random.randrange(self.work.streams)

    def packet(self) -> bytes:
        """One packet object of the native API."""
        if self.work.has_ids:
            return b'{"id":"%b","data":%b}' % (self.packet_id(), self.data())
        return b'{"data":%b}' % self.data()

    def body(self) -> bytes:
        """The body of one request of the native API."""
        if self.work.form == "single":
            return self.packet()
        packets = [self.packet() for _ in range(self.work.batch)]
        return b"\n".join(packets) if self.work.form == "lines" else b"[" + b",".join(packets) + b"]"


def stream_prefix(work: Work) -> str:
    """Streams whose names begin so are set up for the work; the number follows, with two digits."""
    return "checked-" if work.is_checked else "mixed-" if work.streams > 1 else "bare-"


def stream_name(work: Work, number: int) -> str:
    """Name of a stream (subject, key, channel, topic) of the work."""
    return f"{stream_prefix(work)}{number:02d}"


def names_with_schema() -> list[str]:
    """Every stream that has a schema."""
    mixed = [f"mixed-{number:02d}" for number in range(0, STREAMS, SCHEMA_EVERY)]
    return mixed + [f"checked-{number:02d}" for number in range(STREAMS)]
