"""Writes tests/data/log-vectors.json with the product's own code: `python tests/model/make_vectors.py`.

The file is checked two ways: this script must write it again byte for byte, and the second implementation beside
it must come to the same bytes from the same inputs. All salts and keys here are public and good for nothing else.
"""

import base64
import functools
import json
from pathlib import Path
from typing import Any

from overlayd.model.bodies import (
    Boot,
    ClockStep,
    Cut,
    DefinitionChange,
    Genesis,
    Heads,
    KeyChange,
    NodeBody,
    Restore,
    SeenHead,
    StatusBody,
    Witnessed,
    encode_certificate_body,
    encode_node_body,
    encode_removal_body,
    encode_status_body,
)
from overlayd.model.cursor import format_epoch, make_epoch
from overlayd.model.entry import (
    Z32,
    EntryHeader,
    Kind,
    StoredEntry,
    commitment_of,
    content_hash_of,
    entry_of_row,
    heads_root,
    leaf_hash,
    seal_of,
    stream_hash_of,
)
from overlayd.model.merkle import consistency_nodes, hash_spans, inclusion_nodes, root_of
from overlayd.model.meta import Meta, Origin, encode_meta, encode_origin
from overlayd.model.note import (
    ALGORITHM_COSIGNATURE,
    CheckpointText,
    Ed25519Signer,
    VerifierKey,
    add_signature,
    log_id_of,
    origin_of,
    sign_note,
)
from overlayd.model.proof import build_proof, encode_proof
from overlayd.model.tlog_proof import encode_tlog_proof, tlog_proof_of

VECTORS = Path(__file__).parent.parent / "data" / "log-vectors.json"

SEED = bytes(range(32))
WITNESS_SEED = bytes(range(100, 132))
EPOCH = make_epoch(1, b"\x01\x02\x03\x04\x05")
LATER_EPOCH = make_epoch(2, b"\xf1\xf2\xf3\xf4\xf5")
SALT = bytes(range(0x20, 0x30))
CSALT = bytes(range(0x30, 0x40))
SSALT = bytes(range(0x40, 0x50))
U64_MAX = (1 << 64) - 1
APPENDED_US = 1_705_314_600_000_000
TREE_SIZES = (0, 1, 2, 255, 256, 257, 70_000)

NODE_TYPES = (Genesis, Boot, ClockStep, DefinitionChange, KeyChange, Restore, Cut, Witnessed, Heads)

PUBLIC_KEY = Ed25519Signer("any", SEED).key.public_key
LOG_ID = log_id_of(PUBLIC_KEY)
SIGNER = Ed25519Signer(origin_of(LOG_ID, EPOCH), SEED)
LATER_SIGNER = Ed25519Signer(origin_of(LOG_ID, LATER_EPOCH), SEED)
WITNESS = VerifierKey("witness.example/w1", Ed25519Signer("any", WITNESS_SEED).key.public_key, ALGORITHM_COSIGNATURE)

JSON_MEMBERS = ("topics", "metadata", "signature", "definition_topics")


def packet(name: str, stream: str = "weather-001", sent: str = '{"t":21}', **given: Any) -> dict[str, Any]:
    """A packet's inputs with every step on the way to its leaf. Bytes are hex, JSON texts and bodies are text."""
    body = given.pop("body", sent)
    place = {"epoch": EPOCH, "offset": 2, "appended_us": APPENDED_US, "sequence": 1, "prev": Z32}
    place.update({part: given.pop(part) for part in list(given) if part in place})
    members = {"definition_version": 1, **given}
    meta = Meta(**{part: _meta_value(part, value) for part, value in members.items()})
    raw_meta, commitment = encode_meta(meta), Z32
    if meta.commitment_form:
        commitment = commitment_of(
            {1: SALT, 2: CSALT, 3: CSALT}[meta.commitment_form], stream, meta.id, meta.type, meta.time,
            meta.source, meta.key, meta.topics, meta.metadata, sent.encode(),
        )  # fmt: skip
    stored = body.encode()
    seal = seal_of(SALT, commitment, content_hash_of(stored), stored, raw_meta)
    header = EntryHeader(kind=Kind.PACKET, stream_hash=stream_hash_of(SSALT, stream), seal=seal, **place)
    return {
        "name": name,
        "stream": stream,
        "ssalt": SSALT.hex(),
        "salt": SALT.hex(),
        "sent": sent,
        "body": body,
        "meta_fields": {part: _shown(value) for part, value in members.items()},
        **{part: _shown(value) for part, value in place.items()},
        "commitment": commitment.hex(),
        "meta": raw_meta.hex(),
        "content_hash": content_hash_of(stored).hex(),
        "stream_hash": header.stream_hash.hex(),
        "seal": seal.hex(),
        "entry": header.encode().hex(),
        "leaf": leaf_hash(header.encode()).hex(),
    }


