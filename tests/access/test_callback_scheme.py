"""Sources that call back are known by their tokens, and may do nothing else."""

import pytest
from access_rig import HERE, THERE, GateRig, head_with

from overlayd.access.callbacks import CallbackScheme
from overlayd.access.gate import Remembered
from overlayd.access.origin import AccessRules
from overlayd.access.principal import may, may_some
from overlayd.access.scopes import RIGHTS
from overlayd.model.callback import CALLBACK_PATH, CALLBACK_PREFIX
from overlayd.model.errors import Unauthorized

TOKENS = {"arc": CALLBACK_PREFIX + "A" * 32, "arcade": CALLBACK_PREFIX + "B" * 32}


@pytest.fixture
def rig() -> GateRig:
    """A gate that knows two sources."""
    return GateRig(schemes=(CallbackScheme(TOKENS),))


@pytest.mark.parametrize("name", TOKENS)
async def test_a_source_is_known_by_its_token(rig: GateRig, name: str) -> None:
    """From anywhere, whatever name it calls the node by, once there are keys as well; and it has no right at all."""
    rig.add_key()
    head = head_with(TOKENS[name], path=CALLBACK_PATH, host="node.example")
    claim = await rig.gate.claim(Remembered(), THERE, head)
    principal = claim.principal
    assert (principal.name, principal.kind, principal.address) == (f"source:{name}", "source", "192.0.2.9")
    for right in RIGHTS:
        assert not may(principal, right)
        assert not may_some(principal, right)


@pytest.mark.parametrize(
    "head",
    [
        head_with(CALLBACK_PREFIX + "C" * 32, path=CALLBACK_PATH), head_with(CALLBACK_PREFIX, path=CALLBACK_PATH),
        head_with(TOKENS["arc"][:-1], path=CALLBACK_PATH), head_with(TOKENS["arc"] + "A", path=CALLBACK_PATH),
        head_with(TOKENS["arc"], path="/v1/streams"), head_with(TOKENS["arc"], path=CALLBACK_PATH, method="GET"),
        head_with(TOKENS["arc"], path=CALLBACK_PATH + "/"),
    ],
    ids=["wrong", "empty", "shorter", "longer", "elsewhere", "another method", "another path"],
)  # fmt: skip
async def test_everything_else_is_refused_and_counted(rig: GateRig, head: object) -> None:
    """A wrong token, and a right one in the wrong place: the audit hears of it, without the token."""
    with pytest.raises(Unauthorized, match="callback"):
        await rig.gate.claim(Remembered(), HERE, head)  # type: ignore[arg-type] # a head of the rig's
    (record,) = rig.records
    assert (record.action, record.result, record.detail) == (
        "access.failed", "refused", {"scheme": "callback", "reason": "callback"},
    )  # fmt: skip


async def test_guessing_is_slowed_down(rig: GateRig) -> None:
    """As with keys: so many wrong ones from an address, then none is looked at for a while."""
    head = head_with(CALLBACK_PREFIX + "C" * 32, path=CALLBACK_PATH)
    statuses = []
    for _ in range(rig.settings.failures_per_address + 3):
        try:
            await rig.gate.claim(Remembered(), THERE, head)
        except Exception as error:
            statuses.append(getattr(error, "status", 0))
    assert statuses[0] == 401
    assert statuses[-1] == 429


async def test_sources_dont_make_a_node_want_keys(rig: GateRig) -> None:
    """Loopback stays free where it was: callbacks are no credential of clients."""
    assert not rig.gate.has_credentials
    claim = await rig.gate.claim(Remembered(), HERE, head_with(method="GET", path="/v1/streams"))
    assert claim.principal.kind == "loopback"


async def test_keys_and_callbacks_dont_mix(rig: GateRig) -> None:
    """A key on the callback path is a key's request; a callback's token is never looked up among the keys."""
    _, secret = rig.add_key("k1", "admin")
    claim = await rig.gate.claim(Remembered(), HERE, head_with(secret, path=CALLBACK_PATH))
    assert claim.principal.kind == "key"
    bare = GateRig(schemes=(CallbackScheme({}),), rules=AccessRules(service_uid=1000))
    with pytest.raises(Unauthorized, match="callback"):
        await bare.gate.claim(Remembered(), HERE, head_with(TOKENS["arc"], path=CALLBACK_PATH))
    assert "A" * 32 not in repr(CallbackScheme(TOKENS))
