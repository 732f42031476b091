"""Access over a real log: keys that are made, rotated and revoked, owners, and what outlasts a restart."""

import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from access_rig import SERVICE, TurnedClock, head_with, principal_of
from standing_clock import NO_STEP

from overlayd.access.gate import Remembered
from overlayd.access.key_changes import Author, KeyAsk
from overlayd.access.key_records import ACCESS_FEATURE
from overlayd.access.node_access import NodeAccess
from overlayd.access.origin import AccessRules, Peer
from overlayd.access.principal import Principal
from overlayd.access.secret_text import draw_key, format_digest
from overlayd.access.settings import AccessSettings, KeySettings
from overlayd.model.clock import Entropy
from overlayd.model.definition import Definition
from overlayd.model.errors import (
    BadParameter,
    ConfigInvalid,
    LimitReached,
    OwnedByConfig,
    Unauthorized,
    UnknownKey,
)
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Duration, Size
from overlayd.storage import Log, StorageSettings, open_log
from overlayd.storage.own import OwnPacket

ADMIN = Principal(name="unix:0", kind="unix", rights=frozenset(("admin",)), address="uid:0")
AUTHOR = Author(ADMIN, "r-1")
STORAGE = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0), clock_step=NO_STEP)
THERE = Peer("tcp", "192.0.2.9", 40000, "192.0.2.1", 7878)


def make_audit(type: str, data: dict[str, Any]) -> OwnPacket:
    """A packet of the audit stream."""
    return OwnPacket("overlayd.audit", Definition(), type, msgspec.json.encode(data))


class Rig:
    """How a test's node is opened; again and again on the same directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = TurnedClock()
        self.settings = AccessSettings()
        self.metrics = Metrics()
        self.environ: dict[str, str] = {}

    @asynccontextmanager
    async def open(self, declared: Sequence[KeySettings] = ()) -> AsyncIterator[NodeAccess]:
        self.metrics = Metrics()
        async with open_log(
            self.directory, settings=STORAGE, limits=Limits(), defaults=Definition(), clock=self.clock,
            entropy=Entropy(), metrics=self.metrics, features=(ACCESS_FEATURE,),
        ) as self.log:  # fmt: skip
            access = NodeAccess(
                log=self.log, rules=AccessRules(service_uid=1000), settings=self.settings, declared=declared,
                environ=self.environ, make_audit=make_audit, clock=self.clock, entropy=Entropy(), metrics=self.metrics,
            )  # fmt: skip
            await access.load()
            yield access

    def limit_hits(self, limit: str) -> float:
        return self.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A directory to open nodes in."""
    return Rig(tmp_path / "data")


async def audited(log: Log) -> list[dict[str, Any]]:
    """What the audit stream holds."""
    stream = log.find_stream("overlayd.audit")
    if stream is None:
        return []
    return [msgspec.json.decode(entry.body) for entry in await log.read_packets(stream, 0, 100)]


async def let_in(access: NodeAccess, secret: str) -> Principal:
    """Who the gate takes the secret for."""
    return (await access.gate.claim(Remembered(), THERE, head_with(secret))).principal


async def test_a_key_outlasts_a_restart_and_its_secret_is_kept_nowhere(rig: Rig) -> None:
    """Only a hash is in the directory; the audit says who made it, with which scopes."""
    async with rig.open() as access:
        ask = KeyAsk(title="Press", owner="alice", scopes=("publish:press.*",), roles=("consumer",))
        key, secret = await access.changes.create(ask, AUTHOR)
        (record,) = await audited(rig.log)
    assert record["action"] == "key.create"
    assert (record["actor"], record["address"], record["request_id"]) == ("unix:0", "uid:0", "r-1")
    assert record["subject"] == key.record.id
    assert record["detail"] == {"owner": "alice", "scopes": "publish:press.* read subscribe"}
    for path in rig.directory.rglob("*"):
        if path.is_file():
            assert secret.text.encode() not in path.read_bytes(), path
    async with rig.open() as access:
        who = await let_in(access, secret.text)
        assert (who.name, who.owner) == (f"key:{key.record.id}", "alice")
        assert access.has_credentials