def other(name: str, kind: Kind, body: bytes, meta: bytes = b"", **place: Any) -> dict[str, Any]:
    """An entry that isn't a packet."""
    fields = {"epoch": EPOCH, "offset": 9, "appended_us": APPENDED_US, **place}
    header = EntryHeader(kind=kind, seal=seal_of(SALT, Z32, content_hash_of(body), body, meta), **fields)
    return {
        "name": name,
        "kind": int(kind),
        "salt": SALT.hex(),
        "meta": meta.hex(),
        "body": body.decode(),
        **{part: _shown(value) for part, value in fields.items()},
        "seal": header.seal.hex(),
        "entry": header.encode().hex(),
        "leaf": leaf_hash(header.encode()).hex(),
    }


def _meta_value(part: str, value: Any) -> Any:
    if isinstance(value, Origin):
        return encode_origin(value)
    return value.encode() if part in JSON_MEMBERS else value


def _shown(value: Any) -> Any:
    if isinstance(value, Origin):
        return {part: _shown(getattr(value, part)) for part in value.__struct_fields__}
    if isinstance(value, bytes):
        return value.hex()
    return [_shown(item) for item in value] if isinstance(value, tuple) else value


def packet_vectors() -> list[dict[str, Any]]:
    """Minimal to maximal."""
    first = packet("first of a stream", id="a")
    origin = Origin(
        line=SIGNER.name, entry=bytes.fromhex(first["entry"]), salt=SALT, ssalt=SSALT, stream="weather-001",
        commitment=Z32, meta=bytes.fromhex(first["meta"]),
    )  # fmt: skip
    all_fields: dict[str, Any] = {
        "id": "Zürich-7/😀", "type": "sensor_reading", "time": "2024-01-15T10:30:00.000+01:00",
        "source": "urn:dev:ops:32473-Büro", "key": "raum \"3\"\\", "topics": '["gitdata.events.iot", "\\u00e9"]',
        "metadata": '{ "unit" : "°C", "nul": "\\u0000" }', "signature": '"QlJDLTc3"', "definition_version": 7,
        "definition_topics": '["gitdata.events"]', "hops": 3,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "principal": "unix:1000",
        "derived_from": (1, 2, 300), "commitment_form": 2, "csalt": CSALT, "txid": bytes(range(32)),
    }  # fmt: skip
    return [
        packet("minimal", stream="a", sent="0"),
        packet("all fields, non-ASCII and escapes", sent='{"größe": "3\\u00b7\\n", "x": [1e2, -0.0, true, null]}', **all_fields),
        packet("body: object with white space inside", sent='{ "t" : 21 ,\n\t"u": {} }'),
        packet("body: text as a JSON string", sent='"plain \\"text\\", ünï"'),
        packet("body: octets as a base64 JSON string", sent='"AAEC/w=="', is_octets=True),
        packet("body: number", sent="-1.5e+10"),
        packet("body: empty array", sent="[]"),
        packet("commitment of the node", id="a", commitment_form=1),
        packet("commitment of the producer, opens", id="a", type="reading", commitment_form=2, csalt=CSALT),
        packet("commitment of the producer, stored form differs", body='{"t":"redacted"}', id="a", commitment_form=3),
        first,
        packet("second of a stream", id="b", offset=3, sequence=2, prev=bytes.fromhex(first["leaf"])),
        packet("name of 128 characters", stream=f"{'a' * 63}.{'b' * 64}", id="a"),
        packet(
            "largest numbers", epoch=U64_MAX, offset=U64_MAX, appended_us=U64_MAX, sequence=U64_MAX, prev=b"\xff" * 32,
            definition_version=(1 << 32) - 1, hops=255, derived_from=(1, U64_MAX),
        ),
        packet("forwarded", hops=1, origin=origin),
        packet("unknown tags", id="a", unknown=((0, b""), (10, b"new"), (255, b"\x00\xff"))),
    ]  # fmt: skip


