"""Exports of logs with a past: restored, cut, with the node's own streams; of many rows; and as Parquet."""

import base64
import importlib.util
import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio
from click.testing import CliRunner
from export_rig import BODIES, append, changed_copy, export, make_log, opened, verify
from independent_export import check_export

from overlayd.chain.anchored_checkpoints import AnchoredCheckpoint
from overlayd.cli import cli, exporting
from overlayd.cli.exits import BROKEN, FAILED, OK, SIGNED_ONLY
from overlayd.model.definition import Definition
from overlayd.model.errors import VerificationFailed
from overlayd.model.export_file import ANCHORS_MAX, EVIDENCE_NAME, decode_evidence, encode_evidence
from overlayd.model.merkle import root_of
from overlayd.model.note import VerifierKey
from overlayd.model.proof import TrustedKeys, verify_proof
from overlayd.model.proof_file import ProofAnchor
from overlayd.net.proofs import prove_entry
from overlayd.storage.own import OwnPacket

MILLION = 1_000_000
EXPORT_GROWTH_MIB = 60
"""What a run over a million rows may hold above one that only starts: pages of rows, and what SQLite caches."""


async def make_restored(data: Path, is_nested: bool) -> None:
    """A log of which a copy was put back twice: `is_nested`, one of the epoch that the first time began; else the same one,
    so that of that epoch nothing is left."""
    async with opened(data) as log:
        await append(log, "a", list(BODIES))
        await log.checkpoint(log.head)
        (data / "vkey").write_text(log.vkey)
    for number in range(2):
        if number and is_nested:
            async with opened(data) as log:
                await append(log, "a", list(BODIES))
        shutil.copy(data / "log.sqlite3", data.parent / "kept.sqlite3")
        async with opened(data) as log:
            await append(log, "a", list(BODIES))
            await log.checkpoint(log.head)
        (data.parent / "kept.sqlite3").rename(data / "log.sqlite3")
    async with opened(data) as log:
        await append(log, "a", list(BODIES))
        await log.checkpoint(log.head)


@pytest.mark.parametrize("span", ["..", "1..5", "12..", "5..14"])
@pytest.mark.parametrize("is_nested", [True, False])
def test_a_restored_log_shows_where_its_epochs_began(tmp_path: Path, span: str, is_nested: bool) -> None:
    """Also for a range that ends before them; without those entries an older epoch is refused."""
    data = tmp_path / "data"
    trio.run(make_restored, data, is_nested)
    result = export(data, tmp_path / "out", span)
    assert result.exit_code == OK, result.output
    assert verify(tmp_path / "out", data).exit_code == SIGNED_ONLY
    check_export(tmp_path / "out", (data / "vkey").read_text())
    evidence = json.loads((tmp_path / "out" / "evidence.json").read_bytes())
    kinds = [base64.b64decode(item["entry"])[1] for item in evidence.get("opened", ())]
    assert kinds == [4] * (is_nested + (span != "12.."))
    if not is_nested and span == "..":
        place = changed_copy(tmp_path / "out", tmp_path / "changed", without_opened)
        assert verify(place, data).exit_code == BROKEN


@pytest.mark.parametrize("is_nested", [True, False])
def test_proofs_of_a_log_that_was_restored_twice(tmp_path: Path, is_nested: bool) -> None:
    """Every entry, of whichever epoch, has a proof that holds, and none without its restore entries."""
    data = tmp_path / "data"
    trio.run(make_restored, data, is_nested)
    trusted = TrustedKeys((VerifierKey.parse((data / "vkey").read_text().strip()),))

    async def prove_all() -> set[int]:
        epochs = set()
        async with opened(data) as log:
            checkpoint = await log.checkpoint(log.head)
            for offset in range(1, log.head + 1):
                entry = await log.read_entry(offset)
                epochs.add(entry.epoch)
                stream = log.find_stream_by_hash(entry.stream_hash)
                proof = await prove_entry(log, stream, entry, checkpoint)
                verify_proof(proof, trusted)
                if proof.restore:
                    with pytest.raises(VerificationFailed):
                        verify_proof(msgspec.structs.replace(proof, restore=proof.restore[1:]), trusted)
        return epochs

    assert len(trio.run(prove_all)) == 2 + is_nested


