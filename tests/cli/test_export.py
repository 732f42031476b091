"""`overlayd export` and `overlayd verify` of what it wrote: whole, by a second verifier, and with anything changed."""

import csv
import json
import random
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from click.testing import CliRunner
from export_rig import BODIES, append, changed_copy, export, make_log, opened, verify
from independent_export import check_export, read_rows

from overlayd.cli import cli
from overlayd.cli.exits import BROKEN, FAILED, OK, SIGNED_ONLY, USAGE
from overlayd.cli.exporting import _Export
from overlayd.cli.log_check import opened_log
from overlayd.model.entry import ENTRY_BYTES, Kind

FORMS = ("ndjson", "csv")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log at rest."""
    directory = tmp_path_factory.mktemp("source") / "data"
    trio.run(make_log, directory)
    return directory


@pytest.fixture(scope="module", params=FORMS)
def out(request: pytest.FixtureRequest, source: Path) -> Path:
    """An export of all of it, in each form that needs nothing else."""
    place = source.parent / f"out-{request.param}"
    result = export(source, place, "..", "--format", request.param)
    assert result.exit_code == OK, result.output
    return place


def rows_of(place: Path) -> list[dict[str, Any]]:
    """Of either form."""
    form = "csv" if (place / "rows.csv").exists() else "ndjson"
    return read_rows(place, f"rows.{form}", form)


def test_an_export_holds(source: Path, out: Path) -> None:
    """Every packet is a row or on record as taken away, and a verifier that shares no code agrees."""
    result = verify(out, source, "--json", "--expect-all-streams", "--expect-stream", "weather")
    assert result.exit_code == SIGNED_ONLY, result.output
    verdict = json.loads(result.output)["verdict"]
    assert verdict["removed"] == {"retention": 10, "erased": 3, "deleted": 10}
    assert verdict["rows"] == 41 * len(BODIES) + 40 - 13
    assert {stream.get("stream", "") for stream in verdict["streams"]} == {"weather", "-other", ""}
    assert verdict["unnamed"] == 0
    assert check_export(out, (source / "vkey").read_text()) == verdict["rows"]
    text = verify(out, source).output
    assert "The export holds." in text
    assert "10 deleted, 3 erased, 10 retention" in text


def test_rows_hold_the_bytes_that_came(out: Path) -> None:
    """Whatever a form of rows could trip over."""
    rows = [row for row in rows_of(out) if row["stream"] == "weather"]
    assert [row["body"].encode() for row in rows[-len(BODIES) :]] == list(BODIES)
    assert {row["type"] for row in rows} == {"=cmd|' /C calc'!A0"}


def test_no_cell_of_a_csv_begins_like_a_formula(source: Path, tmp_path: Path) -> None:
    """A cell begins with a digit or is a JSON token; a minus begins numbers alone."""
    export(source, tmp_path / "out", "..", "--format", "csv")
    with (tmp_path / "out" / "rows.csv").open(newline="", encoding="utf-8") as file:
        cells = {cell for row in list(csv.reader(file))[1:] for cell in row if cell and not cell[0].isdigit()}
    assert '"-other"' in cells
    assert all(cell[0] in '"[{tfn' or cell == "-1" for cell in cells)


def lines_of(place: Path) -> tuple[Path, list[bytes]]:
    """The rows' file and its records; those of a CSV may have several lines, which the marker in the last column ends."""
    path = place / "rows.ndjson"
    if path.exists():
        return path, path.read_bytes().splitlines(keepends=True)
    path = place / "rows.csv"
    lines: list[bytes] = []
    for line in path.read_bytes().split(b"\r\n")[:-1]:
        if lines and lines[-1].count(b'"') % 2:
            lines[-1] += line + b"\r\n"
        else:
            lines.append(line + b"\r\n")
    return path, lines


def on_rows(change: Callable[[list[bytes]], Sequence[bytes]]) -> Callable[[Path], None]:
    """Changes the records of the rows' file."""

    def apply(place: Path) -> None:
        path, lines = lines_of(place)
        path.write_bytes(b"".join(change(lines)))

    return apply


def on_evidence(change: Callable[[Any], None]) -> Callable[[Path], None]:
    """Written again in the one form, so that not the form alone is found."""

    def apply(place: Path) -> None:
        evidence = json.loads((place / "evidence.json").read_bytes())
        change(evidence)
        raw = msgspec.json.format(msgspec.json.encode(evidence), indent=1)
        (place / "evidence.json").write_bytes(raw + b"\n")

    return apply