def other_vectors() -> list[dict[str, Any]]:
    """Every other kind and every type of node entry."""
    hexed, root = "ab" * 32, "sha256:" + "cd" * 32
    node_bodies: dict[str, NodeBody] = {
        "genesis": Genesis((str(SIGNER.key),)),
        "boot": Boot(
            version="0.1.0", boot_id="7b1f1a50-3a5c-4b8a-9f5e-1d2c3b4a5968", uptime_ms=1234, clock_synced=True
        ),
        "boot, nothing known": Boot(version="0.1.0"),
        "clock": ClockStep(step_us=-3_600_000_000, clock_synced=False),
        "definition": DefinitionChange(
            "weather-001", base64.b64encode(SSALT).decode(), 1, {"title": "Wetter, Zürich", "tags": ["a"]}
        ),
        "key": KeyChange("overlayd/key/1\n…\n"),
        "restore": Restore(format_epoch(EPOCH), 8, root),
        "restore, lost more": Restore(format_epoch(EPOCH), 8, root, SeenHead(11, root)),
        "cut": Cut(256),
        "witnessed": Witnessed("a note\n"),
        "heads": Heads(8, 2, root),
    }
    status = [
        other("status: pending", Kind.STATUS, encode_status_body(StatusBody("pending")), target_from=2, target_to=2),
        other(
            "status: every member", Kind.STATUS,
            encode_status_body(StatusBody("confirmed", 1, hexed, 0, 850_000, hexed, 8, "why", True)),
            target_from=2, target_to=8, stream_hash=stream_hash_of(SSALT, "weather-001"),
        ),
        other(
            "status: largest numbers", Kind.STATUS, encode_status_body(StatusBody("failed", reason="é")),
            epoch=U64_MAX, offset=U64_MAX, appended_us=U64_MAX, target_from=U64_MAX, target_to=U64_MAX,
        ),
    ]  # fmt: skip
    certificate = encode_certificate_body({"verdict": "accepted", "votes": 3})
    removals = [
        other(
            f"removal: {cause}", Kind.REMOVAL, encode_removal_body(cause, 3), target_from=2, target_to=8,
            stream_hash=stream_hash_of(SSALT, "weather-001"),
        )
        for cause in ("erased", "retention", "deleted")
    ]  # fmt: skip
    return [
        *status,
        other("certificate", Kind.CERTIFICATE, certificate, target_from=2, target_to=2),
        *removals,
        other(
            "node: definition, by a principal", Kind.NODE, encode_node_body(node_bodies["definition"]),
            encode_meta(Meta(principal="unix:1000")), stream_hash=stream_hash_of(SSALT, "weather-001"),
        ),
        *(other(f"node: {name}", Kind.NODE, encode_node_body(body)) for name, body in node_bodies.items()),
    ]  # fmt: skip


@functools.cache
def _all_numbered_leaves() -> list[bytes]:
    return [leaf_hash(index.to_bytes(8, "big")) for index in range(max(TREE_SIZES))]


def numbered_leaves(size: int) -> list[bytes]:
    """The leaves of the tree vectors: H(0x00 ‖ u64 index)."""
    return _all_numbered_leaves()[:size]