async def test_a_revoked_key_stays_revoked(rig: Rig) -> None:
    """At once, and over a restart."""
    async with rig.open() as access:
        key, secret = await access.changes.create(KeyAsk(scopes=("read",)), AUTHOR)
        who = await let_in(access, secret.text)
        await access.changes.revoke(key.record.id, AUTHOR)
        assert who.standing.ended == "revoked"
        with pytest.raises(Unauthorized):
            await let_in(access, secret.text)
        with pytest.raises(UnknownKey):
            await access.changes.revoke(key.record.id, AUTHOR)
        assert [record["action"] for record in await audited(rig.log)] == ["key.create", "key.revoke"]
    async with rig.open() as access:
        assert len(access.keys) == 0
        assert not access.has_credentials


async def test_rotation_over_a_restart(rig: Rig) -> None:
    """Both secrets count until the grace is over."""
    async with rig.open() as access:
        key, old = await access.changes.create(KeyAsk(scopes=("read",)), AUTHOR)
        _, new = await access.changes.rotate(key.record.id, 60, AUTHOR)
    async with rig.open() as access:
        assert (await let_in(access, old.text)).name == (await let_in(access, new.text)).name
        rig.clock.advance(61)
        with pytest.raises(Unauthorized):
            await let_in(access, old.text)
        await let_in(access, new.text)
        _, third = await access.changes.rotate(key.record.id, 0, AUTHOR)
        with pytest.raises(Unauthorized):
            await let_in(access, new.text)
        await let_in(access, third.text)


async def test_what_cant_be_made(rig: Rig) -> None:
    """Without scopes, with wrong ones, with roles that there aren't, or expired from the beginning."""
    async with rig.open() as access:
        for ask in (
            KeyAsk(), KeyAsk(scopes=("fly",)), KeyAsk(roles=("nosuch",)), KeyAsk(roles=("nosuch", "admin")),
            KeyAsk(scopes=("read",), expires_us=rig.clock.us),
        ):  # fmt: skip
            with pytest.raises(BadParameter):
                await access.changes.create(ask, AUTHOR)
        assert await audited(rig.log) == []


async def test_limits_of_keys(rig: Rig) -> None:
    """How many there are, how many secrets of one count, and how long a grace may be."""
    rig.settings = AccessSettings(keys_max=1, secrets_per_key=2, rotation_grace_max=Duration(100))
    async with rig.open() as access:
        key, _ = await access.changes.create(KeyAsk(scopes=("read",)), AUTHOR)
        with pytest.raises(LimitReached):
            await access.changes.create(KeyAsk(scopes=("read",)), AUTHOR)
        with pytest.raises(BadParameter):
            await access.changes.rotate(key.record.id, 101, AUTHOR)
        await access.changes.rotate(key.record.id, 100, AUTHOR)
        with pytest.raises(LimitReached):
            await access.changes.rotate(key.record.id, 100, AUTHOR)
        rig.clock.advance(101)
        access.keys.end_expired(rig.clock.us)
        await access.changes.rotate(key.record.id, 100, AUTHOR)
        for limit in ("keys_max", "secrets_per_key", "rotation_grace_max"):
            assert rig.limit_hits(limit) == 1


async def test_a_change_is_finished_when_its_asker_leaves(rig: Rig) -> None:
    """A revocation that was begun counts, in memory as on the disk."""
    async with rig.open() as access:
        key, _ = await access.changes.create(KeyAsk(scopes=("read",)), AUTHOR)
        with trio.CancelScope() as scope:
            scope.cancel()
            await access.changes.revoke(key.record.id, AUTHOR)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(access.changes.create, KeyAsk(scopes=("read",)), AUTHOR)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        known = {key.record.id for key in access.keys}
    async with rig.open() as access:
        assert {key.record.id for key in access.keys} == known


