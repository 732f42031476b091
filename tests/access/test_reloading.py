"""Settings of access that change while the node runs: who stays in, who is ended, and what waits for a restart."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from access_rig import SERVICE, THERE, TurnedClock, head_with
from standing_clock import NO_STEP
from token_maker import ISSUER, KEYS, make_token

from overlayd.access.certificates import CertificateScheme
from overlayd.access.gate import Remembered
from overlayd.access.identity.settings import IdentitySettings, KnownIdentitySettings
from overlayd.access.identity.tables import IDENTITY_FEATURE
from overlayd.access.jwt.settings import JwtSettings
from overlayd.access.key_changes import Author, KeyAsk
from overlayd.access.key_records import ACCESS_FEATURE, KeyRecord, SecretRecord, store_key
from overlayd.access.node_access import NodeAccess
from overlayd.access.node_schemes import NodeSchemes
from overlayd.access.origin import AccessRules, Peer, PeerCertificate
from overlayd.access.principal import Principal
from overlayd.access.secret_text import NewSecret, draw_key, format_digest
from overlayd.access.settings import (
    AccessSettings,
    CertificateSettings,
    KeySettings,
    RoleSettings,
    UnixUserSettings,
)
from overlayd.bsv.keys import PrivateKey
from overlayd.model.clock import Entropy
from overlayd.model.definition import Definition
from overlayd.model.errors import ConfigInvalid, Forbidden, LimitReached, Unauthorized
from overlayd.model.limits import Limits
from overlayd.model.metrics import Metrics
from overlayd.model.units import Size
from overlayd.storage import Log, StorageSettings, open_log
from overlayd.storage.own import OwnPacket

AUTHOR = Author(Principal(name="unix:0", kind="unix", rights=frozenset(("admin",)), address="uid:0"), "r-1")
FARMER = PrivateKey(bytes(31) + b"\x07").public_key.hex()
HOLDER = PeerCertificate(subject="CN=press-7,O=Example", names=(), fingerprint="sha256:" + "ab" * 32)
OVER_TLS = Peer("tcp", "192.0.2.9", 40000, "192.0.2.1", 7878, certificate=HOLDER)
COLLECTOR = Peer("unix", uid=110, gid=110)


class Rig:
    """Access with all its schemes over a real log, and reloads."""

    def __init__(self, log: Log, settings: AccessSettings, declared: Sequence[KeySettings], directory: Path) -> None:
        clock, metrics = TurnedClock(), Metrics()
        self.log = log
        self.reviews = 0
        self.schemes = NodeSchemes(
            settings=settings, directory=directory, environ={}, store=log, fetch=_fetch_nothing, clock=clock,
            entropy=Entropy(), metrics=metrics, may_create=True,
            certificates=CertificateScheme(settings.certificates, is_asked=True),
        )  # fmt: skip
        self.access = NodeAccess(
            log=log, rules=AccessRules(service_uid=1000), settings=settings, declared=declared, environ={},
            make_audit=_make_audit, clock=clock, entropy=Entropy(), metrics=metrics, schemes=self.schemes.all,
        )  # fmt: skip

    async def reload(self, settings: AccessSettings, declared: Sequence[KeySettings] = ()) -> tuple[str, ...]:
        commit, waiting = self.access.prepare_reload(declared, settings, self.schemes)
        await commit()
        return waiting

    async def let_in(self, secret: str = "", peer: Peer = THERE) -> Principal:
        return (await self.access.gate.claim(Remembered(), peer, head_with(secret))).principal


def _make_audit(type: str, data: dict[str, Any]) -> OwnPacket:
    return OwnPacket("overlayd.audit", Definition(), type, msgspec.json.encode(data))


async def _fetch_nothing(url: str, networks: tuple[str, ...]) -> bytes:
    raise AssertionError("nothing is fetched")


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator["Opener"]:
    """Opens a rig with the settings that it begins with."""
    storage = StorageSettings(reserve=Size(0), disk_high_water=Size(0), disk_low_water=Size(0), clock_step=NO_STEP)
    async with open_log(
        tmp_path, settings=storage, limits=Limits(), defaults=Definition(), clock=TurnedClock(), entropy=Entropy(),
        metrics=Metrics(), features=(ACCESS_FEATURE, IDENTITY_FEATURE),
    ) as log:  # fmt: skip
        yield Opener(log, tmp_path)


class Opener:
    """Makes the rig once its first settings are known."""

    def __init__(self, log: Log, directory: Path) -> None:
        self.log = log
        self.directory = directory

    @asynccontextmanager
    async def open(
        self, settings: AccessSettings | None = None, declared: Sequence[KeySettings] = ()
    ) -> AsyncIterator[Rig]:  # fmt: skip
        rig = Rig(self.log, settings or AccessSettings(), declared, self.directory)
        await rig.schemes.start()
        await rig.access.load()
        yield rig


def declare(name: str, *secrets: NewSecret, **more: Any) -> KeySettings:
    """A key of the configuration."""
    return KeySettings(
        name=name, hashes=tuple(format_digest(secret.digest) for secret in secrets), declared_in="node.toml:1", **more
    )


async def test_declared_keys_are_replaced(opened: Opener) -> None:
    """One that stays the same stays in; one that is gone counts no more, and another one counts at once."""
    first, second, third = (draw_key("ovl", Entropy()) for _ in range(3))
    kept, gone = declare("kept", first, scopes=("read",)), declare("gone", second, scopes=("read",))
    async with opened.open(declared=[kept, gone]) as rig:
        stays, goes = await rig.let_in(first.text), await rig.let_in(second.text)
        before = rig.access.keys.get("kept")
        assert before is not None
        assert await rig.reload(AccessSettings(), [kept, declare("new", third, scopes=("publish",))]) == ()
        assert (stays.standing.ended, goes.standing.ended) == ("", "revoked")
        with pytest.raises(Unauthorized):
            await rig.let_in(second.text)
        assert (await rig.let_in(third.text)).name == "key:new"
        again = rig.access.keys.get("kept")
        assert again is not None
        assert again.record.created_us == before.record.created_us


async def test_a_declared_key_with_other_rights(opened: Opener) -> None:
    """Whoever was in under the old ones is let in anew; so is whoever has another secret, owner or end."""
    secret, other = draw_key("ovl", Entropy()), draw_key("ovl", Entropy())
    async with opened.open(declared=[declare("k", secret, scopes=("read",))]) as rig:
        for changed, ended in (
            (declare("k", secret, other, scopes=("read",)), ""),
            (declare("k", secret, other, scopes=("publish",)), "changed"),
            (declare("k", secret, other, scopes=("publish",), owner="bob"), "changed"),
            (declare("k", secret, other, scopes=("publish",), owner="bob", policy="premium"), "changed"),
            (declare("k", other, scopes=("publish",), owner="bob", policy="premium"), "revoked"),
        ):
            was = await rig.let_in(secret.text)
            await rig.reload(AccessSettings(), [changed])
            assert was.standing.ended == ended


async def test_a_broken_reload_changes_nothing(opened: Opener) -> None:
    """Whatever is wrong is found before anything is taken over."""
    secret = draw_key("ovl", Entropy())
    declared = [declare("k", secret, scopes=("read",))]
    roles = (RoleSettings("r", ("publish",)),)
    wrong: list[tuple[AccessSettings, list[KeySettings]]] = [
        (AccessSettings(roles=roles), [declare("k", secret, roles=("nosuch",))]),
        (AccessSettings(roles=roles), [declare("k", secret), declare("l", secret)]),
        (AccessSettings(roles=roles), [KeySettings("k", file="/nonexistent")]),
        (AccessSettings(roles=roles, unix_users=(UnixUserSettings("u", uid=1, roles=("nosuch",)),)), declared),
        (AccessSettings(roles=roles, identities=(KnownIdentitySettings("f", "02" + "f" * 64),)), declared),
        (AccessSettings(roles=roles, certificates=(CertificateSettings("c", subject="CN=a", roles=("nosuch",)),)), declared),
        (AccessSettings(roles=roles, jwt=(issuer(opened.directory, name="gone", file="/nonexistent"),)), declared),
    ]  # fmt: skip
    async with opened.open(declared=declared) as rig:
        was = await rig.let_in(secret.text)
        for settings, keys in wrong:
            with pytest.raises(ConfigInvalid):
                rig.access.prepare_reload(keys, settings, rig.schemes)
        assert was.standing.ended == ""
        assert rig.access.keys.roles.names == ["admin", "agent", "auditor", "consumer", "operator", "producer"]
        assert rig.access.settings == AccessSettings()


async def test_roles_mean_something_else(opened: Opener) -> None:
    """Keys with them are judged anew, those that the API made, too; others aren't touched."""
    async with opened.open(AccessSettings(roles=(RoleSettings("station", ("publish:a",)),))) as rig:
        made, secret = await rig.access.changes.create(KeyAsk(roles=("station",)), AUTHOR)
        _, plain = await rig.access.changes.create(KeyAsk(scopes=("read",)), AUTHOR)
        was, untouched = await rig.let_in(secret.text), await rig.let_in(plain.text)
        await rig.reload(AccessSettings(roles=(RoleSettings("station", ("publish:b",)),)))
        assert (was.standing.ended, untouched.standing.ended) == ("changed", "")
        assert [str(scope) for scope in (await rig.let_in(secret.text)).grants.scopes] == ["publish:b"]
        await rig.reload(AccessSettings())
        assert (await rig.let_in(secret.text)).grants.scopes == ()
        assert rig.access.keys.get(made.record.id) is not None