def read_nodes(leaves: list[bytes]) -> Any:
    """A reader of complete subtrees over the leaves."""
    return lambda node: root_of(leaves[node[1] << node[0] : (node[1] + 1) << node[0]])


def tree_vectors() -> dict[str, Any]:
    """Roots, checkpoints and paths over numbered leaves."""
    leaves = numbered_leaves(max(TREE_SIZES))
    checkpoints = [CheckpointText(SIGNER.name, size, root_of(leaves[:size])) for size in TREE_SIZES]
    inclusion = [(0, 1), (0, 2), (255, 256), (256, 257), (3, 257), (69_999, 70_000), (65_536, 70_000)]
    consistency = [(0, 2), (1, 2), (2, 255), (255, 256), (256, 257), (256, 70_000), (257, 70_000), (65_536, 70_000)]
    read = read_nodes(leaves)
    return {
        "leaf": "leaf i = SHA-256(0x00 || i as u64), i from 0",
        "checkpoints": [
            {"size": text.size, "root": text.root.hex(), "note": sign_note(str(text), [SIGNER])} for text in checkpoints
        ],
        "inclusion": [
            {
                "index": index,
                "size": size,
                "path": [step.hex() for step in hash_spans(inclusion_nodes(index, size), read)],
            }
            for index, size in inclusion
        ],
        "consistency": [
            {"old": old, "new": new, "path": [step.hex() for step in hash_spans(consistency_nodes(old, new), read)]}
            for old, new in consistency
        ],
    }


def heads_vector() -> dict[str, Any]:
    """Three streams, not in the order in which they are hashed."""
    rows = [(stream_hash_of(SSALT, name), sequence, leaf_hash(name.encode())) for name, sequence in
            (("weather-001", 12), ("plant.line-2", 1), ("a", U64_MAX))]  # fmt: skip
    return {"rows": [[row[0].hex(), row[1], row[2].hex()] for row in rows], "root": heads_root(rows).hex()}


def make_entry(
    kind: Kind, offset: int, body: bytes, meta: bytes = b"", commitment: bytes = Z32, epoch: int = EPOCH, **more: Any
) -> StoredEntry:
    """A stored entry with a good seal and leaf."""
    content = content_hash_of(body)
    seal = seal_of(SALT, commitment, content, body, meta)
    raw = EntryHeader(
        kind=kind, epoch=epoch, offset=offset, appended_us=APPENDED_US + offset, seal=seal, **more
    ).encode()
    return entry_of_row(raw, leaf_hash(raw), SALT, commitment, content, meta, body)


def small_log() -> list[StoredEntry]:
    """Seven entries in two epochs: genesis, boot, definition, two packets, restore, a packet."""
    stream, name = stream_hash_of(SSALT, "weather-001"), "weather-001"
    body = b'{"t":21}'
    meta = Meta(id="r-1", type="reading", topics=b'["indoor"]', definition_version=1, commitment_form=2, csalt=CSALT)
    commitment = commitment_of(CSALT, name, "r-1", "reading", "", "", "", b'["indoor"]', b"", body)
    definition = DefinitionChange(name, base64.b64encode(SSALT).decode(), 1, {})
    log = [
        make_entry(Kind.NODE, 1, encode_node_body(Genesis((str(SIGNER.key),)))),
        make_entry(Kind.NODE, 2, encode_node_body(Boot(version="0.1.0"))),
        make_entry(Kind.NODE, 3, encode_node_body(definition), stream_hash=stream),
        make_entry(Kind.PACKET, 4, body, encode_meta(meta), commitment, stream_hash=stream, sequence=1),
    ]
    plain = encode_meta(Meta(definition_version=1))
    log.append(make_entry(Kind.PACKET, 5, b"[]", plain, stream_hash=stream, sequence=2, prev=log[3].leaf))
    root = "sha256:" + root_of([entry.leaf for entry in log]).hex()
    log.append(make_entry(Kind.NODE, 6, encode_node_body(Restore(format_epoch(EPOCH), 5, root)), epoch=LATER_EPOCH))
    sequence = (1 << 40) + 1
    log.append(
        make_entry(
            Kind.PACKET, 7, b'"x"', plain, epoch=LATER_EPOCH, stream_hash=stream, sequence=sequence, prev=log[4].leaf
        )
    )
    return log