async def test_when_a_key_was_used_last(rig: Rig, mock_clock: trio.testing.MockClock) -> None:
    """Noted once a minute, not with each request; and at the end."""
    async with rig.open() as access:
        key, secret = await access.changes.create(KeyAsk(scopes=("read",)), AUTHOR)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(access.run)
            for _ in range(5):
                await let_in(access, secret.text)
            await trio.testing.wait_all_tasks_blocked()
            assert key.used_us == 0
            mock_clock.jump(61)
            while not key.used_us:
                await trio.testing.wait_all_tasks_blocked(0.01)
            noted_us = key.used_us
            rig.clock.advance(5)
            await let_in(access, secret.text)
            nursery.cancel_scope.cancel()
        assert noted_us == rig.clock.us - 5_000_000
    async with rig.open() as access:
        found = access.keys.get(key.record.id)
        assert found is not None
        assert found.used_us == rig.clock.us


async def test_an_expired_key_ends_what_it_let_in(rig: Rig, mock_clock: trio.testing.MockClock) -> None:
    """Within about a second, and whoever keeps sessions is asked to look."""
    reviews: list[int] = []

    async def review() -> None:
        reviews.append(rig.clock.us)
        await trio.lowlevel.checkpoint()

    async with rig.open() as access:
        access.on_review = review
        ask = KeyAsk(scopes=("read",), expires_us=rig.clock.us + 10_000_000)
        _, secret = await access.changes.create(ask, AUTHOR)
        who = await let_in(access, secret.text)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(access.run)
            await trio.testing.wait_all_tasks_blocked()
            assert who.standing.ended == ""
            before = len(reviews)
            rig.clock.advance(10)
            mock_clock.jump(1.5)
            while len(reviews) == before:
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert who.standing.ended == "expired"
            assert not access.has_credentials
            nursery.cancel_scope.cancel()


async def test_keys_of_the_configuration(rig: Rig, tmp_path: Path) -> None:
    """By hash, from a file and from a credential of the service manager; the API can't change them."""
    secrets = [draw_key("ovl", Entropy()) for _ in range(3)]
    file, credentials = tmp_path / "key", tmp_path / "credentials"
    file.write_text(f"# of the press\n{secrets[1].text}\n\n")
    file.chmod(0o600)
    credentials.mkdir()
    (credentials / "roof").write_text(secrets[2].text)
    rig.environ["CREDENTIALS_DIRECTORY"] = str(credentials)
    declared = [
        KeySettings("hashed", hashes=(format_digest(secrets[0].digest),), scopes=("read",), declared_in="node.toml:3"),
        KeySettings("press", file=str(file), roles=("producer",), owner="alice", policy="premium"),
        KeySettings("roof", credential="roof", scopes=("publish",), expires="2999-01-01T00:00:00Z"),
    ]
    async with rig.open(declared) as access:
        names = [(await let_in(access, secret.text)).name for secret in secrets]
        assert names == ["key:hashed", "key:press", "key:roof"]
        press = await let_in(access, secrets[1].text)
        assert (press.owner, press.policy, set(press.rights)) == ("alice", "premium", {"publish"})
        for change in (access.changes.revoke("hashed", AUTHOR), access.changes.rotate("hashed", 0, AUTHOR)):
            with pytest.raises(OwnedByConfig) as refused:
                await change
            assert "node.toml:3" in refused.value.detail
    async with rig.open() as access:
        assert len(access.keys) == 0


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("ovl_live_short", 0o600, "must hold API keys"), ("", 0o600, "must hold API keys"), ("{key}", 0o644, "others may read"),
        (None, 0o600, "can't be read"), ("\xff\xfe", 0o600, "must hold API keys"),
    ],
)  # fmt: skip
async def test_files_of_keys_that_cant_be_used(
    rig: Rig, tmp_path: Path, text: str | None, mode: int, words: str
) -> None:
    """The node doesn't start, and says why without showing a secret."""
    secret = draw_key("ovl", Entropy()).text
    path = tmp_path / "key"
    if text is not None:
        path.write_text(text.replace("{key}", secret))
        path.chmod(mode)
    with pytest.raises(ConfigInvalid, match=words) as refused:
        async with rig.open([KeySettings("a", file=str(path), scopes=("read",))]):
            pass
    assert secret not in refused.value.detail


