"""A second implementation of docs/log-format.md, written from its text alone to check the first.

It shares no code with the product and is built another way: bytes are put together by hand, trees follow the
recursive definitions of RFC 6962, signatures are verified with the formulas of RFC 8032. Slow and plain on purpose.
Everything that doesn't hold raises `Broken`.
"""

import hashlib
import json
from base64 import b32encode, b64decode, b64encode

from blake3 import blake3


class Broken(Exception):
    """Something isn't as the format says."""


def demand(holds, why):
    """Raises Broken unless it holds."""
    if not holds:
        raise Broken(why)


def sha256(*parts):
    """H over the parts, one after the other."""
    return hashlib.sha256(b"".join(parts)).digest()


def prefixed(value):
    """LP: four bytes of length, then the value."""
    octets = value.encode("utf-8") if isinstance(value, str) else value
    return len(octets).to_bytes(4, "big") + octets


# Hashes and bytes of one entry


def commitment(csalt, packet, sent):
    """`packet` maps the members' names to text, or JSON text for topics and metadata."""
    demand(len(csalt) == 16, "csalt")
    told = b"overlayd/packet/1\n" + csalt
    for name in ("stream", "id", "type", "time", "source", "key", "topics", "metadata"):
        told += prefixed(packet.get(name, ""))
    return sha256(told, sha256(sent))


def stream_hash(ssalt, name):
    """The stream's pseudonym."""
    return sha256(b"overlayd/stream/1\n", ssalt, prefixed(name))


def seal(salt, commitment_or_zeros, body, meta):
    """The seal over everything that can be erased."""
    return sha256(
        b"overlayd/seal/1\n", salt, commitment_or_zeros, blake3(body).digest(), sha256(body), sha256(meta)
    )  # fmt: skip


ENTRY_FIELDS = (
    ("version", 1), ("kind", 1), ("epoch", 8), ("offset", 8), ("appended_us", 8), ("stream_hash", 32),
    ("sequence", 8), ("prev", 32), ("target_from", 8), ("target_to", 8), ("seal", 32),
)  # fmt: skip
KINDS = {1: "packet", 2: "status", 3: "certificate", 4: "node", 5: "removal"}


def write_entry(fields):
    """E; what isn't given is zero, version is 1."""
    out = bytearray()
    for name, width in ENTRY_FIELDS:
        value = fields.get(name, 1 if name == "version" else 0)
        out += value.to_bytes(width, "big") if isinstance(value, int) else value
    demand(len(out) == 146, "length of E")
    return bytes(out)


def read_entry(raw):
    """E's fields: numbers, and hashes as bytes."""
    demand(len(raw) == 146, "length of E")
    fields, at = {}, 0
    for name, width in ENTRY_FIELDS:
        piece = raw[at : at + width]
        fields[name] = piece if width == 32 else int.from_bytes(piece, "big")
        at += width
    demand(fields["version"] == 1, "version")
    demand(fields["kind"] in KINDS, "kind")
    demand(fields["offset"] >= 1, "offset")
    nothing = bytes(32)
    kind = KINDS[fields["kind"]]
    if kind == "packet":
        demand(fields["sequence"] >= 1 and fields["stream_hash"] != nothing, "packet without stream")
    else:
        demand(fields["sequence"] == 0 and fields["prev"] == nothing, "sequence of no packet")
    if kind in ("packet", "node"):
        demand(fields["target_from"] == fields["target_to"] == 0, "target")
    else:
        demand(1 <= fields["target_from"] <= fields["target_to"], "target")
    return fields


def leaf(raw):
    """The entry's leaf."""
    return sha256(b"\0", raw)


# Meta

TEXT_TAGS = {1: "id", 2: "type", 3: "time", 4: "source", 5: "key", 19: "traceparent", 20: "principal"}
JSON_TAGS = {6: "topics", 7: "metadata", 8: "signature", 17: "definition_topics"}