def cosign(note: str, seconds: int) -> str:
    """The note with the example witness's cosignature."""
    text = note.split("\n\n")[0] + "\n"
    message = f"cosignature/v1\ntime {seconds}\n{text}".encode()
    signature = seconds.to_bytes(8, "big") + Ed25519Signer("any", WITNESS_SEED).sign(message)
    return add_signature(note, WITNESS, signature)


def proof_vectors() -> list[dict[str, Any]]:
    """Proofs over the small log: one of each sort, with what a verifier must find."""
    log = small_log()
    first = log[:5]
    note = sign_log(first, SIGNER)
    later = sign_log(log, LATER_SIGNER)
    opened, plain = log[3], log[4]

    def proof(
        name: str, entry: StoredEntry, entries: list[StoredEntry], checkpoint: str, **more: Any
    ) -> dict[str, Any]:
        finds = {"commitment": more.pop("commitment"), "is_witnessed": more.pop("is_witnessed", False)}
        built = build_proof(
            entry, stream="weather-001", ssalt=SSALT, path=path_of(entry, entries), checkpoint=checkpoint, **more
        )
        return {
            "name": name,
            **finds,
            "json": encode_proof(built).decode(),
            "tlog": encode_tlog_proof(tlog_proof_of(built)),
        }

    reduced = entry_of_row(opened.raw, opened.leaf, b"", b"", b"", b"", b"", is_reduced=True)
    unknown = add_signature(note, VerifierKey("stranger.example", PUBLIC_KEY), bytes(64))
    return [
        proof("opened, producer's commitment", opened, first, note, commitment="recomputed"),
        proof("body not shown", opened, first, note, commitment="recomputed", with_body=False),
        proof("no commitment", plain, first, note, commitment="none"),
        proof("reduced", reduced, first, note, commitment="not opened"),
        proof("witnessed", opened, first, cosign(note, 1_705_314_700), commitment="recomputed", is_witnessed=True),
        proof("signed by a stranger as well", opened, first, unknown, commitment="recomputed"),
        proof("of the later epoch", log[6], log, later, commitment="none"),
        proof(
            "of an ancestor's epoch", opened, log, later, commitment="recomputed",
            restores=[(log[5], path_of(log[5], log))],
        ),
    ]  # fmt: skip


def sign_log(entries: list[StoredEntry], signer: Ed25519Signer) -> str:
    """The checkpoint note over all of a log's entries."""
    return sign_note(
        str(CheckpointText(signer.name, len(entries), root_of([entry.leaf for entry in entries]))), [signer]
    )


def path_of(entry: StoredEntry, entries: list[StoredEntry]) -> list[bytes]:
    """The audit path of an entry among all entries of a log."""
    leaves = [each.leaf for each in entries]
    return hash_spans(inclusion_nodes(entry.offset - 1, len(leaves)), read_nodes(leaves))


