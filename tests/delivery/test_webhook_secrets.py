"""Secrets of webhooks: shown once, sealed, rotated, never lying about in the open."""

import base64
import logging
import sqlite3
from pathlib import Path

import chaos_sink as chaos
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from webhook_rig import SUBSCRIPTION, delivery_of, open_rig, packet_messages

from overlayd.delivery.webhooks.secret_text import draw_secret, format_secret, parse_secret
from overlayd.model.clock import Entropy
from overlayd.model.errors import InvalidSubscription, SealBroken
from overlayd.model.subscription import WebhookRule
from overlayd.storage.sealing import Sealer, read_sealing_key

GIVEN = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"""The example of Standard Webhooks: 24 bytes."""


def verifies(secret: str, turn: chaos.Turn, body: bytes) -> bool:
    """Whether a receiver with this secret takes the request."""
    try:
        Webhook(secret).verify(body, turn.headers)
    except WebhookVerificationError:
        return False
    return True


def read_everything(directory: Path) -> bytes:
    """All bytes of all files."""
    return b"".join(file.read_bytes() for file in directory.rglob("*") if file.is_file())


async def test_a_secret_is_drawn_when_none_is_given(tmp_path: Path) -> None:
    """32 bytes, another one each time, in the form that receivers' libraries take."""
    async with open_rig(tmp_path) as rig:
        drawn = {await rig.create_secret(subscription_id=f"s{number}") for number in range(5)}
        assert len(drawn) == 5
        assert all(len(parse_secret(secret)) == 32 for secret in drawn)
        assert await rig.create_secret(GIVEN, "own") == GIVEN


async def test_secrets_rotate_with_both_valid_for_a_while(tmp_path: Path) -> None:
    """Within the grace time a receiver with either secret takes the request; after it, with the new one alone."""
    async with open_rig(tmp_path, grace_s=3600) as rig, chaos.open_sink() as sink:
        old = await rig.create_secret()
        new = await rig.rotate_secret()
        assert old != new
        delivery = delivery_of(WebhookRule(url=sink.url), packet_messages(1))
        await rig.attempt(delivery)
        turn, body = sink.turns[-1], await sink.turns[-1].body()
        assert turn.headers["webhook-signature"].count("v1,") == 2
        assert verifies(old, turn, body)
        assert verifies(new, turn, body)
        rig.clock.us += 3_600_000_000
        await rig.attempt(delivery)
        assert sink.turns[-1].headers["webhook-signature"].count("v1,") == 1


async def test_signatures_after_the_grace_time_are_the_new_secrets(tmp_path: Path) -> None:
    """With a grace of nothing the old secret ends with the rotation."""
    async with open_rig(tmp_path, grace_s=0) as rig, chaos.open_sink() as sink:
        old = await rig.create_secret()
        new = await rig.rotate_secret()
        await rig.attempt(delivery_of(WebhookRule(url=sink.url), packet_messages(1)))
        turn, body = sink.turns[-1], await sink.turns[-1].body()
        assert verifies(new, turn, body)
        assert not verifies(old, turn, body)


async def test_so_many_secrets_are_valid_at_once(tmp_path: Path) -> None:
    """With more rotations within the grace time the oldest end early."""
    async with open_rig(tmp_path, webhook_secrets=3) as rig:
        secrets = [await rig.create_secret()]
        secrets += [await rig.rotate_secret() for _ in range(4)]
        live = await rig.webhooks.secrets.live(SUBSCRIPTION)
        assert [format_secret(one.key) for one in live] == secrets[:-4:-1]
        assert rig.hits("webhook_secrets") == 2


async def test_rotating_to_the_same_secret_changes_nothing(tmp_path: Path) -> None:
    """As a configuration does at each start that names the secret."""
    async with open_rig(tmp_path) as rig:
        await rig.create_secret(GIVEN)
        for _ in range(3):
            assert await rig.rotate_secret(GIVEN) == GIVEN
        assert len(await rig.webhooks.secrets.live(SUBSCRIPTION)) == 1


async def test_a_change_counts_once_it_is_committed(tmp_path: Path) -> None:
    """Between asking for a rotation and its commit the old secret signs; a rotation that never commits changes nothing."""
    async with open_rig(tmp_path) as rig:
        old = await rig.create_secret()
        _, statements = rig.webhooks.secrets.rotate(SUBSCRIPTION, GIVEN)
        for _ in range(2):
            assert [format_secret(one.key) for one in await rig.webhooks.secrets.live(SUBSCRIPTION)] == [old]
        await rig.write(statements)
        assert [format_secret(one.key) for one in await rig.webhooks.secrets.live(SUBSCRIPTION)] == [GIVEN, old]


async def test_secrets_outlast_a_restart(tmp_path: Path) -> None:
    """The key file opens them again."""
    async with open_rig(tmp_path) as rig:
        await rig.create_secret(GIVEN)
    async with open_rig(tmp_path) as rig:
        assert [format_secret(one.key) for one in await rig.webhooks.secrets.live(SUBSCRIPTION)] == [GIVEN]


