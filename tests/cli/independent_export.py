"""A verifier of evidence exports written from docs/export.md and docs/log-format.md alone; it shares no code with ours.

It takes NDJSON and CSV, one log key, no anchors, and says what is wrong by raising AssertionError.
"""

import base64
import csv
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

COLUMNS = [
    "offset",
    "stream",
    "sequence",
    "appended_at",
    "id",
    "type",
    "time",
    "source",
    "key",
    "topics",
    "metadata",
    "body",
    "content_hash",
    "commitment",
    "salt",
    "meta",
]


def h(octets: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(octets).digest()


def b64(text: str) -> bytes:
    """Standard base64."""
    return base64.b64decode(text, validate=True)


def hexes(text: str, name: str = "sha256:") -> bytes:
    """A hash as it is written."""
    assert text.startswith(name)
    return bytes.fromhex(text.removeprefix(name))


def check_note(note: str, vkey: str) -> tuple[str, int, bytes]:
    """Origin, size and root of a checkpoint that the key signed."""
    text, lines = note.split("\n\n")
    origin, size, root = text.split("\n")
    key = b64(vkey.split("+", 2)[2])
    assert key[0] == 1
    for line in lines.splitlines():
        _dash, name, signature = line.split(" ")
        if name == origin and name.split("/")[:2] == vkey.split("/")[:2]:
            Ed25519PublicKey.from_public_bytes(key[1:]).verify(b64(signature)[4:], (text + "\n").encode())
            return origin, int(size), b64(root)
    raise AssertionError("not signed by the key")


def read_rows(directory: Path, name: str, form: str) -> list[dict[str, Any]]:
    """Rows of NDJSON or CSV, the same for both."""
    if form == "ndjson":
        return [json.loads(line) for line in (directory / name).read_bytes().split(b"\n")[:-1]]
    with (directory / name).open(newline="", encoding="utf-8") as file:
        head, *records = csv.reader(file, strict=True)
    assert head == COLUMNS
    rows = []
    for record in records:
        row: dict[str, Any] = dict(zip(COLUMNS, record, strict=True))
        for column, cell in row.items():
            if column in ("offset", "sequence"):
                row[column] = int(cell)
            elif column not in ("body", "topics", "metadata") and cell:
                row[column] = json.loads(cell)
        rows.append(row)
    return rows


def records_of(meta: bytes) -> dict[int, bytes]:
    """Values by their tags."""
    found, at = {}, 0
    while at < len(meta):
        tag, length = struct.unpack_from(">BI", meta, at)
        found[tag] = meta[at + 5 : at + 5 + length]
        at += 5 + length
    return found


def root_from(leaves: dict[int, bytes], hashes: list[bytes], start: int, end: int) -> bytes:
    """The walk of docs/export.md."""
    inside = [index for index in (start, end - 1) if index in leaves]
    if not inside and not any(start <= index < end for index in leaves):
        return hashes.pop(0)
    if end - start == 1:
        return leaves[start]
    width = 1
    while width * 2 < end - start:
        width *= 2
    left = root_from(leaves, hashes, start, start + width)
    return h(b"\x01" + left + root_from(leaves, hashes, start + width, end))


def check_export(directory: Path, vkey: str) -> int:
    """How many rows there are."""
    evidence = json.loads((directory / "evidence.json").read_bytes())
    assert (evidence["format"], evidence["version"]) == ("overlayd-export", 1)
    first, last = evidence["range"]["first"], evidence["range"]["last"]
    _origin, size, root = check_note(evidence["checkpoint"], vkey)
    raw = (directory / "entries.bin").read_bytes()
    assert len(raw) == 146 * (last - first + 1)
    entries = {first + n: raw[n * 146 : n * 146 + 146] for n in range(last - first + 1)}
    opened = {}
    for item in evidence.get("opened", ()):
        e = b64(item["entry"])
        offset = int.from_bytes(e[10:18], "big")
        assert entries.setdefault(offset, e) == e
        opened[offset] = e
    leaves = {offset - 1: h(b"\x00" + e) for offset, e in entries.items()}
    hashes = [hexes(text) for text in evidence["hashes"]]
    assert root_from(leaves, hashes, 0, size) == root
    assert not hashes
    rows = read_rows(directory, evidence["rows"]["file"], evidence["rows"]["format"])
    lines = [json.loads(line) for line in (directory / "removed.ndjson").read_bytes().splitlines()]
    shown = {}
    for stream in evidence["streams"]:
        key = hexes(stream["stream_hash"])
        if stream.get("stream"):
            name = stream["stream"].encode()
            assert key == h(b"overlayd/stream/1\n" + b64(stream["ssalt"]) + struct.pack(">I", len(name)) + name)
        if stream["is_shown"]:
            shown[key] = stream.get("stream", "")
    count = 0
    for offset in range(first, last + 1):
        e = entries[offset]
        assert (e[0], int.from_bytes(e[10:18], "big")) == (1, offset)
        if e[1] != 1 or e[26:58] not in shown:
            continue
        if rows and rows[0]["offset"] == offset:
            check_row(rows.pop(0), e, shown[e[26:58]])
            count += 1
        else:
            assert lines, f"nothing for offset {offset}"
            assert lines[0]["offset"] == offset, f"nothing for offset {offset}"
            by = opened[lines.pop(0)["removal"]]
            assert (by[1], by[26:58]) == (5, e[26:58])
            low, high = struct.unpack_from(">QQ", by, 98)
            assert low <= offset <= high
    assert not rows
    assert not lines
    return count


def check_row(row: dict[str, Any], e: bytes, stream: str) -> None:
    """That it opens the entry's seal and says what stands in it."""
    body, meta = row["body"].encode(), b64(row["meta"])
    commitment = hexes(row["commitment"]) if row["commitment"] else bytes(32)
    content = blake3(body).digest()
    seal = h(b"overlayd/seal/1\n" + b64(row["salt"]) + commitment + content + h(body) + h(meta))
    assert seal == e[114:]
    assert (row["stream"], row["sequence"]) == (stream, int.from_bytes(e[58:66], "big"))
    assert hexes(row["content_hash"], "blake3:") == content
    tags = records_of(meta)
    for tag, column in enumerate(("id", "type", "time", "source", "key", "topics", "metadata"), 1):
        assert row[column] == tags.get(tag, b"").decode()