def without_opened(place: Path) -> None:
    """Every other member stays."""
    evidence = json.loads((place / "evidence.json").read_bytes())
    del evidence["opened"]
    (place / "evidence.json").write_bytes(msgspec.json.format(msgspec.json.encode(evidence), indent=1) + b"\n")


async def make_own(data: Path) -> None:
    """Packets of an outsider and of the node itself."""
    async with opened(data) as log:
        await append(log, "a", list(BODIES))
        await log.append_own([OwnPacket("overlayd.audit", Definition(), "test.done", b'{"who":"somebody"}')])
        await log.checkpoint(log.head)
        (data / "vkey").write_text(log.vkey)


def test_the_nodes_own_streams_are_named_and_not_shown(tmp_path: Path) -> None:
    """Unless somebody asks; and who asks for one stream gets no other one's name."""
    data = tmp_path / "data"
    trio.run(make_own, data)
    assert export(data, tmp_path / "out").exit_code == OK
    result = verify(tmp_path / "out", data, "--json", "--expect-all-streams")
    assert result.exit_code == SIGNED_ONLY, result.output
    verdict = json.loads(result.output)["verdict"]
    assert (verdict["rows"], verdict["hidden_streams"]) == (len(BODIES), ["overlayd.audit"])
    assert b"somebody" not in (tmp_path / "out" / "rows.ndjson").read_bytes()
    assert export(data, tmp_path / "audit", "..", "--stream", "overlayd.>").exit_code == OK
    assert json.loads(verify(tmp_path / "audit", data, "--json").output)["verdict"]["rows"] == 1
    assert b'"a"' not in (tmp_path / "audit" / "evidence.json").read_bytes()
    assert verify(tmp_path / "audit", data, "--expect-all-streams").exit_code == BROKEN


def test_a_stream_without_packets_is_shown_to_have_none(tmp_path: Path) -> None:
    """Asked for by name, it is there with its count; one that doesn't exist isn't."""
    data = tmp_path / "data"
    trio.run(make_own, data)
    assert export(data, tmp_path / "out", "1..2", "--stream", "a", "--stream", "b").exit_code == OK
    result = verify(tmp_path / "out", data, "--json", "--expect-stream", "a")
    assert json.loads(result.output)["verdict"]["streams"][0]["packets"] == 0
    assert verify(tmp_path / "out", data, "--expect-stream", "b").exit_code == BROKEN


def test_what_was_cut_cant_be_exported(tmp_path: Path) -> None:
    """What is left can, with hashes of level 1 and above in place of what is gone."""
    data = tmp_path / "data"
    trio.run(make_long, data)
    with sqlite3.connect(data / "log.sqlite3", isolation_level=None) as connection:
        connection.execute("UPDATE state SET value = 512 WHERE key = 'minimum_index'")
        ((trigger,),) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'entry_delete_guard'").fetchall()
        connection.execute("DROP TRIGGER entry_delete_guard")
        connection.execute("DELETE FROM entry WHERE offset <= 512")
        connection.execute(trigger)
        connection.execute("DELETE FROM tile WHERE id IN (?, ?)", (7 << 55, 7 << 55 | 1))
        roots = tiles_of(connection)
        connection.execute("INSERT INTO tile (id, hashes) VALUES (?, ?)", (6 << 55, roots))
    connection.close()
    assert "cut" in export(data, tmp_path / "early", "500..600").output
    assert export(data, tmp_path / "out").exit_code == OK
    verdict = json.loads(verify(tmp_path / "out", data, "--json").output)["verdict"]
    assert (verdict["first"], verdict["rows"]) == (513, verdict["last"] - 512)
    check_export(tmp_path / "out", (data / "vkey").read_text())