def write_meta(values):
    """`values` maps names (those above and definition_version, hops, octets, derived_from, …) to values."""
    records = {}
    for tag, name in {**TEXT_TAGS, **JSON_TAGS}.items():
        if values.get(name):
            value = values[name]
            records[tag] = value.encode("utf-8") if isinstance(value, str) else value
    if values.get("is_octets"):
        records[9] = b"base64"
    if values.get("definition_version"):
        records[16] = values["definition_version"].to_bytes(4, "big")
    if values.get("hops"):
        records[18] = bytes([values["hops"]])
    if values.get("derived_from"):
        records[21] = b"".join(offset.to_bytes(8, "big") for offset in values["derived_from"])
    if values.get("origin"):
        records[22] = write_origin(values["origin"])
    if values.get("commitment_form"):
        records[23] = bytes([values["commitment_form"]])
        if values["commitment_form"] == 2:
            records[23] += values["csalt"]
    if values.get("txid"):
        records[24] = values["txid"]
    for tag, value in values.get("unknown", ()):
        records[tag] = value
    return b"".join(bytes([tag]) + prefixed(records[tag]) for tag in sorted(records))


def write_origin(origin):
    """Tag 22 of a forwarded packet."""
    return b"".join((
        prefixed(origin["line"]), origin["entry"], origin["salt"], origin["ssalt"], prefixed(origin["stream"]),
        origin["commitment"], prefixed(origin["meta"]),
    ))  # fmt: skip


class Taker:
    """Takes bytes from the front and complains when there aren't enough."""

    def __init__(self, octets):
        self.rest = octets

    def take(self, count):
        """The next bytes."""
        demand(len(self.rest) >= count, "truncated")
        piece, self.rest = self.rest[:count], self.rest[count:]
        return piece

    def take_prefixed(self):
        """The next length and value."""
        return self.take(int.from_bytes(self.take(4), "big"))


def read_meta(raw):
    """Tag to value, everything checked that the format says of a tag."""
    taker, records, before = Taker(raw), {}, -1
    while taker.rest:
        (tag,) = taker.take(1)
        demand(tag > before, "order of tags")
        records[tag] = taker.take_prefixed()
        before = tag
    for tag, value in records.items():
        if tag in TEXT_TAGS or tag in JSON_TAGS:
            demand(value, "empty value")
        if tag in TEXT_TAGS:
            utf8(value)
    demand(records.get(9, b"base64") == b"base64", "encoding")
    for tag, width in ((16, 4), (18, 1), (24, 32)):
        demand(tag not in records or len(records[tag]) == width, "width of a tag")
    demand(not any(tag in records and not any(records[tag]) for tag in (16, 18)), "an explicit zero")
    if 21 in records:
        value = records[21]
        demand(value and len(value) % 8 == 0, "offsets")
        offsets = [int.from_bytes(value[at : at + 8], "big") for at in range(0, len(value), 8)]
        demand(offsets[0] > 0 and offsets == sorted(set(offsets)), "order of offsets")
    if 22 in records:
        taker = Taker(records[22])
        utf8(taker.take_prefixed())
        taker.take(146 + 16 + 16)
        utf8(taker.take_prefixed())
        taker.take(32)
        taker.take_prefixed()
        demand(not taker.rest, "rest of the origin")
        demand(not any(tag in records for tag in range(1, 10)), "own members beside an origin")
    if 23 in records:
        lengths = {1: 1, 2: 17, 3: 1}
        demand(records[23] and lengths.get(records[23][0]) == len(records[23]), "form of the commitment")
    return records


def utf8(octets):
    """Text, or Broken."""
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError as err:
        raise Broken("utf-8") from err


# RFC 6962


def split(count):
    """The largest power of two below the count."""
    power = 1
    while power * 2 < count:
        power *= 2
    return power


def tree_hash(leaves):
    """MTH over leaf hashes."""
    if not leaves:
        return sha256()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return sha256(b"\1", tree_hash(leaves[:k]), tree_hash(leaves[k:]))