def shorten(name: str, octets: int) -> Callable[[Path], None]:
    """The end of a file is gone."""

    def apply(place: Path) -> None:
        path = place / name if (place / name).exists() else lines_of(place)[0]
        path.write_bytes(path.read_bytes()[:-octets])

    return apply


def lengthen(name: str, octets: bytes) -> Callable[[Path], None]:
    """A file goes on."""
    return lambda place: write(place / name, (place / name).read_bytes() + octets)


def write(path: Path, octets: bytes) -> None:
    """As `Path.write_bytes`, without its answer."""
    path.write_bytes(octets)


def hide_as_erased(removal: int | None = None) -> Callable[[Path], None]:
    """A row becomes a removed entry, by a removal of its stream or by a made up offset; every count is made to fit."""

    def apply(place: Path) -> None:
        row = rows_of(place)[150]
        _, lines = lines_of(place)
        head = 0 if lines[0].startswith(b"{") else 1
        on_rows(lambda lines: lines[: 150 + head] + lines[151 + head :])(place)
        removed = [json.loads(line) for line in (place / "removed.ndjson").read_bytes().splitlines()]
        by = removal or next(line["removal"] for line in removed if line["stream"] == row["stream"])
        line = {"offset": row["offset"], "stream": row["stream"], "sequence": row["sequence"], "cause": "retention"}
        removed = sorted([*removed, {**line, "removal": by}], key=lambda line: line["offset"])
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in removed)
        (place / "removed.ndjson").write_text(text)

        def count(evidence: Any) -> None:
            evidence["rows"]["count"] -= 1
            next(stream for stream in evidence["streams"] if stream.get("stream") == row["stream"])["removed"] += 1

        on_evidence(count)(place)

    return apply


def shorten_range(evidence: Any) -> None:
    """Claims less than there is."""
    evidence["range"]["last"] -= 1


def drop_stream(evidence: Any) -> None:
    """As if it weren't exported."""
    evidence["streams"] = [stream for stream in evidence["streams"] if stream.get("stream") != "weather"]


def hide_stream(evidence: Any) -> None:
    """As if it were only named."""
    for stream in evidence["streams"]:
        stream["is_shown"] = stream.get("stream") != "weather"


def rename_stream(evidence: Any) -> None:
    """Under its old pseudonym."""
    evidence["streams"][-1]["stream"] = "another"


def put(path: Sequence[str | int], value: Any) -> Callable[[Path], None]:
    """Another value for a member of the evidence."""

    def change(evidence: Any) -> None:
        for part in path[:-1]:
            evidence = evidence[part]
        evidence[path[-1]] = value

    return on_evidence(change)


TAMPERINGS: dict[str, Callable[[Path], None]] = {
    "drop a row": on_rows(lambda lines: lines[:120] + lines[121:]),
    "drop the last row": on_rows(lambda lines: lines[:-1]),
    "drop all rows": on_rows(lambda lines: []),
    "exchange two rows": on_rows(lambda lines: [*lines[:90], lines[91], lines[90], *lines[92:]]),
    "double a row": on_rows(lambda lines: [*lines[:70], lines[69], *lines[70:]]),
    "double the last row": on_rows(lambda lines: [*lines, lines[-1]]),
    "another stream's row": on_rows(
        lambda lines: [*lines[:70], lines[70].replace(b"weather", b"weathes"), *lines[71:]]
    ),
    "alter a shown type": on_rows(lambda lines: [*lines[:70], lines[70].replace(b"calc", b"cald", 1), *lines[71:]]),
    "alter a time": on_rows(lambda lines: [*lines[:70], lines[70].replace(b"T", b"S", 1), *lines[71:]]),
    "alter a body": on_rows(lambda lines: [line.replace("Zoë".encode(), b"Zoe", 1) for line in lines]),
    "white space in a row": on_rows(lambda lines: [*lines[:70], b" " + lines[70], *lines[71:]]),
    "rows end early": shorten("rows", 1),
    "entries end early": shorten("entries.bin", 1),
    "an entry less": shorten("entries.bin", 146),
    "an entry more": lengthen("entries.bin", bytes(146)),
    "removed end early": shorten("removed.ndjson", 1),
    "no removed": shorten("removed.ndjson", 1 << 20),
    "no removed file": lambda place: (place / "removed.ndjson").unlink(),
    "a file more": lambda place: (place / "notes.txt").touch(),
    "hide as erased": hide_as_erased(),
    "hide as erased by nothing": hide_as_erased(7),
    "shorten the range": on_evidence(shorten_range),
    "lengthen the range": put(("range", "first"), 2),
    "rename a stream": on_evidence(rename_stream),
    "drop a stream": on_evidence(drop_stream),
    "hide a stream": on_evidence(hide_stream),
    "claim fewer rows": put(("rows", "count"), 1),
    "claim another log": put(("log",), "a" * 26),
    "change a proof's hash": put(("opened", 0, "body"), '{"cause":"erased","count":1}'),
    "drop opened entries": on_evidence(lambda evidence: evidence.pop("opened")),
    "white space": lengthen("evidence.json", b"\n"),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_tampering_is_found(source: Path, out: Path, tmp_path: Path, what: str) -> None:
    """Each with exit code 20 and the reason."""
    place = changed_copy(out, tmp_path / "changed", TAMPERINGS[what])
    result = verify(place, source)
    assert result.exit_code == BROKEN, result.output
    assert "overlayd: " in result.output


def test_any_flipped_byte_is_found(source: Path, out: Path, tmp_path: Path) -> None:
    """In every file, at places drawn once for all; found always, and nothing else is ever raised."""
    place = changed_copy(out, tmp_path / "changed", lambda place: None)
    draw = random.Random(7)
    for path in sorted(place.iterdir()):
        whole = path.read_bytes()
        for at in draw.sample(range(len(whole)), 25):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
            result = verify(place, source)
            assert result.exit_code == BROKEN, (path.name, at, result.output)
        path.write_bytes(whole)
    assert verify(place, source).exit_code == SIGNED_ONLY


def test_impossible_numbers_in_an_entry_are_found(source: Path, out: Path, tmp_path: Path) -> None:
    """The highest bit of every octet before an entry's hashes: times, offsets and epochs that can't be."""
    place = changed_copy(out, tmp_path / "changed", lambda place: None)
    path = place / "entries.bin"
    whole = path.read_bytes()
    first = next(at for at in range(0, len(whole), ENTRY_BYTES) if whole[at + 1] == Kind.PACKET)
    for at in range(first, first + 42):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :])
        result = verify(place, source)
        assert result.exit_code == BROKEN, (at - first, result.output)


