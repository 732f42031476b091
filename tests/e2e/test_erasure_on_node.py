"""Erasure on a real node: nothing of what was erased is found in any file, and the attack on small records fails."""

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from blake3 import blake3
from node_process import Node

from overlayd.client import SyncClient, privacy_calls
from overlayd.model.entry import Z32, seal_in
from overlayd.model.errors import PacketGone, UnderHold
from overlayd.model.wire_privacy import EraseIn, ErasureBody

BADGES = [json.dumps({"badge": f"{number:04}", "door": "north"}).encode() for number in range(2000)]
"""Every record that there can be: what an attacker tries."""
ERASED = (7, 8, 9, 40, 41)
MARK = "planted-7f3a"
DEFINITION: dict[str, Any] = {"subject": "/data/who", "key": "data.who"}


class Storehouse:
    """A node with people in its log, badges among them; `files` are all bytes that it keeps."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.node = Node(self.data).wait_ready()
        socket = self.data / "overlayd.sock"
        self.client = SyncClient(f"unix:{socket}")
        self.http = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://localhost")

    def fill(self) -> None:
        """Badges that follow each other through a stream, and packets about people with texts of their own."""
        self.client.define("badges", {})
        self.client.define("people", DEFINITION)
        for number in range(60):
            self.http.post("/v1/streams/badges/data", content=BADGES[number * 31 % 2000])
            who = f"{MARK}-alice" if number % 3 == 0 else f"bob-{number}"
            packet = {
                "id": f"{MARK}-id-{number}" if number % 3 == 0 else f"id-{number}",
                "data": {"who": who, "note": f"{MARK}-note-{number}" * 40 if number % 3 == 0 else "other" * 40},
                "metadata": {"ip": f"{MARK}-ip" if number % 3 == 0 else "::1"},
            }  # fmt: skip
            answer = self.http.post("/v1/streams/people/packets", json=packet)
            assert answer.status_code == 201, answer.text

    def post(self, path: str, body: object) -> Any:
        """A request that the client has no word for."""
        answer = self.http.post(path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def erase(self, **what: Any) -> ErasureBody:
        return self.client.send(privacy_calls.erase(EraseIn(**what)))

    def audited(self) -> list[dict[str, Any]]:
        """The records of the audit stream."""
        answer = self.http.get("/v1/streams/overlayd.audit/packets", params={"limit": 1000})
        return [packet["data_payload"] for packet in answer.json()["packets"]]

    def files(self) -> dict[str, bytes]:
        """Every file below the directory, by its name, but for the room that is kept free: nobody writes into it."""
        names = [one for one in self.data.rglob("*") if one.is_file() and one.name != "reserve"]
        return {str(one.relative_to(self.data)): one.read_bytes() for one in names}

    def fresh_backup(self) -> dict[str, bytes]:
        """The files of a backup that is made now."""
        command = [sys.executable, "-m", "overlayd", "backup", "--data", str(self.data), "--json"]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        place = Path(json.loads(ran.stdout)["path"])
        return {f"backup {one.name}": one.read_bytes() for one in place.rglob("*") if one.is_file()}

    def rows(self) -> dict[int, tuple[bytes, bytes | None]]:
        """E and the sealed part of each badge, by sequence; read beside the node."""
        with sqlite3.connect(f"file:{self.data}/log.sqlite3?mode=ro", uri=True) as connection:
            (hash,) = connection.execute("SELECT stream_hash FROM stream WHERE name = 'badges'").fetchone()
            rows = connection.execute(
                "SELECT e, sealed FROM entry WHERE substr(e, 27, 32) = ? AND substr(e, 2, 1) = x'01'", (hash,)
            )
            return {int.from_bytes(raw[58:66], "big"): (raw, sealed) for raw, sealed in rows}  # fmt: skip

    def stop(self) -> None:
        self.client.close()
        self.http.close()
        assert self.node.stop() == 0


@pytest.fixture
def storehouse(tmp_path: Path) -> Iterator[Storehouse]:
    """A filled one."""
    house = Storehouse(tmp_path)
    try:
        house.fill()
        yield house
    finally:
        house.client.close()
        house.http.close()
        house.node.stop()


def meta_of(sealed: bytes) -> bytes:
    """What an attacker knows of a badge beside its number: all of them have the same meta."""
    length = int.from_bytes(sealed[54:58], "big")
    return sealed[58 : 58 + length]


def guess(files: dict[str, bytes]) -> set[bytes]:
    """The quick attack: the records that unsalted hashes anywhere on the disk give away."""
    hashes = {digest(body): body for body in BADGES for digest in (lambda one: blake3(one).digest(), _sha256)}
    found = set()
    for content in files.values():
        for at in range(len(content) - 31):
            body = hashes.get(content[at : at + 32])
            if body is not None:
                found.add(body)
    return found


def _sha256(octets: bytes) -> bytes:
    return hashlib.sha256(octets).digest()


def try_salts(raw: bytes, body: bytes, meta: bytes, files: dict[str, bytes]) -> bool:
    """Whether some 16 bytes of some file open the seal with the record that it really was."""
    seal, sha256 = seal_in(raw), hashlib.sha256
    rest = Z32 + blake3(body).digest() + sha256(body).digest() + sha256(meta).digest()
    for content in files.values():
        for at in range(len(content) - 15):
            if sha256(b"overlayd/seal/1\n" + content[at : at + 16] + rest).digest() == seal:
                return True
    return False


def found_in(files: dict[str, bytes], *texts: bytes) -> list[tuple[str, bytes]]:
    """Which of the texts are where."""
    return [(name, text) for name, content in files.items() for text in texts if text in content]


def test_nothing_of_erased_packets_is_left(storehouse: Storehouse) -> None:
    """Bodies, ids, keys, metadata, their hashes and salts are in no file: database, its free pages, write-ahead log, a copy."""
    house = storehouse
    before, mark = house.files(), MARK.encode()
    assert found_in(before, mark)
    reports = [house.erase(stream="badges", sequence=number) for number in ERASED[3:]]
    reports.append(house.erase(stream="badges", from_=ERASED[0], to=ERASED[2]))
    reports.append(house.erase(subject=f"{MARK}-alice"))
    assert [report.state for report in reports] == ["done"] * 4
    assert [report.packets for report in reports] == [1, 1, 3, 20]
    after = house.files()
    assert found_in(after, mark) == []
    erased = [BADGES[(number - 1) * 31 % 2000] for number in ERASED]
    hashes = [digest for body in erased for digest in (blake3(body).digest(), hashlib.sha256(body).digest())]
    gone = [*erased, *hashes, *(digest.hex().encode() for digest in hashes)]
    assert len({text for _, text in found_in(before, *erased)}) == len(erased)
    assert found_in(after, *gone) == []
    assert (house.data / "log.sqlite3-wal").stat().st_size < 200_000
    house.stop()
    copy = house.data.parent / "copy.sqlite3"
    shutil.copy(house.data / "log.sqlite3", copy)
    assert not found_in({"copy": copy.read_bytes()}, mark, *gone)
    assert found_in(house.files(), mark, *gone) == []


def test_the_attack_on_small_records_fails(storehouse: Storehouse) -> None:
    """With the disk before erasure a badge is found by trying; with the disk and a new backup the seal opens with nothing."""
    house = storehouse
    raw, sealed = house.rows()[ERASED[0]]
    assert sealed is not None
    meta, body = meta_of(sealed), BADGES[(ERASED[0] - 1) * 31 % 2000]
    before = {name: content for name, content in house.files().items() if name.startswith("log.sqlite3")}
    assert body in guess(before)
    assert try_salts(raw, body, meta, before)
    house.erase(stream="badges", sequence=ERASED[0])
    after = house.files() | house.fresh_backup()
    assert house.rows()[ERASED[0]][1] is None
    assert body not in guess(after)
    assert not try_salts(raw, body, meta, after)


def test_what_stays_still_verifies(storehouse: Storehouse, tmp_path: Path) -> None:
    """The proof of an erased packet that was handed out before, the log as a whole, and the packets beside it."""
    house = storehouse
    proof = tmp_path / "proof.json"
    proof.write_bytes(house.client.proof("badges", ERASED[0]))
    house.erase(stream="badges", sequence=ERASED[0])
    with pytest.raises(PacketGone):
        house.client.read_packet("badges", ERASED[0])
    assert json.loads(house.client.proof("badges", ERASED[0])).get("sealed") is None
    house.stop()
    for arguments in (["--data", str(house.data)], [str(proof), "--data", str(house.data)]):
        ran = subprocess.run(
            [sys.executable, "-m", "overlayd", "verify", *arguments], capture_output=True, text=True, check=False
        )
        assert ran.returncode in (0, 21), ran.stdout + ran.stderr
        assert "content is gone and no removal" not in ran.stdout


def test_subscribers_are_named_and_told(storehouse: Storehouse) -> None:
    """Who took the packet is in the report and gets a notice; who didn't isn't, and gets none."""
    house = storehouse
    made = house.post(
        "/v1/subscriptions", {"name": "reader", "kind": "pull", "streams": ["badges"], "from": "beginning"}
    )
    other = house.post(
        "/v1/subscriptions", {"name": "elsewhere", "kind": "pull", "streams": ["people"], "from": "beginning"}
    )
    given = house.post(f"/v1/subscriptions/{made['id']}/fetch", {"max": 50})
    house.post(f"/v1/subscriptions/{made['id']}/ack", {"leases": [one["lease"] for one in given["messages"]]})
    report = house.erase(stream="badges", sequence=ERASED[0])
    assert [one.name for one in report.recipients] == ["reader"]
    more = house.post(f"/v1/subscriptions/{made['id']}/fetch", {"max": 100, "wait": "2s"})
    notices = [one for one in more["messages"] if one["type"] == "erased"]
    assert [(one["stream_id"], one["packet_sequence"]) for one in notices] == [("badges", ERASED[0])]
    rest = house.post(f"/v1/subscriptions/{other['id']}/fetch", {"max": 100})
    assert all(one["type"] == "packet" for one in rest["messages"])


def test_acts_are_audited_without_payloads(storehouse: Storehouse) -> None:
    """Each act has its record, durable before its answer, and no record names a person."""
    house, client = storehouse, storehouse.client
    who = f"{MARK}-alice"
    client.send(privacy_calls.put_consent(who, "billing", granted=True))
    client.send(privacy_calls.show_subject(who))
    client.send(privacy_calls.export_subject(who, limit=5))
    house.erase(subject=who)
    data = house.audited()
    actions = [one["action"] for one in data]
    for action in ("consent.grant", "subject.read", "subject.export", "erase.begin", "erase.done"):
        assert action in actions
    assert MARK not in json.dumps(data)
    begun = next(one for one in data if one["action"] == "erase.begin")
    assert begun["detail"]["packets"] == 20
    assert begun["detail"]["about"] == next(one for one in data if one["action"] == "subject.read")["subject"]
    assert MARK not in "".join(house.node.output)


def test_commands_find_export_and_erase(storehouse: Storehouse) -> None:
    """`overlayd subject` and `overlayd erase` on a running node."""
    house, who = storehouse, f"{MARK}-alice"

    def run(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "overlayd", *arguments, "--data", str(house.data)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == status, ran.stdout + ran.stderr
        return ran.stdout

    assert "people" in run("subject", "show", who)
    lines = run("subject", "export", who).splitlines()
    assert [json.loads(line)["packet_sequence"] for line in lines] == list(range(1, 61, 3))
    run("subject", "consent", who, "--grant", "billing", "--reference", "form 7")
    assert "granted" in run("subject", "consent", who)
    planned = json.loads(run("erase", "--subject", who, "--dry-run", "--json"))
    assert (planned["state"], planned["packets"]) == ("planned", 20)
    assert len(run("subject", "export", who).splitlines()) == 20
    done = json.loads(run("erase", "--subject", who, "--yes", "--json"))
    assert (done["state"], done["packets"]) == ("done", 20)
    assert run("subject", "export", who) == ""
    assert json.loads(run("erase", "people", "2-5", "--yes", "--json"))["packets"] == 3
    run("erase", "people", "x", status=2)
    run("erase", "overlayd.audit", "1", "--yes", status=1)
    run("rebuild", "subjects")
    run("rebuild", "links")
    assert run("subject", "export", "bob-10") != ""


def test_a_held_packet_is_not_erased(storehouse: Storehouse) -> None:
    """What is held, or kept for a least time, is stronger: 409, an audit record, and the packet stays; until the hold is
    lifted. A dry run is audited as well."""
    house, client = storehouse, storehouse.client
    hold = house.post("/v1/streams/people/holds", {"from": 4, "to": 4, "reason": "case"})
    with pytest.raises(UnderHold):
        house.erase(subject=f"{MARK}-alice")
    assert house.http.delete(f"/v1/streams/people/holds/{hold['id']}").status_code < 300
    assert house.erase(subject=f"{MARK}-alice", dry_run=True).state == "planned"
    report = house.erase(subject=f"{MARK}-alice")
    assert (report.state, report.packets, report.held) == ("done", 20, 0)
    actions = [one["action"] for one in house.audited()]
    assert [one for one in actions if one.startswith("erase")] == [
        "erase.refused",
        "erase.plan",
        "erase.begin",
        "erase.done",
    ]
    assert found_in(house.files(), MARK.encode()) == []

    client.define("badges", {"retention": {"min_age": "1h"}})
    with pytest.raises(UnderHold):
        house.erase(stream="badges", from_=1, to=10)
    assert client.read_packet("badges", 1)
    data = house.audited()
    assert [one["result"] for one in data if one["action"] == "erase.refused"] == ["refused"] * 2
