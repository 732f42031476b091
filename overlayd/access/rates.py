"""Rates: token buckets per principal, stream and address, by count and by bytes.

Each bucket is one number, the time at which it is full again (the generic cell rate algorithm, ITU-T I.371): a bucket
that was never used and one that is full are the same, so nothing has to be refilled or forgotten.
"""

import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from overlayd.model.errors import BatchTooLarge, BodyTooLarge, LimitReached, Rate
from overlayd.model.metrics import Metrics
from overlayd.model.units import Duration, Size

Action: TypeAlias = Literal["publish", "upload", "read", "connect", "control"]
Dimension: TypeAlias = Literal["principal", "stream", "address"]

DOCUMENTED: Mapping[str, str] = {
    "agentpipe_ingest": "100/min", "agentpipe_upload": "10/min", "agentpipe_retrieval": "1000/h",
}  # fmt: skip
"""What AgentPipe documents for its routes; the default of the settings that its routes bring along."""

WAYS = 8
"""Places that a key can be at. Among so many the one that is full soonest gives way to a new key."""
SLACK_S = 1e-6
"""For rounding: a sum of intervals isn't exactly their product."""
_WINDOWS_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "sec": 1, "m": 60}
_RULE = re.compile(
    r"(?P<count>[0-9]+)\s*(?P<unit>[A-Za-z]+)?\s*/\s*(?P<window>[a-z]+)"
    r"(?:\s+burst\s+(?P<burst>[0-9]+)\s*(?P<burst_unit>[A-Za-z]+)?)?"
)
_Rule = Annotated[str, Meta(max_length=100)]


def _rule(description: str) -> Meta:
    return Meta(description=f'{description}: "100/min", "1MiB/s burst 8MiB" or both; "": no bound')


class RateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of what a principal, a stream or an address may do per time."""

    local: Annotated[bool, Meta(description="Count keyless clients of the Unix socket and loopback, too")] = False
    publish_per_principal: Annotated[_Rule, _rule("Packets and their bytes of one principal")] = ""
    publish_per_stream: Annotated[_Rule, _rule("Packets and their bytes into one stream")] = ""
    publish_per_address: Annotated[_Rule, _rule("Packets and their bytes from one address (IPv6: one /64)")] = ""
    upload_per_principal: Annotated[_Rule, _rule("NDJSON uploads of one principal, and their bytes")] = ""
    upload_per_stream: Annotated[_Rule, _rule("NDJSON uploads into one stream, and their bytes")] = ""
    upload_per_address: Annotated[_Rule, _rule("NDJSON uploads from one address, and their bytes")] = ""
    read_per_principal: Annotated[_Rule, _rule("Read requests of one principal, and bytes read")] = ""
    read_per_stream: Annotated[_Rule, _rule("Read requests that name one stream, and bytes read")] = ""
    read_per_address: Annotated[_Rule, _rule("Read requests from one address, and bytes read")] = ""
    connect_per_principal: Annotated[_Rule, _rule("Live connections that one principal opens")] = ""
    connect_per_address: Annotated[_Rule, _rule("Live connections opened from one address")] = ""
    control_per_principal: Annotated[_Rule, _rule("WebSocket messages but publishes of one principal")] = ""
    control_per_address: Annotated[_Rule, _rule("WebSocket messages but publishes from one address")] = ""
    buckets: Annotated[
        int, Meta(ge=WAYS, description="Buckets kept for addresses, and as many for the rest; 16 bytes each")
    ] = 131_072
    save_interval: Annotated[
        Duration, Meta(description="Used-up buckets are stored so often, and at the end, to outlast a restart")
    ] = Duration(60)

    def __post_init__(self) -> None:
        """Raises ValueError for a text that isn't a rate."""
        for name, action, dimension in named_rules():
            parse_rules(name, action, dimension, getattr(self, name))


class RateRule(msgspec.Struct, frozen=True):
    """`quota` per `window_s`, of which `burst` may come at once. `name` is the setting's."""

    name: str
    dimension: Dimension
    is_bytes: bool
    quota: int
    window_s: int
    burst: int
    is_upload: bool = False

    @property
    def interval_s(self) -> float:
        """What one costs."""
        return self.window_s / self.quota

    @property
    def full_s(self) -> float:
        """How long an empty bucket takes to fill."""
        return self.burst * self.window_s / self.quota

    def __str__(self) -> str:
        window = next(text for text, seconds in _WINDOWS_S.items() if seconds == self.window_s)
        return f"{Size(self.quota) if self.is_bytes else self.quota}/{window}"


class Asker(msgspec.Struct, frozen=True, gc=False):
    """On whose account something is taken. "" where there is none."""

    principal: str = ""
    stream: str = ""
    address: str = ""


def named_rules() -> Iterable[tuple[str, Action, Dimension]]:
    """The settings that hold rates, with what they bound."""
    actions: tuple[Action, ...] = ("publish", "upload", "read", "connect", "control")
    dimensions: tuple[Dimension, ...] = ("principal", "stream", "address")
    fields = {field.name for field in msgspec.structs.fields(RateSettings)}
    for action in actions:
        for dimension in dimensions:
            name = f"{action}_per_{dimension}"
            if name in fields:
                yield name, action, dimension


