"""Keys on a token: they sign like any other, and a token that is gone, comes back or refuses its PIN is told as it is."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from soft_token import PIN, SoftToken, soft_token
from storage_rig import Rig, append

from overlayd.bsv.keys import PrivateKey, PublicKey
from overlayd.model.clock import Entropy
from overlayd.model.errors import ConfigInvalid, KeyNotSuited, LogInconsistent, SignerUnavailable
from overlayd.model.note import NoteSigner, VerifierKey, open_note, sign_note
from overlayd.model.signer import CurveKey
from overlayd.signers import NodeCheckpointKeys, NodeKeySettings, open_curve_key


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftToken]:
    """A token with two Ed25519 keys and one on secp256k1."""
    place = tmp_path / "token"
    place.mkdir()
    for made in soft_token(place, monkeypatch):
        made.make_key("log", "ed25519")
        made.make_key("log-next", "ed25519")
        made.make_key("wallet", "secp256k1")
        yield made


def keys_of(directory: Path, **settings: str) -> NodeCheckpointKeys:
    """As the daemon makes them."""
    return NodeCheckpointKeys(NodeKeySettings(**settings), directory, {}, Entropy())


def curve_key(token: SoftToken, label: str, directory: Path) -> CurveKey:
    """As the daemon opens it."""
    return open_curve_key(
        "node.wallet_key", token.uri(label), file_name="wallet.key", directory=directory, environ={}, entropy=Entropy(),
        must_derive=False,
    )  # fmt: skip


def test_signs_checkpoints(token: SoftToken, tmp_path: Path) -> None:
    """The signature is one like any other's, and verifies."""
    key = keys_of(tmp_path, checkpoint_key=token.uri("log")).first()
    signer = NoteSigner("overlayd/" + "a" * 26 + "/1aaaaaaaa", key)
    assert not key.is_quick
    for text in ("a\n", "b\n"):
        open_note(sign_note(text, [signer]), [signer.key])


def test_signs_with_low_s_on_secp256k1(token: SoftToken, tmp_path: Path) -> None:
    """Every signature is strict DER with low S; a child of the key, or a shared point, is refused."""
    key = curve_key(token, "wallet", tmp_path)
    public_key = PublicKey.parse(key.public_key)
    for number in range(16):
        digest = hashlib.sha256(b"%d" % number).digest()
        public_key.verify_digest(digest, key.sign_digest(digest))
    with pytest.raises(KeyNotSuited):
        key.sign_digest(bytes(32), b"\x01" * 32)
    with pytest.raises(KeyNotSuited):
        key.agree(key.public_key)


def test_a_key_that_derives_cant_lie_on_a_token(token: SoftToken, tmp_path: Path) -> None:
    """Said at start, with what to do."""
    with pytest.raises(ConfigInvalid, match="can't lie on a token"):
        open_curve_key(
            "node.identity_key", token.uri("wallet"), file_name="identity.key", directory=tmp_path, environ={},
            entropy=Entropy(), must_derive=True,
        )  # fmt: skip


def test_a_key_of_another_kind_is_told(token: SoftToken, tmp_path: Path) -> None:
    """Neither takes the other's."""
    with pytest.raises(KeyNotSuited, match="isn't an Ed25519 key"):
        keys_of(tmp_path, checkpoint_key=token.uri("wallet")).first()
    with pytest.raises(KeyNotSuited, match="isn't a key on secp256k1"):
        curve_key(token, "log", tmp_path)


def test_a_token_that_was_pulled_out_and_put_back(token: SoftToken, tmp_path: Path) -> None:
    """Told precisely while it is gone; found again without a restart."""
    key = keys_of(tmp_path, checkpoint_key=token.uri("log")).first()
    signature = key.sign(b"text")
    token.take_away()
    for _ in range(2):
        with pytest.raises(SignerUnavailable, match="token 'overlayd test', object 'log'"):
            key.sign(b"text")
    token.put_back()
    assert key.sign(b"text") == signature


def test_two_keys_of_one_token_live_together(token: SoftToken, tmp_path: Path) -> None:
    """Also over a restart of the library, which ends both sessions."""
    keys = keys_of(tmp_path, checkpoint_key=token.uri("log"), checkpoint_key_next=token.uri("log-next"))
    first = keys.first()
    later = keys.next({first.public_key})
    assert later.public_key != first.public_key
    token.take_away()
    with pytest.raises(SignerUnavailable):
        later.sign(b"a")
    token.put_back()
    assert first.sign(b"a") != later.sign(b"a")


@pytest.mark.parametrize("pin", ["wrong-pin-1234", ""])
def test_a_wrong_pin_is_tried_once(token: SoftToken, tmp_path: Path, pin: str) -> None:
    """A token locks itself after a few; and neither the right nor the wrong one is repeated."""
    wrong = tmp_path / "wrong"
    wrong.write_text(pin)
    wrong.chmod(0o600)
    keys = keys_of(tmp_path, checkpoint_key=token.uri("log", pin=f"file:{wrong}"))
    with pytest.raises((SignerUnavailable, ConfigInvalid)) as refusal:
        keys.first()
    assert "wrong-pin-1234" not in f"{refusal.value} {refusal.value.hint}"
    wrong.write_text(PIN)
    if pin:
        with pytest.raises(SignerUnavailable, match="isn't tried again"):
            keys.first()
    else:
        keys.first()