async def test_declarations_that_contradict_each_other(rig: Rig) -> None:
    """A name twice, a secret twice, a role that there isn't, a credential that there isn't."""
    hashed = (format_digest(draw_key("ovl", Entropy()).digest),)
    one = KeySettings("a", hashes=hashed, scopes=("read",))
    for declared, words in (
        ([one, one], "another key has that name"), ([one, KeySettings("b", hashes=hashed)], "has a secret of the key a"),
        ([KeySettings("c", hashes=hashed, roles=("nosuch",))], "no role"),
        ([KeySettings("d", credential="x")], "no credential"),
    ):  # fmt: skip
        with pytest.raises(ConfigInvalid, match=words):
            async with rig.open(declared):
                pass


def test_settings_of_keys_are_checked_where_they_are_written() -> None:
    """Names, scopes, hashes without repeating them, times, and that there is a secret at all."""
    secret = draw_key("ovl", Entropy()).text
    for members, words in (
        ({"name": "Ä", "hashes": ()}, "not a name"), ({"name": "a"}, "needs hashes"),
        ({"name": "a", "hashes": (secret,)}, "hash isn't"), ({"name": "a", "file": "f", "scopes": ("fly",)}, "not a scope"),
        ({"name": "a", "file": "f", "expires": "tomorrow"}, "Invalid isoformat"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words) as refused:
            KeySettings(**members)
        assert secret not in str(refused.value)
    assert stat.S_IMODE(os.stat(".").st_mode)  # the tests run where files have modes at all


async def test_owned_streams(rig: Rig) -> None:
    """Whoever creates one with `manage:@own` owns it, over a restart, until it is deleted."""
    alice, bob = principal_of("manage:@own", "publish:my.*"), principal_of("manage:@own", "publish:my.*", owner="bob")
    async with rig.open() as access:
        await access.stream_changes.define("my.a", Definition(), if_version=None, author=Author(alice, "r"))
        assert access.streams.may(alice, "manage", "my.a")
        assert not access.streams.may(bob, "manage", "my.a")
    async with rig.open() as access:
        assert access.streams.may(alice, "manage", "my.a")
        await access.stream_changes.set_state("my.a", "paused", Author(alice, "r"))
        await access.stream_changes.delete("my.a", Author(alice, "r"))
        await access.stream_changes.define("my.a", Definition(), if_version=None, author=Author(bob, "r"))
        assert access.streams.may(bob, "manage", "my.a")
        records = [(record["action"], record["actor"]) for record in await audited(rig.log)]
    assert records == [
        ("stream.create", "key:alice"), ("stream.state", "key:alice"), ("stream.delete", "key:alice"),
        ("stream.create", "key:bob"),
    ]  # fmt: skip


async def test_a_stream_of_a_manager_is_nobodys(rig: Rig) -> None:
    """And takes an earlier owner's claim to the name away."""
    async with rig.open() as access:
        access.streams.own("a", "alice")
        await access.stream_changes.define("a", Definition(), if_version=None, author=AUTHOR)
        assert access.streams.owners == {}
        await access.stream_changes.define("a", Definition(visibility="public"), if_version=None, author=AUTHOR)
        records = [(record["action"], record["detail"]["visibility"]) for record in await audited(rig.log)]
    assert records == [("stream.create", "private"), ("stream.define", "public")]


async def test_the_services_user_is_always_let_in(rig: Rig) -> None:
    """So that keys can be made where there are none left."""
    async with rig.open() as access:
        await access.changes.create(KeyAsk(scopes=("read",)), AUTHOR)
        claim = await access.gate.claim(Remembered(), SERVICE, head_with())
        assert "admin" in claim.principal.rights