def audit_path(index, leaves):
    """PATH(m, D[n])."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*audit_path(index, leaves[:k]), tree_hash(leaves[k:])]
    return [*audit_path(index - k, leaves[k:]), tree_hash(leaves[:k])]


def consistency_proof(old, leaves, is_whole=True):
    """SUBPROOF(m, D[n], b)."""
    if old == len(leaves):
        return [] if is_whole else [tree_hash(leaves)]
    k = split(len(leaves))
    if old <= k:
        return [*consistency_proof(old, leaves[:k], is_whole), tree_hash(leaves[k:])]
    return [*consistency_proof(old - k, leaves[k:], False), tree_hash(leaves[:k])]


def root_by_path(index, size, leaf_hash, path):
    """The root that an audit path leads to."""
    demand(0 <= index < size, "outside the tree")
    if size == 1:
        demand(not path, "path too long")
        return leaf_hash
    demand(path, "path too short")
    k = split(size)
    if index < k:
        return sha256(b"\1", root_by_path(index, k, leaf_hash, path[:-1]), path[-1])
    return sha256(b"\1", path[-1], root_by_path(index - k, size - k, leaf_hash, path[:-1]))


def check_consistency(old, old_root, new, new_root, path):
    """Whether the newer tree extends the older."""
    demand(0 <= old <= new, "sizes")
    if old == 0:
        demand(not path and old_root == sha256(), "empty tree")
        demand(new != 0 or new_root == sha256(), "empty tree")
        return
    steps = list(path)

    def both(old_part, new_part, is_whole):
        if old_part == new_part:
            if is_whole:
                return old_root, old_root
            demand(steps, "path too short")
            node = steps.pop(0)
            return node, node
        k = split(new_part)
        if old_part <= k:
            older, newer = both(old_part, k, is_whole)
            demand(steps, "path too short")
            return older, sha256(b"\1", newer, steps.pop(0))
        older, newer = both(old_part - k, new_part - k, False)
        demand(steps, "path too short")
        left = steps.pop(0)
        return sha256(b"\1", left, older), sha256(b"\1", left, newer)

    older, newer = both(old, new, True)
    demand(not steps, "path too long")
    demand(older == old_root and newer == new_root, "roots")


def heads(rows):
    """Root over (stream hash, sequence, leaf) of each stream."""
    ordered = sorted(rows, key=lambda row: row[0])
    return tree_hash([sha256(b"\0", row[0], row[1].to_bytes(8, "big"), row[2]) for row in ordered])


# Ed25519 verification, RFC 8032 section 5.1

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_1 = pow(2, (P - 1) // 4, P)


def recover_x(y, sign):
    """The x of a point on the curve."""
    demand(y < P, "point")
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_1 % P
    demand((x * x - square) % P == 0 and not (x == 0 and sign), "point")
    return P - x if x & 1 != sign else x


def decompress(octets):
    """An extended point from its 32 bytes."""
    number = int.from_bytes(octets, "little")
    y = number & (1 << 255) - 1
    x = recover_x(y, number >> 255)
    return x, y, 1, x * y % P


def add(a, b):
    """The sum of two extended points."""
    e = (a[1] - a[0]) * (b[1] - b[0]) % P
    f = (a[1] + a[0]) * (b[1] + b[0]) % P
    g = 2 * a[3] * b[3] * D % P
    h = 2 * a[2] * b[2] % P
    i, j, k, m = f - e, h - g, h + g, f + e
    return i * j % P, k * m % P, j * k % P, i * m % P


def times(scalar, point):
    """The point, so many times."""
    total = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point = add(point, point)
        scalar >>= 1
    return total


BASE_Y = 4 * pow(5, P - 2, P) % P
BASE = (recover_x(BASE_Y, 0), BASE_Y, 1, recover_x(BASE_Y, 0) * BASE_Y % P)


def check_ed25519(public_key, message, signature):
    """Raises Broken unless the key signed the message."""
    demand(len(signature) == 64, "length of the signature")
    point, nonce = decompress(public_key), decompress(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    demand(scalar < L, "scalar")
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % L
    left, right = times(scalar, BASE), add(nonce, times(challenge, point))
    demand((left[0] * right[2] - right[0] * left[2]) % P == 0, "signature")
    demand((left[1] * right[2] - right[1] * left[2]) % P == 0, "signature")


# Notes


def canonical_base64(text):
    """Octets of standard, padded base64 in its one form."""
    try:
        octets = b64decode(text, validate=True)
    except ValueError as err:
        raise Broken("base64") from err
    demand(b64encode(octets).decode() == text, "loose base64")
    return octets


def key_id(name, algorithm, public_key):
    """Four bytes."""
    return sha256(name.encode(), b"\n", bytes([algorithm]), public_key)[:4]


def log_id(public_key):
    """26 characters of base32."""
    return b32encode(sha256(b"overlayd/log/1\n", public_key)[:16]).decode().lower().rstrip("=")


def epoch_text(epoch):
    """Decimal counter and 8 characters of base32."""
    return str(epoch >> 40) + b32encode((epoch & 0xFFFFFFFFFF).to_bytes(5, "big")).decode().lower()


def read_key(text):
    """Name, algorithm and public key of a verifier key."""
    demand(text.count("+") >= 2, "key")
    name, hexed, material = text.split("+", 2)
    octets = canonical_base64(material)
    demand(len(octets) == 33 and octets[0] in (1, 4), "key")
    demand(name and not any(char.isspace() for char in name), "name")
    demand(key_id(name, octets[0], octets[1:]).hex() == hexed, "key id")
    return name, octets[0], octets[1:]


def open_note(note, keys):
    """(text, list of (name, algorithm, time) of known signers). Keys are (name, algorithm, public key)."""
    demand(all(char == "\n" or char >= " " for char in note), "control character")
    demand(note.endswith("\n") and "\n\n" in note, "form of a note")
    text, _, tail = note.rpartition("\n\n")
    text += "\n"
    demand(tail, "no signature")
    known = {(name, key_id(name, algorithm, public)): (algorithm, public) for name, algorithm, public in keys}
    signed = []
    for line in tail[:-1].split("\n"):
        pieces = line.split(" ")
        demand(len(pieces) == 3 and pieces[0] == "\u2014" and pieces[1], "signature line")
        demand("+" not in pieces[1] and not any(char.isspace() for char in pieces[1]), "name")
        octets = canonical_base64(pieces[2])
        demand(len(octets) > 4, "length of a signature")
        if (pieces[1], octets[:4]) not in known:
            continue
        algorithm, public = known[pieces[1], octets[:4]]
        moment = None
        message, signature = text.encode(), octets[4:]
        if algorithm == 4:
            moment = int.from_bytes(signature[:8], "big")
            demand(moment < 2**63, "time")
            message, signature = f"cosignature/v1\ntime {moment}\n".encode() + message, signature[8:]
        check_ed25519(public, message, signature)
        signed.append((pieces[1], algorithm, moment))
    demand(signed, "nobody known signed")
    return text, signed


def read_checkpoint(text):
    """Origin, size and root of exactly three lines."""
    lines = text.split("\n")
    demand(len(lines) == 4 and lines[3] == "", "three lines")
    demand(lines[0] and not any(char.isspace() or char == "+" for char in lines[0]), "origin")
    demand(lines[1].isascii() and lines[1].isdigit() and len(lines[1]) <= 20, "size")
    demand(str(int(lines[1])) == lines[1] and int(lines[1]) < 2**64, "size")
    root = canonical_base64(lines[2])
    demand(len(root) == 32, "root")
    return lines[0], int(lines[1]), root


def read_origin(origin):
    """Log id and epoch as number."""
    pieces = origin.split("/")
    demand(len(pieces) == 3 and pieces[0] == "overlayd", "origin")
    log, text = pieces[1:]
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    demand(len(log) == 26 and set(log) <= set(alphabet) and alphabet.index(log[-1]) % 4 == 0, "log id")
    counter, chance = text[:-8], text[-8:]
    demand(counter.isascii() and counter.isdigit() and len(chance) == 8 and set(chance) <= set(alphabet), "epoch")
    demand(counter[0] != "0" and int(counter) < 2**24, "epoch's counter")
    epoch = int(counter)
    for char in chance:
        epoch = epoch << 5 | alphabet.index(char)
    return log, epoch


# Proofs

PROOF_MEMBERS = {
    "v",
    "stream",
    "sequence",
    "offset",
    "leaf_index",
    "entry",
    "leaf_hash",
    "inclusion_path",
    "checkpoint",
}
SEALED_MEMBERS = {"salt", "content_hash", "body_sha256"}


def unique(pairs):
    """A JSON object whose members stand there once."""
    demand(len({name for name, _ in pairs}) == len(pairs), "duplicate member")
    return dict(pairs)


def read_hash(text, prefix="sha256:"):
    """32 bytes of a prefixed lower-case hash."""
    demand(isinstance(text, str) and text.startswith(prefix), "hash")
    digits = text[len(prefix) :]
    demand(len(digits) == 64 and set(digits) <= set("0123456789abcdef"), "hash")
    return bytes.fromhex(digits)


def check_proof(raw, public_key, log, witnesses=()):
    """What a proof shows, with nothing known but the log's public key, its id, and witnesses' keys."""
    try:
        proof = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except ValueError as err:
        raise Broken("json") from err
    demand(isinstance(proof, dict), "object")
    demand(proof.keys() >= PROOF_MEMBERS, "missing member")
    demand(proof.keys() <= PROOF_MEMBERS | {"sealed", "restore", "via", "anchor"}, "unknown member")
    for name in ("v", "sequence", "offset", "leaf_index"):
        demand(type(proof[name]) is int, "number")
    for name in ("stream", "entry", "leaf_hash", "checkpoint"):
        demand(type(proof[name]) is str, "text")
    demand(proof["v"] == 1, "version")
    demand(type(proof["inclusion_path"]) is list, "path")
    first_line = proof["checkpoint"].split("\n")[0]
    text, signed = open_note(proof["checkpoint"], [(first_line, 1, public_key), *witnesses])
    origin, size, root = read_checkpoint(text)
    demand(any(algorithm == 1 for _, algorithm, _ in signed), "the log didn't sign")
    named_log, epoch = read_origin(origin)
    demand(named_log == log, "another log")
    raw_entry = canonical_base64(proof["entry"])
    fields = placed(raw_entry, proof["leaf_index"], proof["inclusion_path"], size, root)
    demand(fields["offset"] == proof["offset"] and fields["sequence"] == proof["sequence"], "JSON and E")
    demand(read_hash(proof["leaf_hash"]) == leaf(raw_entry), "leaf hash")
    check_epoch(fields, epoch, proof.get("restore", []), size, root)
    opened = None
    if "sealed" in proof:
        opened = check_sealed(fields, proof["sealed"], proof["stream"])
    return {"origin": origin, "size": size, "fields": fields, "opened": opened, "signed": signed}


def placed(raw_entry, index, path, size, root):
    """E's fields, when it stands at its place in the tree."""
    fields = read_entry(raw_entry)
    demand(fields["offset"] == index + 1 <= size, "place")
    demand(root_by_path(index, size, leaf(raw_entry), [read_hash(step) for step in path]) == root, "root")
    return fields