def test_a_missing_key_token_or_library_is_told(token: SoftToken, tmp_path: Path) -> None:
    """Each by its name."""
    with pytest.raises(SignerUnavailable, match="object 'nothing'"):
        keys_of(tmp_path, checkpoint_key=token.uri("nothing")).first()
    elsewhere = token.uri("log").replace("overlayd%20test", "another")
    with pytest.raises(SignerUnavailable, match="token 'another'"):
        keys_of(tmp_path, checkpoint_key=elsewhere).first()
    no_library = token.uri("log").replace("libsofthsm2.so", "nothing.so")
    with pytest.raises(ConfigInvalid, match=r"nothing\.so"):
        keys_of(tmp_path, checkpoint_key=no_library).first()


async def test_a_log_signed_by_a_token(token: SoftToken, rig: Rig) -> None:
    """From its first checkpoint over a rotation to the token's other key; no key ever lies in the data directory."""
    before = {"checkpoint_key": token.uri("log"), "checkpoint_key_next": token.uri("log-next")}
    async with rig.open(keys=keys_of(rig.directory, **before)) as log:
        await append(log, "s")
        old = log.vkey
        open_note((await log.checkpoint(log.head)).note, [VerifierKey.parse(old)])
        await log.keys.rotate()
        assert log.vkey != old
    assert not list(rig.directory.glob("keys/log*"))
    async with rig.open(keys=keys_of(rig.directory, checkpoint_key=token.uri("log-next"))) as log:
        await append(log, "s")
        open_note((await log.checkpoint(log.head)).note, [VerifierKey.parse(log.vkey)])
        with pytest.raises(KeyNotSuited, match="no key to change to"):
            await log.keys.rotate()
    with pytest.raises(LogInconsistent, match="none of the keys"):
        async with rig.open(keys=keys_of(rig.directory, checkpoint_key=token.uri("log"))):
            pass


async def test_from_a_file_to_a_token(token: SoftToken, rig: Rig) -> None:
    """A log that began with a file moves to a token by one rotation; the file may then go."""
    async with rig.open() as log:
        await append(log, "s")
    async with rig.open(keys=keys_of(rig.directory, checkpoint_key_next=token.uri("log"))) as log:
        await log.keys.rotate()
    (rig.directory / "keys" / "log.ed25519").unlink()
    async with rig.open(keys=keys_of(rig.directory, checkpoint_key=token.uri("log"))) as log:
        await append(log, "s")
        open_note((await log.checkpoint(log.head)).note, [VerifierKey.parse(log.vkey)])


async def test_a_token_that_goes_away_under_a_log(token: SoftToken, rig: Rig) -> None:
    """Packets go on, the node says what is wrong; it starts without the token, too, and signs when it is back."""
    keys = {"checkpoint_key": token.uri("log")}
    async with rig.open(keys=keys_of(rig.directory, **keys)) as log:
        await log.checkpoint(log.head)
        token.take_away()
        await append(log, "s")
        with pytest.raises(SignerUnavailable):
            await log.checkpoint(log.head)
        assert "object 'log'" in log.keys.trouble
    async with rig.open(keys=keys_of(rig.directory, **keys)) as log:
        await append(log, "s")
        with pytest.raises(SignerUnavailable):
            await log.checkpoint(log.head)
        token.put_back()
    async with rig.open(keys=keys_of(rig.directory, **keys)) as log:
        assert (await log.checkpoint(log.head)).size == log.head


def test_the_wallets_token_may_be_away_at_start(token: SoftToken, tmp_path: Path) -> None:
    """Once it was seen: its public key is known, signing says what is wrong, and works again when it is back."""
    seen = curve_key(token, "wallet", tmp_path)
    assert seen.trouble == ""
    token.take_away()
    away = curve_key(token, "wallet", tmp_path)
    assert away.public_key == seen.public_key
    assert "object 'wallet'" in away.trouble
    digest = hashlib.sha256(b"a").digest()
    with pytest.raises(SignerUnavailable):
        away.sign_digest(digest)
    token.put_back()
    PublicKey.parse(away.public_key).verify_digest(digest, away.sign_digest(digest))
    assert away.trouble == ""


def test_a_token_that_was_never_seen_must_be_there(token: SoftToken, tmp_path: Path) -> None:
    """So must one under another name: nobody knows which coins are its own."""
    curve_key(token, "wallet", tmp_path)
    token.take_away()
    with pytest.raises(SignerUnavailable):
        curve_key(token, "other", tmp_path)


def test_a_token_with_another_key_isnt_used(token: SoftToken, tmp_path: Path) -> None:
    """The wallet would sign for coins that aren't its own."""
    place = tmp_path / "keys" / "wallet.key.token"
    curve_key(token, "wallet", tmp_path)
    mark = place.read_text().split()[0]
    token.take_away()
    place.write_text(f"{mark} {PrivateKey(bytes(31) + bytes([1])).public_key.hex()}\n")
    away = curve_key(token, "wallet", tmp_path)
    token.put_back()
    with pytest.raises(SignerUnavailable, match="another key"):
        away.sign_digest(bytes(32))
    place.write_bytes(b"\xff not a note")
    assert curve_key(token, "wallet", tmp_path).public_key != away.public_key