def rules_of(settings: RateSettings) -> dict[str, list[RateRule]]:
    """Every rate of the settings, by action."""
    rules: dict[str, list[RateRule]] = {}
    for name, action, dimension in named_rules():
        rules.setdefault(action, []).extend(parse_rules(name, action, dimension, getattr(settings, name)))
    return rules


def parse_rules(name: str, action: str, dimension: Dimension, text: str) -> list[RateRule]:
    """Rates of a text such as `"100/min, 1MiB/s burst 8MiB"`; none of "". Raises ValueError."""
    rules = []
    for part in text.split(",") if text.strip() else ():
        match = _RULE.fullmatch(part.strip())
        window_s = _WINDOWS_S.get(match["window"]) if match else None
        if match is None or window_s is None:
            raise ValueError(
                f'{name}: not a rate: {part.strip()!r}; write for example "100/min" or "1MiB/s burst 8MiB"'
            )
        is_bytes = match["unit"] is not None
        if match["burst"] is not None and is_bytes != (match["burst_unit"] is not None):
            raise ValueError(f"{name}: the burst of {part.strip()!r} must be given in the same unit")
        quota = Size.parse(match["count"] + (match["unit"] or ""))
        burst = quota if match["burst"] is None else Size.parse(match["burst"] + (match["burst_unit"] or ""))
        if not quota or not burst:
            raise ValueError(f'{name}: {part.strip()!r} lets nothing through; leave it "" for no bound')
        rules.append(RateRule(name, dimension, is_bytes, int(quota), window_s, int(burst), action == "upload"))
    return rules


@lru_cache(maxsize=4096)
def address_group(address: str) -> str:
    """What counts as one address: an IPv4 address, an IPv6 /64 (one household), or `uid:<uid>` as it is."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"


class Buckets:
    """Times at which buckets are full again, by 64-bit key, in a fixed number of places.

    When all places of a new key are taken, the bucket that is full soonest is forgotten: a flood of addresses that
    each did little pushes itself out, not those that did much.
    """

    def __init__(self, count: int) -> None:
        sets = 1 << max(0, (max(count, WAYS) // WAYS - 1).bit_length())
        self._mask = sets - 1
        self._keys = array("Q", bytes(8 * sets * WAYS))
        self._full_at = array("d", bytes(8 * sets * WAYS))
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._keys)

    def full_at(self, key: int) -> float:
        """0 for a key that isn't held."""
        base = (key & self._mask) * WAYS
        try:
            return self._full_at[self._keys.index(key, base, base + WAYS)]
        except ValueError:
            return 0.0

    def put(self, key: int, full_at: float, now: float) -> None:
        """Notes a bucket's time."""
        base = (key & self._mask) * WAYS
        try:
            place = self._keys.index(key, base, base + WAYS)
        except ValueError:
            times = self._full_at[base : base + WAYS]
            soonest = min(times)
            place = base + times.index(soonest)
            self.forgotten += soonest > now
            self._keys[place] = key
        self._full_at[place] = full_at

    def debts(self, now: float, at_least_s: float) -> list[tuple[float, int]]:
        """(seconds until full, key) of the buckets that take so long."""
        return [
            (full_at - now, key)
            for key, full_at in zip(self._keys, self._full_at, strict=True)
            if full_at - now >= at_least_s
        ]


