"""The one decision: who may do what to which stream."""

import pytest
from access_rig import principal_of

from overlayd.access.principal import (
    EVERYDAY,
    EVERYTHING,
    Principal,
    Standing,
    StreamFacts,
    may,
    may_hold,
    may_some,
    require,
    require_some,
)
from overlayd.access.scopes import RIGHTS, Right, parse_scope
from overlayd.access.stream_guard import StreamGuard
from overlayd.model.definition import Definition
from overlayd.model.errors import Forbidden, Unauthorized
from overlayd.storage import Stream

LOOPBACK = Principal(name="loopback", kind="loopback", rights=EVERYDAY, address="127.0.0.1")
SERVICE = Principal(name="unix:0", kind="unix", rights=EVERYTHING, address="uid:0")


def stream(name: str, visibility: str = "private") -> Stream:
    """A stream as the log would know it."""
    definition = Definition(visibility=visibility)  # type: ignore[arg-type]
    return Stream(
        id=1, name=name, stream_hash=bytes(32), ssalt=bytes(16), definition=definition, definition_version=1,
        state="active", owner="api", created_us=0,
    )  # fmt: skip


def guard_of(*streams: Stream) -> StreamGuard:
    """A guard that knows these streams."""
    known = {one.name: one for one in streams}
    return StreamGuard(known.get)


def test_a_right_without_a_stream_is_over_the_whole_node() -> None:
    """A pattern isn't enough for it."""
    assert may(principal_of("manage"), "manage")
    assert not may(principal_of("manage:a"), "manage")
    assert may_some(principal_of("manage:a"), "manage")
    with pytest.raises(Forbidden) as refused:
        require(principal_of("manage:a"), "manage")
    assert refused.value.subject == "manage"


def test_a_pattern_is_over_its_streams() -> None:
    """And over no others; the refusal names the stream."""
    who = principal_of("publish:weather.*")
    require(who, "publish", stream="weather.a")
    with pytest.raises(Forbidden) as refused:
        require(who, "publish", stream="sea.a")
    assert refused.value.subject == "sea.a"
    with pytest.raises(Forbidden):
        require(who, "read", stream="weather.a")


def test_public_streams_are_read_by_everybody() -> None:
    """But neither published to nor managed."""
    facts = StreamFacts("news", "public")
    who = principal_of("publish:else")
    assert [right for right in RIGHTS if may(who, right, facts)] == ["read", "subscribe"]
    assert not may(who, "read", StreamFacts("news", "private"))


def test_an_owner_needs_the_scope_for_what_they_own() -> None:
    """Ownership widens a scope that asks for it, and gives nothing else."""
    mine = StreamFacts("mine", owner="alice")
    assert may(principal_of("manage:@own"), "manage", mine)
    assert not may(principal_of("manage:@own", owner="bob"), "manage", mine)
    assert not may(principal_of("manage:@own"), "read", mine)
    assert not may(principal_of("publish:mine"), "manage", mine)
    assert not may(principal_of("manage:@own", owner=""), "manage", StreamFacts("nobodys"))


@pytest.mark.parametrize("right", RIGHTS)
def test_the_nodes_own_streams_are_read_at_most(right: Right) -> None:
    """The audit stream by those with `audit`, the others by those that name them and by admins; nobody does more."""
    reading = right in ("read", "subscribe")
    assert may(SERVICE, right, "overlayd.audit") is reading
    assert may(principal_of("audit"), right, "overlayd.audit") is reading
    assert not may(LOOPBACK, right, "overlayd.audit")
    assert not may(principal_of("admin", "read", "manage", "publish"), right, "overlayd.audit")
    assert may(principal_of("admin"), right, "overlayd.events") is reading
    assert not may(LOOPBACK, right, "overlayd.events")
    assert may(principal_of("read:overlayd.events"), right, "overlayd.events") is (right == "read")
    assert not may(principal_of("read:overlayd.>"), right, "overlayd.audit")


def test_a_credential_that_ended_counts_no_more() -> None:
    """Also for somebody who was let in before."""
    standing = Standing()
    who = principal_of("publish", standing=standing)
    require(who, "publish", stream="a")
    standing.ended = "revoked"
    with pytest.raises(Unauthorized, match="revoked"):
        require(who, "publish", stream="a")
    with pytest.raises(Unauthorized):
        require_some(who, "publish")
    with pytest.raises(Unauthorized):
        guard_of().require(who, "publish", "a")


