"""Quota policies that the settings give somebody: they exist, and stay."""

from pathlib import Path

import pytest
from metering_rig import open_metered

from overlayd.access.certificates import CertificateScheme
from overlayd.access.identity.settings import IdentitySettings, KnownIdentitySettings
from overlayd.access.jwt.settings import JwtSettings
from overlayd.access.node_schemes import named_policies
from overlayd.access.origin import Origin, Peer, PeerCertificate
from overlayd.access.settings import AccessSettings, CertificateSettings, KeySettings
from overlayd.model.errors import ConfigInvalid


def test_everybody_may_have_a_policy() -> None:
    """Keys, issuers, identities, holders of certificates, and strangers."""
    access = AccessSettings(
        jwt=(JwtSettings("i", "iss", "EdDSA", ("a",), "f", scopes=("read",), policy="p1"),),
        identities=(KnownIdentitySettings("n", "02" + "ab" * 32, policy="p2"), KnownIdentitySettings("m", "02" + "ac" * 32)),
        identity=IdentitySettings(anyone=("read",), anyone_policy="p3"),
        certificates=(CertificateSettings("c", subject="CN=x", policy="p4"),),
    )  # fmt: skip
    keys = (KeySettings("k", file="f", policy="p5"),)
    assert sorted(policy for _, policy in named_policies(access, keys)) == ["p1", "p2", "p3", "p4", "p5"]


async def test_a_certificates_policy_is_its_holders() -> None:
    """As with keys."""
    rule = CertificateSettings("c", subject="CN=x", policy="premium", scopes=("read",))
    peer = Peer("tcp", certificate=PeerCertificate("CN=x", (), ""))
    claim = await CertificateScheme([rule], is_asked=True).claim(None, peer, Origin("192.0.2.1"))  # type: ignore[arg-type]
    assert claim.principal.policy == "premium"


async def test_a_named_policy_exists_and_stays(tmp_path: Path) -> None:
    """One that doesn't is told at start with what there is; one that somebody has can't be deleted."""
    async with open_metered(tmp_path) as node:
        with pytest.raises(ConfigInvalid, match=r"keys\.k: there is no quota policy 'gold'") as caught:
            node.metering.require_policies([("keys.k", "gold")])
        assert "premium" in caught.value.hint
        node.metering.require_policies([("keys.k", "premium"), ("keys.l", "premium")])
        refused = await node.ask("DELETE", "/v1/quotas/policies/premium")
        assert (refused.status, refused.json["code"]) == (409, "definition.config")
        assert "keys.k" in refused.json["detail"]
        assert (await node.ask("DELETE", "/v1/quotas/policies/standard")).status == 204