def tiles_of(connection: sqlite3.Connection) -> bytes:
    """The partial tile of level 1 that a cut leaves, kept from before it by the test itself."""
    found: bytes = connection.execute("SELECT value FROM state WHERE key = 'test_roots'").fetchone()[0]
    return found


async def make_long(data: Path) -> None:
    """Some tiles of entries; the roots of the first two are noted."""
    async with opened(data) as log:
        for _ in range(10):
            await append(log, "a", [b"%d" % number for number in range(100)])
        await log.checkpoint(log.head)
        (data / "vkey").write_text(log.vkey)
        leaves = [(await log.read_entry(offset)).leaf for offset in range(1, 769)]
    roots = b"".join(root_of(leaves[at : at + 256]) for at in range(0, 768, 256))
    connection = sqlite3.connect(data / "log.sqlite3", isolation_level=None)
    connection.execute("INSERT INTO state (key, value) VALUES ('test_roots', ?)", (roots,))
    connection.close()


async def make_large(data: Path, count: int) -> None:
    """So many packets of eight streams."""
    async with opened(data) as log:
        for at in range(0, count, 5000):
            await append(log, f"s.{at // 5000 % 8}", [b'{"n":%d}' % (at + number) for number in range(5000)])
        await log.checkpoint(log.head)
        (data / "vkey").write_text(log.vkey)


def change_line(what: str, at: int) -> Callable[[Path], None]:
    """One of many rows dropped, doubled, moved or altered, without holding them all."""

    def apply(place: Path) -> None:
        path = place / "rows.ndjson"
        with path.open("rb") as source, (place / "new").open("wb") as target:
            for number, line in enumerate(source):
                if number == at - 1 and what == "move":
                    moved = line
                elif number == at and what == "move":
                    target.write(line + moved)
                elif number == at and what == "alter":
                    target.write(line.replace(b'{\\"n\\":', b'{\\"m\\":'))
                elif number != at or what != "drop":
                    target.write(line * (2 if number == at and what == "double" else 1))
        (place / "new").rename(path)

    return apply


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A log and its export: 30,000 packets, many tiles of two levels' worth."""
    place = tmp_path_factory.mktemp("large")
    trio.run(make_large, place / "data", 30_000)
    assert export(place / "data", place / "out").exit_code == OK
    return place / "data", place / "out"


@pytest.mark.parametrize("what", ["drop", "double", "move", "alter"])
def test_one_row_of_many(large: tuple[Path, Path], tmp_path: Path, what: str) -> None:
    """Anywhere among them."""
    data, out = large
    assert verify(out, data).exit_code == SIGNED_ONLY
    at = random.Random().randrange(1, 30_000)
    assert verify(changed_copy(out, tmp_path / "changed", change_line(what, at)), data).exit_code == BROKEN


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_row_of_a_million_in_constant_memory(tmp_path: Path) -> None:
    """Each change is found; neither command holds more than for few rows."""
    data, out = tmp_path / "data", tmp_path / "out"
    trio.run(make_large, data, MILLION)
    idle = peak_mib("import overlayd.cli.exporting, overlayd.cli.verify, overlayd.cli.log_check")
    made = peak_mib(f"invoke(['export', {str(out)!r}, '--range', '..', '--data', {str(data)!r}])")
    held = peak_mib(f"invoke(['verify', {str(out)!r}, '--data', {str(data)!r}])")
    assert max(made, held) < idle + EXPORT_GROWTH_MIB, (idle, made, held)
    for what in ("drop", "double", "move", "alter"):
        place = changed_copy(out, tmp_path / "changed", change_line(what, random.Random().randrange(1, MILLION)))
        assert verify(place, data).exit_code == BROKEN
        shutil.rmtree(place)


def peak_mib(code: str) -> int:
    """Of a process that does it."""
    script = (
        "import resource\nfrom overlayd.cli import cli\n"
        "def invoke(words):\n    try: cli(words)\n    except SystemExit: pass\n"
        f"{code}\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="pyarrow isn't installed (the extra `parquet`)"
)