class RateBook:
    """All buckets of the node. Every call takes the same few steps whatever is in it."""

    def __init__(
        self, rules: Mapping[str, Iterable[RateRule]], *, now: Callable[[], float], metrics: Metrics, secret: bytes,
        count: int = 131_072,
    ) -> None:  # fmt: skip
        """`rules` by action or by a name of your own. `now`: seconds of a clock; where it steps back, time stands
        still. `secret` keys the hashes by which subjects are held. `count`: buckets for addresses, and for the rest."""
        self._rules = {name: tuple(found) for name, found in rules.items() if found}
        self._clock = now
        self._now_s = now()
        self._metrics = metrics
        self._secret = secret
        self._is_used = False
        has_rules = bool(self._rules)
        self.addresses = Buckets(count if has_rules else WAYS)
        self.others = Buckets(count if has_rules else WAYS)

    def __repr__(self) -> str:
        return f"RateBook({', '.join(self._rules) or 'no rates'})"

    @classmethod
    def of_settings(
        cls, settings: RateSettings, *, now: Callable[[], float], metrics: Metrics, secret: bytes,
        more: Mapping[str, Iterable[RateRule]] | None = None,
    ) -> "RateBook":  # fmt: skip
        """The book that the settings ask for. `more`: named rates of other parts, taken with `take(name, …)`."""
        rules: dict[str, list[RateRule]] = {name: list(found) for name, found in (more or {}).items()}
        for action, found in rules_of(settings).items():
            rules.setdefault(action, []).extend(found)
        return cls(rules, now=now, metrics=metrics, secret=secret, count=settings.buckets)

    def replace_rules(self, settings: RateSettings) -> None:
        """Other rates from now on. Buckets go by a rate's name, so a fill level outlasts another quota."""
        if not self._rules:  # without rates there was no room for buckets
            self.addresses, self.others = Buckets(settings.buckets), Buckets(settings.buckets)
        self._rules = {name: tuple(found) for name, found in rules_of(settings).items() if found}

    @property
    def names(self) -> frozenset[str]:
        """The actions and names that have a rate."""
        return frozenset(self._rules)

    @property
    def is_used(self) -> bool:
        """Whether anything was taken since it was made."""
        return self._is_used

    def now_s(self) -> float:
        """The clock's time, which never goes back."""
        self._now_s = max(self._now_s, self._clock())
        return self._now_s

    def take(self, name: str, who: Asker, *, count: int = 1, size: int = 0, is_part: bool = False) -> None:
        """Takes from every bucket that is meant, or from none. `is_part`: the node itself cut it out of something
        longer, so when it is more than ever comes at once, a full bucket is enough, and is overdrawn.

        Raises LimitReached with the rate that was hit; BatchTooLarge or BodyTooLarge for more than ever comes at once.
        """
        rules = self._rules.get(name)
        if rules is None:
            return
        now = self.now_s()
        self._is_used = True
        taken: list[tuple[Buckets, int, float]] = []
        for rule in rules:
            subject, amount = _subject(rule, who), size if rule.is_bytes else count
            if not subject or not amount:
                continue
            buckets, key = self._place(rule, subject)
            full_at = max(buckets.full_at(key), now) + amount * rule.interval_s
            allowed_s = amount * rule.interval_s if is_part and amount > rule.burst else rule.full_s
            if full_at - now > allowed_s + SLACK_S:
                raise self._refuse(rule, subject, rule.burst if is_part else amount, full_at - now)
            taken.append((buckets, key, full_at))
        for buckets, key, full_at in taken:
            buckets.put(key, full_at, now)

    def check(self, name: str, who: Asker) -> None:
        """Raises LimitReached when not even one more would be taken. Takes nothing."""
        rules = self._rules.get(name)
        if rules is None:
            return
        now = self.now_s()
        for rule in rules:
            subject = _subject(rule, who)
            if not subject:
                continue
            buckets, key = self._place(rule, subject)
            full_s = max(buckets.full_at(key) - now, 0.0) + rule.interval_s
            if full_s > rule.full_s + SLACK_S:
                raise self._refuse(rule, subject, 1, full_s)

    def spend(self, name: str, who: Asker, *, count: int = 0, size: int = 0) -> None:
        """Takes what was used already, also beyond empty: whoever comes next waits for it."""
        now = self.now_s()
        for rule in self._rules.get(name, ()):
            subject, amount = _subject(rule, who), size if rule.is_bytes else count
            if subject and amount:
                buckets, key = self._place(rule, subject)
                buckets.put(key, max(buckets.full_at(key), now) + amount * rule.interval_s, now)

    def tell(self, name: str, who: Asker) -> Rate | None:
        """The rate with the least left, to tell along with an answer; None where there is none."""
        now, told = self.now_s(), []
        for rule in self._rules.get(name, ()):
            subject = _subject(rule, who)
            if subject:
                buckets, key = self._place(rule, subject)
                debt_s = max(buckets.full_at(key) - now, 0.0)
                left = (rule.full_s - debt_s) / rule.full_s
                told.append((left, Rate(rule.name, rule.quota, rule.window_s, _left(rule, debt_s), debt_s)))
        return min(told, key=lambda pair: pair[0])[1] if told else None

    def _place(self, rule: RateRule, subject: str) -> tuple[Buckets, int]:
        text = f"{rule.name}\0{rule.is_bytes:d}\0{subject}".encode()
        key = int.from_bytes(blake2b(text, digest_size=8, key=self._secret).digest(), "big") or 1
        return self.addresses if rule.dimension == "address" else self.others, key

    def _refuse(self, rule: RateRule, subject: str, amount: int, full_s: float) -> Exception:
        self._metrics.count_limit_hit(rule.name)
        what = "bytes" if rule.is_bytes else "uploads" if rule.is_upload else "times"
        if amount > rule.burst:
            kind = BodyTooLarge if rule.is_bytes else BatchTooLarge
            return kind(
                f"at most {rule.burst} {what if rule.is_bytes else 'packets'} are taken at once from {subject}",
                subject=rule.name, hint="send it in smaller parts",
            )  # fmt: skip
        wait_s = full_s - rule.full_s
        left = max(0, _left(rule, full_s - amount * rule.interval_s))
        return LimitReached(
            f"{subject} may do this {rule} {'' if rule.is_bytes else what}".rstrip(),
            subject=rule.name, hint="wait as long as Retry-After says", retry_after_s=wait_s,
        ).with_rate(Rate(rule.name, rule.quota, rule.window_s, left, wait_s))  # fmt: skip


def _subject(rule: RateRule, who: Asker) -> str:
    if rule.dimension == "address":
        return address_group(who.address)
    return who.principal if rule.dimension == "principal" else who.stream


def _left(rule: RateRule, debt_s: float) -> int:
    return max(0, math.floor((rule.full_s - debt_s) / rule.interval_s + SLACK_S))