async def test_the_database_alone_gives_no_secret_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the text nor the bytes of a secret stand in any file but the key's, nor in the log of the program."""
    caplog.set_level(logging.DEBUG)
    async with open_rig(tmp_path) as rig, chaos.open_sink() as sink:
        secrets = [await rig.create_secret(GIVEN), await rig.rotate_secret()]
        await rig.attempt(delivery_of(WebhookRule(url=sink.url), packet_messages(1)))
        shown = repr(await rig.webhooks.secrets.live(SUBSCRIPTION))
        content = read_everything(tmp_path)  # the write-ahead log, too
    content += read_everything(tmp_path)
    assert SUBSCRIPTION.encode() in content  # their rows are there
    for secret in secrets:
        assert secret not in shown
        key = parse_secret(secret)
        for needle in (secret.encode(), secret[6:].encode(), key, key.hex().encode(), base64.urlsafe_b64encode(key)):
            assert needle not in content
        assert secret[6:] not in caplog.text
    assert (tmp_path / "keys" / "sealing.key").stat().st_mode & 0o777 == 0o600


async def test_without_its_key_file_a_secret_stays_closed(tmp_path: Path) -> None:
    """A database under another node's key opens nothing and says what to do; a rotation makes it work again."""
    async with open_rig(tmp_path) as rig:
        await rig.create_secret(GIVEN)
    (tmp_path / "keys" / "sealing.key").write_bytes(bytes(32))
    async with open_rig(tmp_path, grace_s=0) as rig, chaos.open_sink() as sink:
        with pytest.raises(SealBroken, match="can't be opened") as caught:
            await rig.webhooks.secrets.live(SUBSCRIPTION)
        assert "rotate" in caught.value.hint
        result = await rig.attempt(delivery_of(WebhookRule(url=sink.url), packet_messages(1)))
        assert result.reason.startswith("secret.sealed: ")
        await rig.rotate_secret()
        result = await rig.attempt(delivery_of(WebhookRule(url=sink.url), packet_messages(1)))
        assert result.outcome == "delivered"


async def test_sealed_secrets_cannot_be_moved(tmp_path: Path) -> None:
    """A row copied to another subscription doesn't open there, nor does one that was changed."""
    async with open_rig(tmp_path) as rig:
        await rig.create_secret(GIVEN)

        def move(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO webhook_secret SELECT 'thief', number, sealed, until_us FROM webhook_secret"
            )

        await rig.log.write(move)
        with pytest.raises(SealBroken):
            await rig.webhooks.secrets.live("thief")


@given(st.binary(max_size=80), st.integers(0, 200), st.integers(1, 255))
def test_any_changed_byte_breaks_the_seal(secret: bytes, at: int, flip: int) -> None:
    """Sealing round-trips; every byte of the sealed form, its owner and its purpose count."""
    entropy = Entropy()
    key = entropy.draw(32)
    sealer = Sealer(key, "a", entropy)
    sealed = sealer.seal(secret, "me")
    assert sealer.open(sealed, "me") == secret
    broken = bytearray(sealed)
    broken[at % len(sealed)] ^= flip
    for wrong, about, by in (
        (bytes(broken), "me", sealer), (sealed, "you", sealer), (sealed, "me", Sealer(key, "b", entropy)),
        (sealed[:-1], "me", sealer), (b"", "me", sealer),
    ):  # fmt: skip
        with pytest.raises(SealBroken):
            by.open(wrong, about)


def test_the_sealing_key_is_drawn_once(tmp_path: Path) -> None:
    """And kept."""
    (tmp_path / "keys").mkdir()
    assert read_sealing_key(tmp_path, Entropy()) == read_sealing_key(tmp_path, Entropy())


@given(st.binary(min_size=24, max_size=64))
def test_every_key_within_the_bounds_has_one_text(key: bytes) -> None:
    """Padding may be left out, as some libraries do."""
    text = format_secret(key)
    assert parse_secret(text) == key
    assert parse_secret(text.rstrip("=")) == key


@pytest.mark.parametrize(
    "text",
    ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaL",
     "whsec_" + base64.b64encode(bytes(23)).decode(), "whsec_" + base64.b64encode(bytes(65)).decode(), "whsec_!!!!",
     "whsec_MfKQ9r8G KYqrTwjUPD8ILPZIo2LaLaSw", "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_é", "WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
)  # fmt: skip
async def test_secrets_out_of_bounds_are_refused(text: str, tmp_path: Path) -> None:
    """Too short, too long, not base64, without the prefix; the words don't repeat it."""
    if not text:
        with pytest.raises(ValueError, match="whsec_"):
            parse_secret(text)
        return
    async with open_rig(tmp_path) as rig:
        with pytest.raises(InvalidSubscription) as caught:
            rig.webhooks.secrets.create(SUBSCRIPTION, text)
        assert caught.value.violations[0].pointer == "/webhook/secret"
        assert text.removeprefix("whsec_")[:12] not in caught.value.detail or len(text) < 12


def test_drawn_secrets_are_within_the_bounds() -> None:
    """Of Standard Webhooks."""
    assert 24 <= len(parse_secret(draw_secret(Entropy()))) <= 64