@needs_pyarrow
def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    """Read by pyarrow itself they equal those of NDJSON; a row dropped, exchanged or altered is found."""
    import pyarrow.parquet as pq  # type: ignore[import-not-found, unused-ignore]

    data, out = tmp_path / "data", tmp_path / "out"
    trio.run(make_log, data)
    assert export(data, out, "..", "--format", "parquet").exit_code == OK
    assert export(data, tmp_path / "lines").exit_code == OK
    assert verify(out, data).exit_code == SIGNED_ONLY
    table = pq.read_table(out / "rows.parquet")
    lines = (tmp_path / "lines" / "rows.ndjson").read_bytes().splitlines()
    assert table.to_pylist() == [json.loads(line) for line in lines]
    rows = table.to_pylist()
    altered = [*rows[:50], {**rows[50], "body": "2"}, *rows[51:]]
    for number, changed in enumerate((rows[1:], [rows[1], rows[0], *rows[2:]], [*rows, rows[-1]], altered)):

        def write(place: Path, changed: list[dict[str, object]] = changed) -> None:
            pq.write_table(table.from_pylist(changed, schema=table.schema), place / "rows.parquet")

        assert verify(changed_copy(out, tmp_path / str(number), write), data).exit_code == BROKEN
    (out / "rows.parquet").write_bytes(b"PAR1")
    assert verify(out, data).exit_code == BROKEN


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path) -> None:
    """In one line, and leaves nothing behind."""
    data = tmp_path / "data"
    trio.run(make_own, data)
    result = export(data, tmp_path / "out", "..", "--format", "parquet")
    assert result.exit_code == 78
    assert "pip install 'overlayd[parquet]'" in result.output
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_entries_that_nobody_signed_arent_exported(tmp_path: Path) -> None:
    """A log that stopped before its last checkpoint: up to there by itself, beyond it not."""
    data = tmp_path / "data"
    trio.run(make_own, data)
    with sqlite3.connect(data / "log.sqlite3", isolation_level=None) as connection:
        connection.execute("DELETE FROM checkpoint")
    connection.close()
    result = export(data, tmp_path / "out")
    assert result.exit_code == FAILED
    assert "no checkpoint yet" in result.output


async def make_anchored(data: Path) -> list[AnchoredCheckpoint]:
    """A log with six checkpoints, each said to be in a block."""
    anchor = ProofAnchor(network="regtest", output_index=0, tx="", bump="", height=1, header="")
    notes = []
    async with opened(data) as log:
        (data / "vkey").write_text(log.vkey)
        for _ in range(6):
            await append(log, "a", list(BODIES))
            checkpoint = await log.checkpoint(log.head)
            notes.append(AnchoredCheckpoint(checkpoint.size, checkpoint.note, anchor))
    return notes


def test_no_more_anchors_than_a_verifier_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more the newest go in, the one that covers all of the range among them; a file with more is refused."""
    data, out = tmp_path / "data", tmp_path / "out"
    anchored = trio.run(make_anchored, data)
    monkeypatch.setattr(exporting, "read_anchored", lambda connection, low, high: anchored)
    monkeypatch.setattr(exporting, "ANCHORS_MAX", 3)
    assert export(data, out, f"..{anchored[4].size}").exit_code == OK
    evidence = decode_evidence((out / EVIDENCE_NAME).read_bytes())
    assert [one.checkpoint for one in evidence.anchors] == [one.note for one in anchored[2:5]]
    more = msgspec.structs.replace(evidence, anchors=evidence.anchors[:1] * (ANCHORS_MAX + 1))
    (out / EVIDENCE_NAME).write_bytes(encode_evidence(more))
    refused = verify(out, data)
    assert refused.exit_code == BROKEN
    assert f"more than {ANCHORS_MAX} anchors" in refused.output


def test_expectations_are_of_exports_alone(tmp_path: Path) -> None:
    """A proof file has no range."""
    (tmp_path / "proof.json").write_text("{}")
    assert CliRunner().invoke(cli, ["verify", str(tmp_path / "proof.json"), "--expect-range", "1..2"]).exit_code == 2