def test_the_signature_is_of_this_checkpoint(source: Path, out: Path, tmp_path: Path) -> None:
    """Another root, size or origin isn't what was signed."""
    evidence = json.loads((out / "evidence.json").read_bytes())
    origin, size, root, *rest = evidence["checkpoint"].split("\n")
    for number, lines in enumerate((
        (origin, str(int(size) - 1), root), (origin, size, "A" * 43 + "="), (origin[:-1] + "a", size, root)
    )):  # fmt: skip
        note = "\n".join((*lines, *rest))
        place = changed_copy(out, tmp_path / str(number), put(("checkpoint",), note))
        assert verify(place, source).exit_code == BROKEN


async def test_part_of_the_log_and_of_its_streams(source: Path, tmp_path: Path) -> None:
    """A range in the middle, whose removal entries lie behind it, and one stream; the rest is counted, not shown."""
    result = export(source, tmp_path / "out", "50..200", "--stream", "weather", "--json")
    assert result.exit_code == OK, result.output
    assert json.loads(result.output)["removed"] == 1
    verdict = json.loads(verify(tmp_path / "out", source, "--json", "--expect-range", "50..200").output)["verdict"]
    assert [stream["stream"] for stream in verdict["streams"]] == ["weather"]
    assert verdict["unnamed"] > 0
    assert verdict["removed"] == {"erased": 1}
    assert check_export(tmp_path / "out", (source / "vkey").read_text()) == verdict["rows"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--expect-range", "50..201"), BROKEN), (("--expect-range", "..200"), SIGNED_ONLY),
        (("--expect-stream", "-other"), BROKEN), (("--expect-stream", "weather"), SIGNED_ONLY),
        (("--expect-all-streams",), BROKEN), (("--expect-range", "1-2"), USAGE), (("--accept", "signed"), OK),
        (("--accept", "anchored"), SIGNED_ONLY),
    ],
)  # fmt: skip
def test_what_was_asked_for_is_held_against_it(
    source: Path, tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    """A shorter range, or a stream that isn't there, is an error for who expects it."""
    export(source, tmp_path / "out", "50..200", "--stream", "weather")
    assert verify(tmp_path / "out", source, *arguments).exit_code == code


@pytest.mark.parametrize("span", ["0..5", "7..6", "5", "1..99999", "a..b", "99999..", "5..6..7"])
def test_ranges_that_cant_be(source: Path, tmp_path: Path, span: str) -> None:
    """Nothing is left behind."""
    assert export(source, tmp_path / "out", span).exit_code in (FAILED, USAGE)
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_writes_over_anything(source: Path, tmp_path: Path) -> None:
    """Nor where there is no log."""
    (tmp_path / "out").mkdir()
    assert export(source, tmp_path / "out").exit_code == 78
    assert export(tmp_path, tmp_path / "new").exit_code == 78


async def test_an_export_beside_a_running_node(tmp_path: Path) -> None:
    """What the log's writer holds open is read without it."""
    async with opened(tmp_path / "data") as log:
        await append(log, "a", list(BODIES))
        await log.checkpoint(min_size=log.head)
        (tmp_path / "data" / "vkey").write_text(log.vkey)
        assert export(tmp_path / "data", tmp_path / "out").exit_code == OK
    assert verify(tmp_path / "out", tmp_path / "data").exit_code == SIGNED_ONLY


async def test_rotated_keys_come_along(tmp_path: Path) -> None:
    """Who knows the first key alone is led to the one that signed; nobody's other key is believed."""
    data = tmp_path / "data"
    async with opened(data) as log:
        (data / "vkey").write_text(log.vkey)
        await append(log, "a", list(BODIES))
        for _ in range(2):
            await log.keys.rotate(lambda group, key: None)
            await append(log, "a", list(BODIES))
        await log.checkpoint(min_size=log.head)
    assert export(data, tmp_path / "out", "5..").exit_code == OK
    assert verify(tmp_path / "out", data).exit_code == SIGNED_ONLY
    place = changed_copy(tmp_path / "out", tmp_path / "changed", on_evidence(lambda evidence: evidence.pop("keys")))
    assert verify(place, data).exit_code == BROKEN
    own = CliRunner().invoke(cli, ["verify", str(tmp_path / "out"), "--data", str(data)])
    assert own.exit_code == SIGNED_ONLY, own.output


async def test_a_damaged_entry_is_named(tmp_path: Path) -> None:
    """Rather than left out."""
    data = tmp_path / "data"
    async with opened(data) as log:
        await append(log, "a", list(BODIES))
        await log.checkpoint(min_size=log.head)
    with sqlite3.connect(data / "log.sqlite3") as connection:
        connection.execute("DROP TRIGGER entry_update_guard")
        connection.execute("UPDATE entry SET sealed = NULL WHERE offset = 5")
    connection.close()
    result = export(data, tmp_path / "out")
    assert result.exit_code == FAILED
    assert "no removal on record" in result.output
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("module", "limit", "value", "told"),
    [
        ("overlayd.cli.exporting", "OPENED_MAX", 1, "more than 1 removals"),
        ("overlayd.model.export_check", "OPENED_MAX", 1, "more than 1 opened entries"),
        ("overlayd.model.export_file", "EVIDENCE_BYTES_MAX", 100, "more than 100 bytes"),
        ("overlayd.model.export_rows", "LINE_BYTES_MAX", 100, "a line is too long"),
    ],
)
def test_limits_are_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, limit: str, value: int, told: str
) -> None:
    """Each in the command that it holds for."""
    monkeypatch.setattr(f"{module}.{limit}", value)
    made = export(source, tmp_path / "out")
    checked = verify(tmp_path / "out", source) if made.exit_code == OK else made
    assert checked.exit_code in (FAILED, BROKEN)
    assert told in checked.output


