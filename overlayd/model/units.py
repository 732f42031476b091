"""Durations and sizes as people write them: "30s", "1MiB". Used by the TOML, the API and the CLI."""

import math
import re

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d)")
_DURATION_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_US = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1000, "us": 1}
_SIZE = re.compile(r"([0-9]+)\s*(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB|TB)?")
_SIZE_BYTES = {
    None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip


class Duration(float):
    """Seconds. Written with a unit: `"1.5s"`, `"250ms"`, `"30d"`, also summed: `"1h30m"`."""

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Raises ValueError for anything but a sum of number-and-unit parts."""
        total, at = 0.0, 0
        for part in _DURATION.finditer(text):
            if part.start() != at:
                break
            total += float(part[1]) * _DURATION_S[part[2]]
            at = part.end()
        if at != len(text) or not text or not math.isfinite(total):
            raise ValueError(f'not a duration: {text!r}; write for example "30s", "250ms" or "1h30m"')
        return cls(total)

    def __str__(self) -> str:
        """In the largest unit that divides it, to the microsecond; `parse` takes it back."""
        count_us = int(self) * 1_000_000 if self.is_integer() else round(self * 1e6)
        for unit, unit_us in _DURATION_US.items():
            if count_us and count_us % unit_us == 0:
                return f"{count_us // unit_us}{unit}"
        return "0s"


class Size(int):
    """Bytes. Written with a unit: `"64KiB"`, `"1MiB"`, `"10GB"`; a bare number counts bytes."""

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Raises ValueError for anything but a whole number with an optional unit."""
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f'not a size: {text!r}; write for example "64KiB", "1MiB" or "10GB"')
        return cls(int(match[1]) * _SIZE_BYTES[match[2]])

    def __str__(self) -> str:
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            if self and self % _SIZE_BYTES[unit] == 0:
                return f"{self // _SIZE_BYTES[unit]}{unit}"
        return f"{int(self)}B"