def test_the_guard_looks_at_visibility_and_owner() -> None:
    """What the name alone doesn't settle."""
    guard = guard_of(stream("news", "public"), stream("mine"))
    guard.own("mine", "alice")
    reader, owner = principal_of("publish:x"), principal_of("manage:@own", "publish:mine")
    assert guard.may(reader, "read", "news")
    assert not guard.may(reader, "read", "mine")
    assert not guard.may(reader, "publish", "news")
    assert guard.may(owner, "manage", "mine")
    guard.disown("mine")
    assert not guard.may(owner, "manage", "mine")


def test_whether_a_stream_exists_isnt_told_to_those_without_a_right() -> None:
    """The refusal is the same for a private stream and for none."""
    guard = guard_of(stream("secret"))
    told = []
    for name in ("secret", "nosuch"):
        with pytest.raises(Forbidden) as refused:
            guard.require(principal_of("read:else"), "read", name)
        told.append((refused.value.detail.replace(name, ""), refused.value.hint))
    assert told[0] == told[1]


def test_who_creates_streams_to_own() -> None:
    """Under names that they may publish to, unless somebody else owns the name."""
    guard = guard_of(stream("taken"))
    who = principal_of("manage:@own", "publish:my.*")
    guard.require_define(who, "my.a")
    assert guard.may_own(who, "my.a")
    for name in ("else.a", "taken", "overlayd.audit"):
        with pytest.raises(Forbidden):
            guard.require_define(who, name)
    guard.own("my.b", "bob")
    with pytest.raises(Forbidden):
        guard.require_define(who, "my.b")
    guard.require_define(principal_of("manage:my.*"), "my.b")


def test_sight_is_everything_for_those_with_the_right_everywhere() -> None:
    """So that most readers share one; the node's own streams narrow it only where they are asked for."""
    guard = guard_of()
    assert guard.sight(LOOPBACK, "read", ()) is None
    assert guard.sight(SERVICE, "read", ("overlayd.>",)) is None
    sight = guard.sight(LOOPBACK, "read", ("overlayd.>",))
    assert sight is not None
    assert not guard.sees(sight, stream("overlayd.audit"))
    with pytest.raises(Forbidden):
        guard.sight(LOOPBACK, "read", ("overlayd.audit",))


def test_sight_of_a_pattern() -> None:
    """Hides what the key isn't for; equal keys have equal sights; nobody without any right has one."""
    guard = guard_of(stream("news", "public"))
    sight = guard.sight(principal_of("subscribe:a.*"), "subscribe", (">",))
    assert sight == guard.sight(principal_of("subscribe:a.*"), "subscribe", ("a.>",))
    assert hash(sight) == hash(guard.sight(principal_of("subscribe:a.*"), "subscribe", ()))
    assert sight is not None
    assert guard.sees(sight, stream("a.b"))
    assert not guard.sees(sight, stream("b.b"))
    assert guard.sees(sight, stream("news", "public"))
    with pytest.raises(Forbidden):
        guard.sight(Principal(name="nobody", kind="open", rights=frozenset(), address=""), "subscribe", ())


def test_a_deleted_stream_is_nobodys() -> None:
    """Its name may belong to somebody by now."""
    guard = guard_of()
    guard.own("a", "alice")
    gone = stream("a")
    gone.is_deleted = True
    assert guard.facts("a", gone).owner == ""


def test_who_may_know_of_a_stream() -> None:
    """Whoever has any right over it."""
    guard = guard_of()
    assert guard.may_know(principal_of("publish:a"), stream("a"))
    assert not guard.may_know(principal_of("publish:b"), stream("a"))
    assert guard.may_know(principal_of("publish:b"), stream("a", "public"))


def test_scopes_are_handed_on_by_those_who_have_them() -> None:
    """Everyday rights don't hold the node's own streams."""
    assert may_hold(LOOPBACK, parse_scope("read:a.*"))
    assert not may_hold(LOOPBACK, parse_scope("manage:a"))
    assert not may_hold(LOOPBACK, parse_scope("read:overlayd.events"))
    assert may_hold(SERVICE, parse_scope("read:overlayd.audit"))