def must_fail_vectors() -> list[dict[str, str]]:
    """What both implementations must refuse."""
    log = small_log()
    entry, meta = log[3].raw, log[3].meta
    note = sign_log(log[:5], SIGNER)
    text = note.split("\n\n")[0] + "\n"
    good = json.loads(proof_vectors()[0]["json"])
    key = str(SIGNER.key)
    wrong_epoch = build_proof(
        log[3], stream="weather-001", ssalt=SSALT, path=path_of(log[3], log), checkpoint=sign_log(log, LATER_SIGNER)
    )

    def changed(**members: Any) -> str:
        return json.dumps({**good, **members}, separators=(",", ":"), ensure_ascii=False)

    def resealed(**members: Any) -> str:
        return changed(sealed={**good["sealed"], **members})

    entries = {
        "one byte short": entry[:-1],
        "a trailing byte": entry + b"\0",
        "version 2": b"\2" + entry[1:],
        "kind 0": b"\1\0" + entry[2:],
        "kind 6": b"\1\6" + entry[2:],
        "offset 0": entry[:10] + bytes(8) + entry[18:],
        "packet without sequence": entry[:58] + bytes(8) + entry[66:],
        "packet without stream": entry[:26] + bytes(32) + entry[58:],
        "packet with a target": entry[:98] + b"\0" * 7 + b"\1" + entry[106:],
        "node entry with a sequence": b"\1\4" + entry[2:],
        "status without target": b"\1\2" + entry[2:58] + bytes(88 - 32) + entry[114:],
        "status whose target ends before it begins": (
            b"\1\2" + entry[2:58] + bytes(40) + (3).to_bytes(8, "big") + (2).to_bytes(8, "big") + entry[114:]
        ),
    }
    metas = {
        "tags out of order": b"\2\0\0\0\1b\1\0\0\0\1a",
        "a tag twice": b"\1\0\0\0\1a\1\0\0\0\1a",
        "a trailing byte": meta + b"\0",
        "length over the end": b"\1\0\0\0\2a",
        "head cut off": b"\1\0\0\0",
        "empty value": b"\1\0\0\0\0",
        "not UTF-8": b"\1\0\0\0\1\xff",
        "hops 0": b"\x12\0\0\0\1\0",
        "definition version 0": b"\x10\0\0\0\4\0\0\0\0",
        "definition version in 3 bytes": b"\x10\0\0\0\3\0\0\1",
        "unknown encoding": b"\x09\0\0\0\3hex",
        "offsets descending": b"\x15\0\0\0\x10" + (2).to_bytes(8, "big") + (1).to_bytes(8, "big"),
        "half an offset": b"\x15\0\0\0\4\0\0\0\1",
        "commitment of form 4": b"\x17\0\0\0\1\4",
        "commitment of form 2 without csalt": b"\x17\0\0\0\1\2",
        "commitment of form 1 with csalt": b"\x17\0\0\0\x11\1" + CSALT,
        "txid of 31 bytes": b"\x18\0\0\0\x1f" + bytes(31),
        "origin with a rest": _record(22, origin_record(log) + b"\0"),
        "own id beside an origin": _record(1, b"a") + _record(22, origin_record(log)),
    }
    checkpoints = {
        "a fourth line": text + "extra\n",
        "two lines": text[: text.rindex("\n", 0, -1) + 1],
        "no newline at the end": text[:-1],
        "leading zero": text.replace("\n5\n", "\n05\n"),
        "negative size": text.replace("\n5\n", "\n-5\n"),
        "size of 65 bits": text.replace("\n5\n", f"\n{1 << 64}\n"),
        "root of 31 bytes": text.split("\n")[0] + "\n5\n" + base64.b64encode(bytes(31)).decode() + "\n",
        "loose base64": text[:-3] + _loosen(text[-3]) + text[-2:],
        "no origin": text[text.index("\n") :],
    }
    notes = {
        "no signature": text + "\n",
        "signature of a known key fails": note.replace("\n5\n", "\n6\n"),
        "known key's signature fails beside a good one": add_signature(note, SIGNER.key, bytes(64)),
        "nobody known": note.replace("— overlayd", "— 0verlayd"),
        "hyphen for a dash": note.replace("—", "-"),
        "loose base64": note[:-3] + _loosen(note[-3]) + note[-2:],
        "no newline at the end": note[:-1],
        "carriage returns": note.replace("\n", "\r\n"),
        "cosignature that fails": add_signature(note, WITNESS, bytes(72)),
        "cosignature too short": add_signature(note, WITNESS, bytes(64)),
    }
    keys = {
        "id of another key": key.replace(SIGNER.key.key_id.hex(), "00000000"),
        "upper case": key.replace(SIGNER.key.key_id.hex(), SIGNER.key.key_id.hex().upper()),
        "no name": key[key.index("+") :],
        "unknown type": f"{SIGNER.name}+00000000+{base64.b64encode(bytes([2]) + PUBLIC_KEY).decode()}",
        "short key": f"{SIGNER.name}+00000000+{base64.b64encode(bytes([1]) + PUBLIC_KEY[:31]).decode()}",
    }
    proofs = {
        "not JSON": "{",
        "another version": changed(v=2),
        "a member twice": '{"v":1,' + changed()[1:],
        "unknown member": changed(extra=1),
        "a member missing": json.dumps({part: value for part, value in good.items() if part != "offset"}),
        "another stream's name": changed(stream="weather-002"),
        "another sequence": changed(sequence=2),
        "another offset": changed(offset=5),
        "another index": changed(leaf_index=4),
        "another leaf hash": changed(leaf_hash="sha256:" + "00" * 32),
        "upper-case hash": changed(leaf_hash=good["leaf_hash"].upper().replace("SHA256", "sha256")),
        "path too short": changed(inclusion_path=good["inclusion_path"][:-1]),
        "path too long": changed(inclusion_path=[*good["inclusion_path"], good["leaf_hash"]]),
        "path in another order": changed(inclusion_path=good["inclusion_path"][::-1]),
        "loose base64": changed(entry=good["entry"].rstrip("=")),
        "number as text": changed(sequence="1"),
        "another body": resealed(body=base64.b64encode(b'{"t":22}').decode()),
        "another content hash": resealed(content_hash="blake3:" + "00" * 32),
        "content hash named sha256": resealed(content_hash=good["sealed"]["content_hash"].replace("blake3", "sha256")),
        "another salt": resealed(salt=base64.b64encode(bytes(16)).decode()),
        "another stream salt": resealed(ssalt=base64.b64encode(bytes(16)).decode()),
        "commitment left out": changed(sealed={part: v for part, v in good["sealed"].items() if part != "commitment"}),
        "wrong epoch: the origin is a later one's": encode_proof(wrong_epoch).decode(),
        "restore for nothing": changed(
            restore=[{"entry": good["entry"], "inclusion_path": [], "sealed": good["sealed"]}]
        ),
    }
    lists: list[tuple[str, dict[str, Any]]] = [
        ("entry", {name: raw.hex() for name, raw in entries.items()}),
        ("meta", {name: raw.hex() for name, raw in metas.items()}),
        ("checkpoint", checkpoints),
        ("note", notes),
        ("key", keys),
        ("proof", proofs),
    ]
    return [{"what": what, "name": name, "value": value} for what, cases in lists for name, value in cases.items()]


