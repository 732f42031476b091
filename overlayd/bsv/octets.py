"""Reading and writing the integers and lengths of Bitcoin's formats."""

from overlayd.model.errors import MalformedChainData

U32_MAX = (1 << 32) - 1
U64_MAX = (1 << 64) - 1


class ByteReader:
    """Takes values from the front of some bytes. Every error names the format and the place.

    `data` and `at`, the next position, are open to loops that can't afford a call for each byte.
    """

    __slots__ = ("_name", "at", "data")

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self._name = name
        self.at = 0

    @property
    def remaining(self) -> int:
        """Bytes not taken yet."""
        return len(self.data) - self.at

    def fault(self, what: str) -> MalformedChainData:
        """The error to raise about the present position."""
        return MalformedChainData(f"{what} (byte {self.at})", subject=self._name)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        at = self.at
        end = at + count
        if end > len(self.data):
            raise self.fault(f"ends {end - len(self.data)} bytes early")
        self.at = end
        return self.data[at:end]

    def since(self, start: int) -> bytes:
        """The bytes from an earlier position to the present one."""
        return self.data[start : self.at]

    def peek(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes that stand `offset` bytes ahead, without taking them."""
        return self.data[self.at + offset : self.at + offset + count]

    def u8(self) -> int:
        """One byte."""
        at = self.at
        if at >= len(self.data):
            raise self.fault("ends early")
        self.at = at + 1
        return self.data[at]

    def u32(self) -> int:
        """Four bytes, little-endian."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """Eight bytes, little-endian."""
        return int.from_bytes(self.take(8), "little")

    def varint(self) -> int:
        """A variable-length integer in its shortest form; nodes refuse longer ones too."""
        first = self.u8()
        if first < 0xFD:
            return first
        width = 2 << (first - 0xFD)
        value = int.from_bytes(self.take(width), "little")
        if value < (0xFD if width == 2 else 1 << (4 * width)):
            self.at -= width + 1
            raise self.fault("an integer isn't in its shortest form")
        return value

    def count(self, item_bytes_min: int) -> int:
        """How many items follow; never more than the bytes left could hold."""
        count = self.varint()
        if count * item_bytes_min > self.remaining:
            raise self.fault(f"announces {count} items, more than its bytes can hold")
        return count

    def varbytes(self) -> bytes:
        """Bytes behind their length."""
        return self.take(self.varint())

    def finish(self) -> None:
        """Raises unless everything was taken."""
        if self.at != len(self.data):
            raise self.fault(f"{len(self.data) - self.at} bytes too many")


def encode_varint(value: int) -> bytes:
    """The shortest form of an integer from 0 to 2^64 - 1."""
    assert 0 <= value <= U64_MAX
    if value < 0xFD:
        return bytes((value,))
    if value <= 0xFFFF:
        return b"\xfd" + value.to_bytes(2, "little")
    if value <= U32_MAX:
        return b"\xfe" + value.to_bytes(4, "little")
    return b"\xff" + value.to_bytes(8, "little")


def encode_varbytes(octets: bytes) -> bytes:
    """Bytes behind their length."""
    return encode_varint(len(octets)) + octets
