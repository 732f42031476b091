"""The requests about people and erasure as values (calls.py)."""

from urllib.parse import quote

import msgspec
from msgspec import UNSET

from overlayd.client.calls import JSON, Call, decoder_of
from overlayd.model.wire_privacy import (
    ConsentBody,
    ConsentIn,
    ConsentList,
    EraseIn,
    ErasureBody,
    ErasureList,
    RebuildBody,
    SubjectBody,
    SubjectExport,
)

_ERASURE = decoder_of(ErasureBody)
_ERASURES = decoder_of(ErasureList)
_SUBJECT = decoder_of(SubjectBody)
_EXPORT = decoder_of(SubjectExport)
_CONSENT = decoder_of(ConsentBody)
_CONSENTS = decoder_of(ConsentList)
_REBUILD = decoder_of(RebuildBody)
_HEADERS = (("Content-Type", JSON),)


def erase(what: EraseIn) -> Call[ErasureBody]:
    """Erases packets, or says what would be erased. Safe to repeat: what is erased isn't found again."""
    return Call("POST", "/v1/erase", _ERASURE, headers=_HEADERS, content=msgspec.json.encode(what))


def list_erasures(*, limit: int = 0, before: str = "") -> Call[ErasureList]:
    """One page of erasures, the newest first."""
    named = (("limit", str(limit or "")), ("before", before))
    return Call("GET", "/v1/erase", _ERASURES, params=tuple(pair for pair in named if pair[1]))


def show_erasure(id: str) -> Call[ErasureBody]:
    """One erasure."""
    return Call("GET", f"/v1/erase/{quote(id, safe='')}", _ERASURE)


def show_subject(subject: str) -> Call[SubjectBody]:
    """Where packets about somebody are, and what they consented to."""
    return Call("GET", _path(subject), _SUBJECT)


def export_subject(subject: str, *, after: int = 0, limit: int = 0) -> Call[SubjectExport]:
    """One page of the packets about somebody, by offset."""
    named = (("after", str(after or "")), ("limit", str(limit or "")))
    return Call("GET", f"{_path(subject)}/export", _EXPORT, params=tuple(pair for pair in named if pair[1]))


def list_consents(subject: str) -> Call[ConsentList]:
    """What somebody consented to."""
    return Call("GET", f"{_path(subject)}/consent", _CONSENTS)


def put_consent(
    subject: str, purpose: str, *, granted: bool, until: str = "", reference: str = ""
) -> Call[ConsentBody]:
    """Records that somebody consented to a purpose, or doesn't any more."""
    body = ConsentIn(purpose=purpose, granted=granted, until=until or UNSET, reference=reference)
    return Call("PUT", f"{_path(subject)}/consent", _CONSENT, headers=_HEADERS, content=msgspec.json.encode(body))


def rebuild(part: str) -> Call[RebuildBody]:
    """Has an index made anew from the log: `subjects` or `links`."""
    return Call("POST", f"/v1/admin/rebuild/{quote(part, safe='')}", _REBUILD, is_repeatable=False)


def _path(subject: str) -> str:
    return f"/v1/subjects/{quote(subject, safe='')}"
