"""Keys, gates and heads for the tests of access, without a node."""

from collections.abc import Sequence

import msgspec

from overlayd.access.bearers import KeyScheme, TicketScheme
from overlayd.access.failures import FailureBook
from overlayd.access.gate import Gate, Scheme
from overlayd.access.key_records import KeyRecord, SecretRecord
from overlayd.access.keys import Key, KeyBook
from overlayd.access.origin import AccessRules, Peer
from overlayd.access.principal import Principal, Standing
from overlayd.access.roles import RoleBook
from overlayd.access.scopes import grants_of, parse_scope
from overlayd.access.secret_text import NewSecret, draw_key
from overlayd.access.settings import AccessSettings
from overlayd.access.tickets import TicketBook
from overlayd.access.unix_users import UnixUsers
from overlayd.model.audit import AuditRecord
from overlayd.model.clock import Entropy
from overlayd.model.metrics import Metrics

NOW_US = 1_700_000_000_000_000
HERE = Peer("tcp", "127.0.0.1", 40000, "127.0.0.1", 7878)
THERE = Peer("tcp", "192.0.2.9", 40000, "192.0.2.1", 7878)
SERVICE = Peer("unix", uid=1000, gid=1000)
OTHER_USER = Peer("unix", uid=1234, gid=100, groups=(100, 7))


class TurnedClock:
    """Wall and monotonic time that move when a test says so."""

    def __init__(self) -> None:
        self.us = NOW_US
        self.s = 1000.0

    def now_us(self) -> int:
        return self.us

    def now_s(self) -> float:
        return self.s

    def advance(self, seconds: float) -> None:
        self.us += int(seconds * 1_000_000)
        self.s += seconds


class FakeHead(msgspec.Struct, frozen=True):
    """What the gate asks of a head."""

    method: str = "POST"
    path: str = "/v1/streams/a/packets"
    query: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ((b"host", b"localhost"),)

    def get(self, name: bytes) -> str | None:
        return next((value.decode("latin-1") for known, value in self.headers if known == name), None)


def head_with(key: str = "", *, method: str = "POST", path: str = "/v1/streams/a/packets", query: str = "",
              **headers: str) -> FakeHead:  # fmt: skip
    """A head with a bearer and further headers, keywords with `_` for `-`."""
    named = [(b"host", b"localhost")]
    named += [(name.replace("_", "-").lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    if key:
        named.append((b"authorization", f"Bearer {key}".encode()))
    return FakeHead(method, path, query, tuple(named))


def record_of(id: str, secret: NewSecret, *scopes: str, owner: str = "", expires_us: int = 0) -> KeyRecord:
    """A stored key with one secret."""
    return KeyRecord(
        id=id, kind="ovl", owner=owner or id, scopes=scopes or ("publish",), created_us=NOW_US,
        secrets=(SecretRecord(secret.digest, secret.prefix, NOW_US),), expires_us=expires_us,
    )  # fmt: skip


def principal_of(*scopes: str, owner: str = "alice", standing: Standing | None = None) -> Principal:
    """Somebody with a key that has these scopes."""
    grants = grants_of(map(parse_scope, scopes))
    return Principal(
        name=f"key:{owner}", kind="key", rights=grants.everywhere, address="192.0.2.9", grants=grants, owner=owner,
        standing=standing or Standing(),
    )  # fmt: skip


class GateRig:
    """A gate with a key book behind it, and everything that it told the audit."""

    def __init__(
        self, *, rules: AccessRules | None = None, schemes: Sequence[Scheme] = (), unix_users: UnixUsers | None = None,
        is_loopback_free: bool = False, settings: AccessSettings | None = None,
    ) -> None:  # fmt: skip
        self.settings = settings or AccessSettings()
        self.clock = TurnedClock()
        self.metrics = Metrics()
        self.records: list[AuditRecord] = []
        self.keys = KeyBook(RoleBook())
        self.tickets = TicketBook(self.settings, Entropy(), self.metrics, self.clock.now_s)
        self.failures = FailureBook(self.settings, self.metrics, self.clock.now_s)
        self.gate = Gate(
            rules=rules or AccessRules(service_uid=1000),
            schemes=(KeyScheme(self.keys, self.clock, may_create=True), TicketScheme(self.tickets), *schemes),
            failures=self.failures, audit=self.records.append, clock=self.clock, metrics=self.metrics,
            unix_users=unix_users or UnixUsers(()), is_loopback_free=is_loopback_free,
        )  # fmt: skip

    def add_key(self, id: str = "k1", *scopes: str, expires_us: int = 0) -> tuple[Key, str]:
        """A key that counts from now on, and its secret."""
        secret = draw_key("ovl", Entropy())
        key = self.keys.put(record_of(id, secret, *scopes, expires_us=expires_us))
        self.gate.refresh()
        return key, secret.text

    def limit_hits(self, limit: str) -> float:
        return self.metrics.registry.get_sample_value("overlayd_limit_hits_total", {"limit": limit}) or 0.0
