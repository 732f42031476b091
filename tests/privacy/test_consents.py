"""Consents: recorded, withdrawn, ending by themselves, remembered over restarts, bounded."""

import pytest
from privacy_rig import Office, PrivacyRig

from overlayd.model.audit import AuditRecord
from overlayd.model.errors import LimitReached
from overlayd.privacy.tables import ConsentRow


async def record(rig: PrivacyRig, office: Office, subject: str, purpose: str, granted: bool, until_us: int = 0) -> None:
    """Puts a record, with its audit record."""
    row = ConsentRow(purpose, granted, rig.clock.now_us(), until_us, "form 7", "tester")
    tell = AuditRecord("consent")
    await office.people.consents.put(subject, row, lambda reference: office.audit(tell))


async def test_only_those_who_consented(rig: PrivacyRig) -> None:
    """To this purpose, and until they withdraw it."""
    async with rig.office() as office:
        await record(rig, office, "alice", "billing", True)
        ask = office.people.missing
        assert await ask("billing", ["alice", "bob", "alice"]) == {"bob"}
        assert await ask("analytics", ["alice"]) == {"alice"}
        before = office.people.generation
        await record(rig, office, "alice", "billing", False)
        assert office.people.generation == before + 1
        assert await ask("billing", ["alice"]) == {"alice"}
        assert len(await office.audited()) == 2


async def test_a_consent_ends_by_itself(rig: PrivacyRig) -> None:
    """At its time, also where it is remembered."""
    async with rig.office() as office:
        await record(rig, office, "alice", "billing", True, rig.clock.now_us() + 60_000_000)
        assert not await office.people.missing("billing", ["alice"])
        rig.clock.advance(60)
        assert await office.people.missing("billing", ["alice"])


async def test_records_last_over_restarts(rig: PrivacyRig) -> None:
    """What was answered is there, and no name of anybody is in the files."""
    async with rig.office() as office:
        await record(rig, office, "alice-of-wonderland", "billing", True)
        await record(rig, office, "alice-of-wonderland", "analytics", False)
    assert not rig.file_holds(b"alice-of-wonderland")
    async with rig.office() as office:
        rows = await office.people.consents.list_of("alice-of-wonderland")
        assert [(row.purpose, row.is_granted, row.reference) for row in rows] == [
            ("analytics", False, "form 7"), ("billing", True, "form 7"),
        ]  # fmt: skip
        assert not await office.people.missing("billing", ["alice-of-wonderland"])
        assert await office.people.missing("analytics", ["alice-of-wonderland"])


async def test_their_number_is_bounded(rig: PrivacyRig) -> None:
    """A record more than consents_max is refused; changing one isn't."""
    rig.set_limits(consents_max=2)
    async with rig.office() as office:
        await record(rig, office, "a", "p", True)
        await record(rig, office, "b", "p", True)
        with pytest.raises(LimitReached):
            await record(rig, office, "c", "p", True)
        await record(rig, office, "a", "p", False)
        assert rig.limit_hits("consents_max") == 1


async def test_memory_is_bounded(rig: PrivacyRig) -> None:
    """Beyond consents_cached the oldest answer is looked up again."""
    rig.set_limits(consents_cached=2)
    async with rig.office() as office:
        for name in "abc":
            await record(rig, office, name, "p", True)
        assert rig.limit_hits("consents_cached") == 1
        assert await office.people.missing("p", ["a", "b", "c", "d"]) == {"d"}
        assert len(office.people.consents._known) == 2
