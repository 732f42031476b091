"""What this overlayd was built from and runs on, for `--version`."""

import json
import sqlite3
import ssl
import sys
from importlib import metadata, resources
from pathlib import Path

from overlayd import __version__

_TOLD = ("trio", "hypercorn", "quart-trio", "aiosqlite", "msgspec", "blake3", "coincurve", "cryptography")


def commit() -> str:
    """The commit that a packaged overlayd was built from; empty in a checkout, where the working tree says it."""
    file = resources.files("overlayd") / "build.json"
    if not file.is_file():
        return ""
    return str(json.loads(file.read_text())["commit"])


def unpacked_in() -> Path | None:
    """Where the one-file form unpacked itself for this run; None in every other form."""
    place = getattr(sys, "_MEIPASS", "")
    if not place or Path(sys.executable).resolve().parent in Path(place).resolve().parents:
        return None
    return Path(place)


def version_text() -> str:
    """Name, version and commit on the first line, then the libraries that matter, then where it unpacked."""
    built_from = f" ({commit()})" if commit() else ""
    python = ".".join(str(part) for part in sys.version_info[:3])
    lines = [
        f"overlayd {__version__}{built_from}",
        f"Python {python}, SQLite {sqlite3.sqlite_version}, {ssl.OPENSSL_VERSION}",
        ", ".join(f"{name} {metadata.version(name)}" for name in _TOLD),
    ]
    if place := unpacked_in():
        lines.append(f"unpacked in {place} while it runs")
    return "\n".join(lines)
