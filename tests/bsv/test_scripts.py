"""Pushes, P2PKH, data scripts, PushDrop and the anchor output."""

import pytest
from bsv_samples import damaged, load, reads_or_refuses, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayd.bsv.anchor import (
    ANCHOR_BYTES,
    Anchor,
    AnchorKind,
    anchor_output,
    encode_anchor_script,
    find_anchor,
    list_anchors,
    parse_anchor_script,
)
from overlayd.bsv.hashes import hash160
from overlayd.bsv.keys import ANYONE
from overlayd.bsv.script import (
    PushDrop,
    encode_data_script,
    encode_push,
    encode_pushdrop,
    lock_to_hash,
    lock_to_key,
    parse_data_script,
    parse_p2pk,
    parse_p2pkh,
    parse_pushdrop,
    parse_script,
    unlock_with,
)
from overlayd.bsv.tx import parse_transaction
from overlayd.model.errors import MalformedChainData

KEY = ANYONE.public_key.encoded
SAMPLE = load("ts-sdk-2.1.0-generated")
pushes = st.one_of(st.binary(max_size=300), st.integers(0, 255).map(lambda value: bytes((value,))))


@given(pushes)
def test_a_push_is_minimal_and_comes_back(data: bytes) -> None:
    """What is pushed is read again, and no shorter push would do."""
    (chunk,) = parse_script(encode_push(data))
    assert chunk.data == data
    small = data == b"" or (len(data) == 1 and (1 <= data[0] <= 16 or data[0] == 0x81))
    lead = 0 if small else 1 if len(data) < 76 else 2 if len(data) < 256 else 3
    assert len(encode_push(data)) == (1 if small else lead + len(data))


@pytest.mark.parametrize("count", [0, 1, 75, 76, 255, 256, 65_535, 65_536])
def test_pushes_around_the_bounds_of_their_forms(count: int) -> None:
    """Each length is pushed in the form that holds it."""
    (chunk,) = parse_script(encode_push(b"\xff" * count))
    assert chunk.data == b"\xff" * count


@given(st.binary(max_size=120))
def test_any_script_is_read_or_refused(script: bytes) -> None:
    """Any bytes give steps, or an error that says where a push ends early; the questions never raise."""
    chunks = reads_or_refuses(parse_script, script)
    assert chunks is None or sum(1 + len(chunk.data or b"") for chunk in chunks) <= len(script) + len(chunks)
    reads_or_refuses(parse_pushdrop, script)
    assert parse_p2pkh(script) is None or len(script) == 25
    assert parse_p2pk(script) is None or len(script) in (35, 67)
    parse_data_script(script)
    parse_anchor_script(script)


@pytest.mark.parametrize("script", ["05aabb", "4c", "4c05aa", "4d01", "4dffff", "4e010000", "4effffffff"])
def test_a_push_that_ends_early_is_refused(script: str) -> None:
    """Lengths that are cut or promise too much raise, whatever their form."""
    with pytest.raises(MalformedChainData, match=r"ends early|no length"):
        parse_script(bytes.fromhex(script))


def test_locks_to_a_key() -> None:
    """P2PKH is written and recognized; P2PK is recognized; anything near them isn't."""
    script = lock_to_key(KEY)
    assert script == bytes.fromhex("76a914" + hash160(KEY).hex() + "88ac")
    assert parse_p2pkh(script) == hash160(KEY)
    assert parse_p2pkh(lock_to_hash(bytes(20))) == bytes(20)
    for other in (script[:-1], script + b"\0", b"\0" + script[1:], script[:-1] + b"\xad"):
        assert parse_p2pkh(other) is None
    bare = b"\x21" + KEY + b"\xac"
    assert parse_p2pk(bare) == KEY
    assert parse_p2pk(b"\x41\x04" + bytes(64) + b"\xac") == b"\x04" + bytes(64)
    for other in (bare[:-1] + b"\xad", b"\x21\x04" + KEY[1:] + b"\xac", bare[1:], b""):
        assert parse_p2pk(other) is None
    assert [chunk.data for chunk in parse_script(unlock_with(b"\x30" * 71, KEY))] == [b"\x30" * 71, KEY]


@given(st.lists(pushes, max_size=6))
def test_data_scripts_come_back(items: list[bytes]) -> None:
    """What is pushed behind OP_FALSE OP_RETURN is read again."""
    script = encode_data_script(items)
    assert script.startswith(b"\x00\x6a")
    assert parse_data_script(script) == tuple(items)