def _record(tag: int, value: bytes) -> bytes:
    return bytes([tag]) + len(value).to_bytes(4, "big") + value


def origin_record(log: list[StoredEntry]) -> bytes:
    """Tag 22 for a packet that was forwarded from the small log."""
    return encode_origin(Origin(SIGNER.name, log[3].raw, SALT, SSALT, "weather-001", log[3].commitment, log[3].meta))


def _loosen(char: str) -> str:
    """The character before the padding with a bit set that no octet uses."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return alphabet[alphabet.index(char) | 1]


def build_vectors() -> dict[str, Any]:
    """Everything, ready for JSON."""
    return {
        "about": "Test vectors of docs/log-format.md. Bytes are hex, numbers may need 64 bits.",
        "log": {
            "seed": SEED.hex(),
            "public_key": PUBLIC_KEY.hex(),
            "log_id": LOG_ID,
            "epoch": EPOCH,
            "epoch_text": format_epoch(EPOCH),
            "origin": SIGNER.name,
            "key": str(SIGNER.key),
            "later_epoch": LATER_EPOCH,
            "later_key": str(LATER_SIGNER.key),
            "witness_key": str(WITNESS),
        },
        "packets": packet_vectors(),
        "others": other_vectors(),
        "tree": tree_vectors(),
        "heads": heads_vector(),
        "proofs": proof_vectors(),
        "must_fail": must_fail_vectors(),
    }


def vectors_text() -> str:
    """The file's text."""
    return json.dumps(build_vectors(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    VECTORS.write_text(vectors_text())