def test_an_export_has_one_reader(source: Path, tmp_path: Path) -> None:
    """Whatever the process's mask is: it holds contents and salts."""
    assert export(source, tmp_path / "out").exit_code == OK
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o600}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700


async def test_what_goes_while_it_is_exported_is_on_record(tmp_path: Path) -> None:
    """A packet erased behind the place where the export stands; its removal came after the list of removals was read."""
    data = tmp_path / "data"
    async with opened(data) as log:
        (data / "vkey").write_text(log.vkey)
        await append(log, "a", list(BODIES))
        await log.checkpoint(log.head)
        stream = log.find_stream("a")
        assert stream is not None
        positions = await log.erasing.read_positions(stream, 1, 10)
        last = log.head
        with opened_log(data) as (connection, _):
            made = _Export(connection, tmp_path, (None, last), (), "ndjson", is_live=True)
            await log.erasing.take(stream, positions[2:4])
            await log.checkpoint(log.head)
            done = made.run(tmp_path)
    assert (done.rows, done.removed) == (len(BODIES) - 2, 2)
    assert done.checkpoint_size > last
    out = tmp_path / "out"
    out.mkdir()
    for name in ("evidence.json", "entries.bin", "rows.ndjson", "removed.ndjson"):
        (tmp_path / name).rename(out / name)
    assert verify(out, data).exit_code == SIGNED_ONLY