async def test_a_stored_key_under_a_declared_name_comes_back(opened: Opener) -> None:
    """The declaration hides it as long as it stands."""
    stored, declared = draw_key("ovl", Entropy()), draw_key("ovl", Entropy())
    record = KeyRecord("k", "ovl", "o", ("read",), 1, (SecretRecord(stored.digest, "", 1),))
    await opened.log.append_own([], [store_key(record)])
    async with opened.open(declared=[declare("k", declared, scopes=("read",))]) as rig:
        with pytest.raises(Unauthorized):
            await rig.let_in(stored.text)
        await rig.reload(AccessSettings())
        assert (await rig.let_in(stored.text)).owner == "o"
        with pytest.raises(Unauthorized):
            await rig.let_in(declared.text)


async def test_users_of_this_machine(opened: Opener) -> None:
    """Other entries end what the old ones let in; the service's own user stays."""
    async with opened.open(AccessSettings(unix_users=(UnixUserSettings("c", uid=110, scopes=("publish:a",)),))) as rig:
        was, service = await rig.let_in(peer=COLLECTOR), await rig.let_in(peer=SERVICE)
        memory = Remembered()
        await rig.access.gate.claim(memory, COLLECTOR, head_with())
        await rig.reload(AccessSettings(unix_users=(UnixUserSettings("c", uid=110, scopes=("publish:b",)),)))
        assert (was.standing.ended, service.standing.ended) == ("changed", "")
        assert rig.access.gate.recall(memory, head_with()) is None
        assert [str(scope) for scope in (await rig.let_in(peer=COLLECTOR)).grants.scopes] == ["publish:b"]