def check_epoch(fields, epoch, restores, size, root):
    """The entry is of the origin's epoch, or of one that restore entries lead to."""
    bound = size
    for restore in restores:
        demand(epoch != fields["epoch"], "restore for nothing")
        demand(set(restore) == {"entry", "inclusion_path", "sealed"}, "restore")
        raw_entry = canonical_base64(restore["entry"])
        begin = placed(raw_entry, read_entry(raw_entry)["offset"] - 1, restore["inclusion_path"], size, root)
        demand(KINDS[begin["kind"]] == "node" and begin["epoch"] == epoch and begin["offset"] <= bound, "restore")
        check_sealed(begin, restore["sealed"], "")
        body = json.loads(canonical_base64(restore["sealed"]["body"]))
        demand(body["type"] == "restore" and begin["offset"] == body["common_size"] + 1, "restore")
        bound = body["common_size"]
        epoch = read_origin(f"overlayd/{'a' * 26}/{body['from_epoch']}")[1]
    demand(epoch == fields["epoch"] and fields["offset"] <= bound, "epoch")


def check_sealed(fields, sealed, stream):
    """Opens the seal; gives "recomputed", "not opened" or "none" for the commitment."""
    demand(sealed.keys() >= SEALED_MEMBERS, "missing member")
    demand(sealed.keys() <= SEALED_MEMBERS | {"ssalt", "commitment", "meta", "body"}, "unknown member")
    salt, raw_meta = canonical_base64(sealed["salt"]), canonical_base64(sealed.get("meta", ""))
    demand(len(salt) == 16, "salt")
    committed = read_hash(sealed["commitment"]) if sealed.get("commitment") else bytes(32)
    content, body_hash = read_hash(sealed["content_hash"], "blake3:"), read_hash(sealed["body_sha256"])
    if "body" in sealed:
        body = canonical_base64(sealed["body"])
        demand(sha256(body) == body_hash and blake3(body).digest() == content, "body")
    made = sha256(b"overlayd/seal/1\n", salt, committed, content, body_hash, sha256(raw_meta))
    demand(made == fields["seal"], "seal")
    if fields["stream_hash"] == bytes(32):
        demand(not stream and not sealed.get("ssalt"), "stream of no stream")
    else:
        ssalt = canonical_base64(sealed.get("ssalt", ""))
        demand(len(ssalt) == 16 and stream_hash(ssalt, stream) == fields["stream_hash"], "stream")
    records = read_meta(raw_meta)
    form = records[23][0] if 23 in records else 0
    demand((form == 0) == (committed == bytes(32)), "form of the commitment")
    if form == 0:
        return "none"
    demand(KINDS[fields["kind"]] == "packet", "commitment of no packet")
    if form == 3 or 22 in records:
        return "not opened"
    told = b"overlayd/packet/1\n" + (salt if form == 1 else records[23][1:]) + prefixed(stream)
    told += b"".join(prefixed(records.get(tag, b"")) for tag in range(1, 8))
    demand(sha256(told, body_hash) == committed, "commitment")
    return "recomputed"


def check_tlog_proof(text, public_key):
    """Index and E of a C2SP tlog-proof whose checkpoint the log signed."""
    lines = text.split("\n")
    demand(lines.pop(0) == "c2sp.org/tlog-proof@v1", "header")
    word, _, extra = lines.pop(0).partition(" ")
    demand(word == "extra" and lines, "extra")
    word, _, index = lines.pop(0).partition(" ")
    demand(word == "index" and index.isascii() and index.isdigit() and str(int(index)) == index, "index")
    path = []
    while lines and lines[0]:
        path.append(canonical_base64(lines.pop(0)))
        demand(len(path[-1]) == 32, "hash")
    demand(lines, "no checkpoint")
    note = "\n".join(lines[1:])
    origin, size, root = read_checkpoint(open_note(note, [(lines[1], 1, public_key)])[0])
    raw_entry = canonical_base64(extra)
    fields = read_entry(raw_entry)
    demand(fields["epoch"] == read_origin(origin)[1], "epoch")
    demand(fields["offset"] == int(index) + 1, "place")
    demand(root_by_path(int(index), size, leaf(raw_entry), path) == root, "root")
    return int(index), raw_entry
