"""`overlayd verify` on real logs and proofs, whole and tampered with."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from overlayd.cli import cli, log_check
from overlayd.cli.check_pace import CheckPace, Progress
from overlayd.cli.exits import BROKEN, FAILED, OK, SIGNED_ONLY, USAGE
from overlayd.cli.log_report import LogReport
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.definition import Definition
from overlayd.model.draft import AppendRequest, Draft
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.proof import TrustedKeys, build_proof, encode_proof
from overlayd.model.tlog_proof import encode_tlog_proof, tlog_proof_of
from overlayd.model.units import Size
from overlayd.storage import Log, StorageSettings, open_log
from overlayd.storage.tree import tile_id

SETTINGS = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0))
STREAM = StreamName("weather-001")


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Log]:
    """A real log."""
    async with open_log(
        directory, settings=SETTINGS, limits=Limits(), defaults=Definition(), clock=SystemClock(), entropy=Entropy(),
        metrics=Metrics(),
    ) as log:  # fmt: skip
        yield log


async def append(log: Log, count: int, stream: str = STREAM) -> None:
    """So many packets in one request."""
    found = log.find_stream(stream)
    drafts = [Draft(n, b'{"n":%d}' % n, b'{"n":%d}' % n) for n in range(count)]
    version = 0 if found is None else found.definition_version
    await log.append(AppendRequest(StreamName(stream), drafts, may_create=True, definition_version=version))


async def proof_of(log: Log, sequence: int) -> bytes:
    """A proof file of one packet."""
    stream = log.find_stream(STREAM)
    assert stream is not None
    offset = await log.find_offset(stream, sequence)
    assert offset is not None
    entry = await log.read_entry(offset)
    checkpoint = await log.checkpoint(min_size=offset)
    path = await log.inclusion_path(offset - 1, checkpoint.size)
    return encode_proof(build_proof(entry, stream=STREAM, ssalt=stream.ssalt, path=path, checkpoint=checkpoint.note))


def verify(*arguments: str | Path, stdin: bytes = b"") -> Result:
    """Runs the command."""
    return CliRunner().invoke(cli, ["verify", *map(str, arguments)], input=stdin)


@pytest.fixture
async def log_directory(tmp_path: Path) -> Path:
    """A closed log: two streams, over one full tile, some packets taken away, several checkpoints."""
    directory = tmp_path / "data"
    async with opened(directory) as log:
        await append(log, 280)
        await log.checkpoint(min_size=log.head)
        await append(log, 20, "other")
        stream = log.find_stream(STREAM)
        assert stream is not None
        await log.reduce(stream, 1, 30, "retention")
        await log.checkpoint(min_size=log.head)
        await append(log, 5)
        (directory / "proof.json").write_bytes(await proof_of(log, 200))
        (directory / "vkey").write_text(log.vkey)
    return directory


async def test_a_whole_log_at_rest_is_intact(log_directory: Path) -> None:
    """Every entry, tile, checkpoint and removal fits."""
    result = verify("--data", log_directory)
    assert result.exit_code == OK, result.output
    assert "The log is intact." in result.output
    report = msgspec.json.decode(verify("--data", log_directory, "--json").output)
    assert report["fault_count"] == 0
    assert report["packets"] == 305
    assert report["streams"] == 2
    assert report["reduced"] > 0
    assert report["checkpoints"] >= 1
    assert report["signed_size"] == report["entries"]
    assert report["read_as"] == "at rest"


async def test_checking_changes_no_byte(log_directory: Path) -> None:
    """A log can be looked at as often as one likes."""
    before = contents(log_directory)
    verify("--data", log_directory)
    assert contents(log_directory) == before


def contents(directory: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}


async def test_a_log_in_use_is_checked_beside_its_node(tmp_path: Path) -> None:
    """What is appended meanwhile isn't looked at, and nothing stands in the writer's way."""
    async with opened(tmp_path) as log:
        await append(log, 10)
        result = verify("--data", tmp_path)
        assert result.exit_code == OK, result.output
        assert "beside the running node" in result.output
        await append(log, 10)


async def test_what_an_unclean_stop_left_is_replayed_in_a_copy(tmp_path: Path) -> None:
    """A write-ahead log beside the database counts, and stays as it is."""
    async with opened(tmp_path / "live") as log:
        await append(log, 10)
        await log.checkpoint(min_size=log.head)
        crashed = tmp_path / "crashed"
        (crashed / "keys").mkdir(parents=True)
        for name in ("log.sqlite3", "log.sqlite3-wal", "high-water", "keys/log.ed25519"):
            (crashed / name).write_bytes((tmp_path / "live" / name).read_bytes())
    wal = (crashed / "log.sqlite3-wal").read_bytes()
    result = verify("--data", crashed)
    assert result.exit_code == OK, result.output
    assert "a private copy" in result.output
    assert (crashed / "log.sqlite3-wal").read_bytes() == wal


def flip(column: str, offset: int) -> str:
    """A statement that changes a bit in the middle of a column."""
    middle = f"length({column}) / 2"
    byte = f"CASE WHEN substr({column}, {middle} + 1, 1) = x'00' THEN x'01' ELSE x'00' END"
    changed = f"CAST(substr({column}, 1, {middle}) || {byte} || substr({column}, {middle} + 2) AS BLOB)"
    return f"UPDATE entry SET {column} = {changed} WHERE offset = {offset}"


TAMPERINGS: dict[str, tuple[str, str]] = {
    "a body": (flip("sealed", 100), "entry 100: missing, or not what was hashed"),
    "an entry": (flip("e", 100), "entry 100: missing, or not what was hashed"),
    "a leaf": (flip("leaf", 100), "entry 100: missing, or not what was hashed"),
    "a row taken away": ("DELETE FROM entry WHERE offset = 100", "entry 100: missing"),
    "the end cut off": ("DELETE FROM entry WHERE offset > 300", "high-water"),
    "content taken away": ("UPDATE entry SET sealed = NULL WHERE offset = 100", "no removal says so"),
    "a tile": ("UPDATE tile SET hashes = zeroblob(8192)", "tile 0/0: not what"),
    "a tile taken away": ("DELETE FROM tile", "tile 0/0: missing"),
    "a checkpoint's root": ("UPDATE checkpoint SET root = zeroblob(32)", "says something else than its note"),
    "a checkpoint's note": (
        "UPDATE checkpoint SET note = replace(note, char(10) || char(10), char(10))",
        "the checkpoint over",
    ),
    "a removal forgotten": ("DELETE FROM removal", "no removal says so"),
}


@pytest.mark.parametrize("what", TAMPERINGS)
async def test_tampering_is_found(log_directory: Path, what: str) -> None:
    """Whoever changes the file past the triggers is noticed."""
    statement, fault = TAMPERINGS[what]
    connection = sqlite3.connect(log_directory / "log.sqlite3", isolation_level=None)
    for name in ("entry_update_guard", "entry_delete_guard"):
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(statement)
    connection.execute("PRAGMA journal_mode = DELETE").fetchall()
    connection.close()
    result = verify("--data", log_directory)
    assert result.exit_code == BROKEN, result.output
    assert fault in result.output


async def test_a_log_signed_by_another_key_is_broken(log_directory: Path, tmp_path: Path) -> None:
    """The directory's own key isn't asked when one is given."""
    async with opened(tmp_path / "another") as another:
        vkey = another.vkey
    result = verify("--data", log_directory, "--log-key", vkey)
    assert result.exit_code == BROKEN
    assert "the checkpoint over" in result.output


async def test_a_proof_file_holds(log_directory: Path) -> None:
    """Signed by the log alone is an exit code of its own; what isn't proven is listed."""
    result = verify(log_directory / "proof.json", "--log-key", (log_directory / "vkey").read_text())
    assert result.exit_code == SIGNED_ONLY, result.output
    assert f"{STREAM} 200" in result.output
    assert "Not proven:" in result.output
    assert verify(log_directory / "proof.json", "--data", log_directory, "--accept", "signed").exit_code == OK
    assert (
        verify(log_directory / "proof.json", "--data", log_directory, "--accept", "witnessed").exit_code == SIGNED_ONLY
    )