async def test_loopback_that_is_free_no_more(opened: Opener) -> None:
    """Whoever came in without a key is ended."""
    here = Peer("tcp", "127.0.0.1", 40000, "127.0.0.1", 7878)
    declared = [declare("k", draw_key("ovl", Entropy()), scopes=("read",))]
    async with opened.open(AccessSettings(loopback_free=True), declared) as rig:
        was = await rig.let_in(peer=here)
        await rig.reload(AccessSettings(), declared)
        assert was.standing.ended == "changed"
        with pytest.raises(Unauthorized):
            await rig.let_in(peer=here)


def farmer(*scopes: str, **more: Any) -> KnownIdentitySettings:
    """An identity."""
    return KnownIdentitySettings("farm", FARMER, scopes=scopes, **more)


async def test_identities(opened: Opener) -> None:
    """Who is the same stays; who may do something else comes anew; who isn't listed any more is nobody."""
    async with opened.open(AccessSettings(identities=(farmer("read"),))) as rig:
        assert rig.schemes.mutual is not None
        book = rig.schemes.identities
        first = book.find(FARMER)
        assert await rig.reload(AccessSettings(identities=(farmer("read"),))) == ()
        assert (book.find(FARMER).standing, first.standing.ended) == (first.standing, "")
        await rig.reload(AccessSettings(identities=(farmer("publish"),)))
        assert first.standing.ended == "changed"
        second = book.find(FARMER)
        assert second.grants.everywhere == {"publish"}
        assert book.find_grants("farm") == second.grants
        assert await rig.reload(AccessSettings(identity=IdentitySettings(anyone=("read",)))) == ()
        assert second.standing.ended == "revoked"
        stranger = book.find(FARMER)
        assert stranger.name == f"identity:{FARMER}"
        assert await rig.reload(AccessSettings()) == ("access.mutual",)
        assert stranger.standing.ended == "changed"
        with pytest.raises(Unauthorized):
            book.find(FARMER)