def test_data_scripts_hold_nothing_else() -> None:
    """An opcode, a broken push or a missing OP_FALSE make it something else."""
    for script in (b"\x6a\x01a", b"\x00\x6a\x02a", b"\x00\x6a\x76", b"\x00", b""):
        assert parse_data_script(script) is None


@given(st.lists(st.binary(min_size=1, max_size=90), min_size=1, max_size=9))
def test_pushdrops_come_back(fields: list[bytes]) -> None:
    """Fields that aren't empty are read as they were written."""
    token = PushDrop(KEY, tuple(fields))
    assert parse_pushdrop(encode_pushdrop(token)) == token


@pytest.mark.parametrize("name", ["ship", "slap"])
def test_pushdrops_of_wallets_are_read_and_written_alike(name: str) -> None:
    """Tokens made by @bsv/sdk hold the fields that it says, and our writing gives the same bytes."""
    script = bytes.fromhex(SAMPLE[name])
    token = parse_pushdrop(script)
    assert encode_pushdrop(token) == script
    assert len(token.fields) == 5
    assert token.fields[0].decode() == name.upper()
    if name == "ship":
        said = SAMPLE["shipDecoded"]
        assert [token.fields[1].hex(), token.fields[2].decode(), token.fields[3].decode()] == [
            said["identityKey"], said["domain"], said["topicOrService"],
        ]  # fmt: skip


@settings(max_examples=200)
@given(damaged(bytes.fromhex(SAMPLE["ship"])))
def test_damaged_pushdrops_are_read_or_refused(script: bytes) -> None:
    """A damaged token raises the one error or is another token."""
    reads_or_refuses(parse_pushdrop, script)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("", "begins with a public key"),
        ("51ac51" + "75", "begins with a public key"),
        ("21" + KEY.hex(), "OP_CHECKSIG"),
        ("21" + KEY.hex() + "ac", "0 fields"),
        ("21" + KEY.hex() + "ac5151" + "75", "2 fields drops 1"),
        ("21" + KEY.hex() + "ac51" + "6d", "1 fields drops 2"),
        ("21" + KEY.hex() + "ac51" + "7551", "nothing else"),
        ("21" + KEY.hex() + "ac51" + "76", "nothing else"),
    ],
)
def test_broken_pushdrops_are_refused_for_their_reason(script: str, reason: str) -> None:
    """Key, lock, fields and drops are each looked at."""
    assert reason in refusal(parse_pushdrop, bytes.fromhex(script))


def test_empty_fields_are_refused_and_zero_bytes_written_as_wallets_do() -> None:
    """OP_0 stands for one zero byte, as @bsv/sdk writes it; so there is no way to write an empty field."""
    token = PushDrop(KEY, (b"\0", b"a"))
    assert parse_pushdrop(encode_pushdrop(token)) == token
    assert encode_pushdrop(token)[35:37] == b"\x00\x01"
    for fields in ((), (b"a", b"")):
        assert "empty" in refusal(encode_pushdrop, PushDrop(KEY, fields))


@given(st.sampled_from(AnchorKind), st.binary(min_size=32, max_size=32))
def test_anchors_come_back(kind: AnchorKind, digest: bytes) -> None:
    """An anchor script has its 46 bytes and says what was put in."""
    anchor = Anchor(kind, digest)
    script = encode_anchor_script(anchor)
    assert len(script) == ANCHOR_BYTES
    assert script.hex() == f"006a086f7665726c61796401{kind:02x}20{digest.hex()}"
    assert parse_anchor_script(script) == anchor


@given(damaged(encode_anchor_script(Anchor(AnchorKind.CHECKPOINT, bytes(range(32))))))
def test_a_damaged_anchor_commits_to_nothing_or_to_something_else(script: bytes) -> None:
    """No other bytes mean the same."""
    found = parse_anchor_script(script)
    assert found is None or encode_anchor_script(found) == script


def test_anchors_are_found_among_outputs() -> None:
    """A transaction made by @bsv/sdk after the specification carries a commitment where the search finds it."""
    tx = parse_transaction(bytes.fromhex(SAMPLE["tx"]["raw"]))
    ((index, anchor),) = list_anchors(tx)
    assert (index, anchor.kind) == (0, AnchorKind.COMMITMENT)
    assert anchor_output(anchor) == tx.outputs[0]
    assert find_anchor(tx, anchor) == 0
    assert find_anchor(tx, Anchor(AnchorKind.CHECKPOINT, anchor.hash)) is None