async def test_a_proof_needs_a_key(log_directory: Path) -> None:
    """Without anybody to trust there is nothing to check; a key that is none is a usage error too."""
    assert verify(log_directory / "proof.json").exit_code == USAGE
    assert verify(log_directory / "proof.json", "--log-key", "nonsense").exit_code == USAGE
    assert verify(log_directory / "proof.json", "--data", log_directory / "nowhere").exit_code == FAILED


async def test_a_missing_witness_breaks_a_demand_for_one(log_directory: Path) -> None:
    """--witnesses is a condition, not a wish."""
    result = verify(log_directory / "proof.json", "--data", log_directory, "--witnesses", "1")
    assert result.exit_code == BROKEN


async def test_the_c2sp_form_is_taken_too(log_directory: Path) -> None:
    """It proves the place in the log and opens nothing."""
    from overlayd.model.proof import decode_proof

    text = encode_tlog_proof(tlog_proof_of(decode_proof((log_directory / "proof.json").read_bytes())))
    result = verify("-", "--data", log_directory, stdin=text.encode())
    assert result.exit_code == SIGNED_ONLY, result.output
    assert "nothing opened" in result.output


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "sequence": lambda proof: proof | {"sequence": 199},
    "stream": lambda proof: proof | {"stream": "other"},
    "path": lambda proof: proof | {"inclusion_path": proof["inclusion_path"][::-1]},
    "checkpoint": lambda proof: proof | {"checkpoint": proof["checkpoint"].replace("\n3", "\n4", 1)},
    "an unknown member": lambda proof: proof | {"extra": 1},
    "no object": lambda proof: [proof],
}