async def test_signed_headers_begin_to_count(opened: Opener) -> None:
    """A node without identities takes them from then on; mutual authentication waits for a restart."""
    async with opened.open() as rig:
        assert not rig.access.gate.has_credentials
        assert await rig.reload(AccessSettings(identities=(farmer("read", scheme="preimage-v1"),))) == (
            "access.mutual",
        )
        assert rig.access.gate.has_credentials
        assert rig.access.gate.refresh() is False


async def test_certificates(opened: Opener) -> None:
    """Rules that differ end what the old ones let in."""
    rule = CertificateSettings("presses", subject="CN=*,O=Example", scopes=("read",))
    async with opened.open(AccessSettings(certificates=(rule,))) as rig:
        was = await rig.let_in(peer=OVER_TLS)
        await rig.reload(AccessSettings(certificates=(rule,)))
        assert was.standing.ended == ""
        await rig.reload(AccessSettings(certificates=(msgspec.structs.replace(rule, scopes=("publish",)),)))
        assert was.standing.ended == "changed"
        assert (await rig.let_in(peer=OVER_TLS)).rights == {"publish"}
        await rig.reload(AccessSettings())
        with pytest.raises(Forbidden):
            await rig.let_in(peer=OVER_TLS)


def issuer(directory: Path, **more: Any) -> JwtSettings:
    """An issuer with a key in a file."""
    path = directory / "issuer.pem"
    path.write_bytes(KEYS["EdDSA"].as_pem(private=False))
    path.chmod(0o600)
    given = {"name": "login", "file": str(path), "scopes": ("read",), **more}
    return JwtSettings(issuer=ISSUER, algorithm="EdDSA", audience=("overlayd",), **given)


async def test_issuers(opened: Opener) -> None:
    """The same key of the same issuer goes on; another key, other rights or none end its tokens."""
    first = issuer(opened.directory)
    async with opened.open(AccessSettings(jwt=(first,))) as rig:
        token = make_token()
        was = await rig.let_in(token)
        await rig.reload(AccessSettings(jwt=(first,)))
        assert was.standing.ended == ""
        await rig.reload(AccessSettings(jwt=(msgspec.structs.replace(first, scopes=("publish",)),)))
        assert was.standing.ended == "revoked"
        now = await rig.let_in(token)
        assert now.rights == {"publish"}
        await rig.reload(AccessSettings())
        assert now.standing.ended == "revoked"
        with pytest.raises(Unauthorized):
            await rig.let_in(token)


async def test_an_issuers_roles(opened: Opener) -> None:
    """A role that means something else ends the tokens that it gave rights to."""
    settings = AccessSettings(
        roles=(RoleSettings("r", ("read",)),), jwt=(issuer(opened.directory, scopes=(), roles=("r",)),)
    )
    async with opened.open(settings) as rig:
        was = await rig.let_in(make_token())
        await rig.reload(msgspec.structs.replace(settings, roles=(RoleSettings("r", ("publish",)),)))
        assert was.standing.ended == "revoked"
        assert (await rig.let_in(make_token())).rights == {"publish"}


async def test_what_waits_for_a_restart_is_told(opened: Opener) -> None:
    """By name; it keeps its value until then, and limits that are only looked at count at once."""
    async with opened.open() as rig:
        wanted = AccessSettings(
            keys_max=1, failures_per_address=3, nonce_mode="durable", identity=IdentitySettings(clock_nonces_max=7)
        )
        waiting = await rig.reload(wanted)
        assert waiting == ("access.failures_per_address", "access.identity.clock_nonces_max", "access.nonce_mode")
        assert rig.access.settings == AccessSettings(keys_max=1)
        await rig.access.changes.create(KeyAsk(scopes=("read",)), AUTHOR)
        with pytest.raises(LimitReached):
            await rig.access.changes.create(KeyAsk(scopes=("read",)), AUTHOR)
