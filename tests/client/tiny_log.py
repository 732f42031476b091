"""A log of a few packets, made from the format alone, and the answers that a node would give about it."""

import hashlib
from collections.abc import Sequence

from fake_node import Answer, Request, json_answer

from overlayd.model.cursor import Epoch
from overlayd.model.entry import EntryHeader, Kind, StoredEntry, content_hash_of, leaf_hash, seal_of, stream_hash_of
from overlayd.model.merkle import root_of
from overlayd.model.note import CheckpointText, Ed25519Signer, log_id_of, origin_of, sign_note
from overlayd.model.proof import build_proof, encode_proof
from overlayd.model.wire import Packet, format_blake3, format_sha256

EPOCH = Epoch(1 << 40)
SSALT = b"s" * 16
STREAM = "weather-001"
Z32 = bytes(32)


class TinyLog:
    """Packets of one stream, signed. `seed` is the log's key; two logs of one seed have one name."""

    def __init__(self, count: int, *, seed: bytes = b"k" * 32, flavor: str = "a") -> None:
        log_id = log_id_of(Ed25519Signer("overlayd", seed).key.public_key)
        self.log_id = log_id
        self.origin = origin_of(log_id, EPOCH)
        self.signer = Ed25519Signer(self.origin, seed)
        self.entries: list[StoredEntry] = []
        for number in range(1, count + 1):
            self.append(f'{{"{flavor}":{number}}}'.encode())

    def append(self, body: bytes) -> StoredEntry:
        """One more packet."""
        offset = len(self.entries) + 1
        salt = hashlib.sha256(b"%d" % offset).digest()[:16]
        header = EntryHeader(
            Kind.PACKET, EPOCH, offset, 1000 + offset, stream_hash_of(SSALT, STREAM), offset,
            self.entries[-1].leaf if self.entries else Z32, seal=seal_of(salt, Z32, content_hash_of(body), body, b""),
        )  # fmt: skip
        raw = header.encode()
        entry = StoredEntry(
            raw, leaf_hash(raw), header.kind, header.epoch, offset, header.appended_us, header.stream_hash, offset,
            header.prev, 0, 0, salt, Z32, content_hash_of(body), b"", body, b"", False,
        )  # fmt: skip
        self.entries.append(entry)
        return entry

    def leaves(self, size: int) -> list[bytes]:
        return [entry.leaf for entry in self.entries[:size]]

    def note(self, size: int = 0) -> str:
        """A signed checkpoint over the first `size` entries."""
        size = size or len(self.entries)
        return sign_note(str(CheckpointText(self.origin, size, root_of(self.leaves(size)))), [self.signer])

    def proof(self, sequence: int, size: int = 0) -> bytes:
        """A proof file."""
        size = size or len(self.entries)
        path = inclusion(sequence - 1, self.leaves(size))
        entry = self.entries[sequence - 1]
        return encode_proof(build_proof(entry, stream=STREAM, ssalt=SSALT, path=path, checkpoint=self.note(size)))

    def packet(self, sequence: int) -> Packet:
        """As consumers see it."""
        entry = self.entries[sequence - 1]
        return Packet(
            stream_id=STREAM, packet_sequence=sequence, packet_id=f"p-{sequence}", offset=entry.offset,
            appended_at="2026-01-01T00:00:00Z", data_payload=entry.body, content_hash=format_blake3(entry.content_hash),
            leaf_hash=format_sha256(entry.leaf),
        )  # fmt: skip

    def consistency(self, old: int, new: int) -> dict[str, object]:
        """The body of `GET /v1/log/consistency`."""
        path = consistency(old, self.leaves(new), True)
        return {
            "from": old, "to": new, "from_root": format_sha256(root_of(self.leaves(old))),
            "to_root": format_sha256(root_of(self.leaves(new))), "path": [format_sha256(step) for step in path],
        }  # fmt: skip

    def answer(self, request: Request) -> Answer:
        """What a node with this log would say."""
        if request.path == "/v1/node":
            return json_answer({
                "node": "tiny", "log": self.log_id, "origin": self.origin, "keys": [str(self.signer.key)],
                "epoch": "1aaaaaaaa", "head": len(self.entries), "cursor": f"e1aaaaaaaa-{len(self.entries)}",
                "started_at": "2026-01-01T00:00:00Z", "versions": {},
            })  # fmt: skip
        if request.path == "/v1/log/checkpoint":
            return Answer(200, self.note().encode())
        if request.path == "/v1/log/consistency":
            return json_answer(self.consistency(int(request.params["from"]), int(request.params["to"])))
        return Answer(200, self.proof(int(request.path.split("/")[-2])))


def inclusion(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH(m, D[n]) of RFC 6962, 2.1.1."""
    if len(leaves) <= 1:
        return []
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    if index < half:
        return [*inclusion(index, leaves[:half]), root_of(leaves[half:])]
    return [*inclusion(index - half, leaves[half:]), root_of(leaves[:half])]


def consistency(old: int, leaves: Sequence[bytes], is_whole: bool) -> list[bytes]:
    """SUBPROOF(m, D[n], b) of RFC 6962, 2.1.2."""
    if old == len(leaves):
        return [] if is_whole else [root_of(leaves)]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    if old <= half:
        return [*consistency(old, leaves[:half], is_whole), root_of(leaves[half:])]
    return [*consistency(old - half, leaves[half:], False), root_of(leaves[:half])]