@pytest.mark.parametrize("what", CHANGES)
async def test_a_changed_proof_is_broken(log_directory: Path, what: str) -> None:
    """With the reason on standard error, as JSON if asked."""
    proof = msgspec.json.decode((log_directory / "proof.json").read_bytes())
    (log_directory / "changed.json").write_bytes(msgspec.json.encode(CHANGES[what](proof)))
    result = verify(log_directory / "changed.json", "--data", log_directory, "--json")
    assert result.exit_code == BROKEN
    assert msgspec.json.decode(result.stdout)["holds"] is False


def test_a_directory_without_a_log_is_told(tmp_path: Path) -> None:
    """Nothing is created by looking."""
    result = verify("--data", tmp_path / "nothing")
    assert result.exit_code == FAILED
    assert not (tmp_path / "nothing").exists()


async def test_check_of_a_log_can_be_cut_off_and_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--resume`: what was checked isn't checked again, the result is the same, and a fault of before isn't forgotten."""
    monkeypatch.setattr(log_check, "PAGE_ROWS", 100)
    async with opened(tmp_path) as log:
        for _ in range(5):
            await append(log, 200)
    with sqlite3.connect(tmp_path / "log.sqlite3") as connection:
        connection.execute("UPDATE tile SET hashes = zeroblob(8192) WHERE id = ?", (tile_id(0, 0),))
    connection.close()
    whole, progress = log_check.check_log(tmp_path, TrustedKeys(())), tmp_path / "progress"
    pauses: list[float] = []

    def interrupt(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log_check.check_log(tmp_path, TrustedKeys(()), CheckPace(1000, progress, sleep=interrupt))
    assert progress.exists()
    again: list[float] = []
    report = log_check.check_log(tmp_path, TrustedKeys(()), CheckPace(1000, progress, sleep=again.append))
    assert report == whole
    assert whole.fault_count == 1
    assert len(pauses) + len(again) == -(-whole.entries // 100)
    assert pauses[0] == 0.1
    assert not progress.exists()


async def test_progress_of_another_log_is_not_taken_up(tmp_path: Path) -> None:
    """Nor that of a file that isn't one."""
    progress = tmp_path / "progress"
    for name, content in (("one", b"no"), ("two", None)):
        async with opened(tmp_path / name) as log:
            await append(log, 3)
        if content is not None:
            progress.write_bytes(content)
        result = verify("--data", tmp_path / name, "--resume", progress, "--rate", "100000")
        assert result.exit_code == OK, result.output
        pace = CheckPace(0, progress)
        pace._save(Progress(b"k" * 32, 3, None, [], 0, 0, LogReport("", "")))
        assert pace.load(b"o" * 32) is None
