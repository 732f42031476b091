"""CloudEvents 1.0 in its three HTTP modes: structured, batched, binary. From event to draft.

`id`, `source`, `type` and `time` become the packet's own. `partitionkey` becomes its key; without one, a
`subject` that isn't too long for a key does.
Every attribute but those four and `specversion` is kept in the packet's metadata under its own name, so that
nothing of the event is lost. An event without data becomes a packet whose data is null.
"""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import UNSET, Raw, UnsetType

from overlayd.model.draft import Draft
from overlayd.model.errors import InvalidPacket, Violation
from overlayd.model.limits import Limits
from overlayd.pipeline.data_form import encode_data, is_json_type, is_text_type, media_type_of
from overlayd.pipeline.decode import Decoded
from overlayd.pipeline.json_text import parse_json
from overlayd.pipeline.members import Findings, check_octets, check_text, check_time, is_traceparent, word_of

SPEC_VERSION = "1.0"
HEADER_PREFIX = "ce-"
_REQUIRED = ("id", "source", "type")
_OWN = frozenset(("specversion", "id", "source", "type", "time", "data", "data_base64"))
_TEXT_ATTRIBUTES = frozenset(("datacontenttype", "dataschema", "subject", "partitionkey", "traceparent", "tracestate"))
_NAME = re.compile(r"[a-z0-9]{1,64}", re.ASCII)
_INTEGER_MIN, _INTEGER_MAX = -(1 << 31), (1 << 31) - 1
_QUOTED_PAIR = re.compile(r"\\(.)")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class _Cuts(msgspec.Struct, gc=False):
    data: Raw | UnsetType = UNSET
    data_base64: Raw | UnsetType = UNSET


_cut = msgspec.json.Decoder(_Cuts).decode


def decode_event(raw: bytes, index: int, limits: Limits) -> Decoded:
    """The draft of an event in the JSON format (structured mode, or one of a batch).

    The caller has bounded the length. Raises MalformedJson, UnusableJson, InvalidPacket.
    """
    event = parse_json(raw, limits.json_depth_max + 1)
    if type(event) is not dict:
        detail = f"an event is an object, this is {word_of(event)}"
        raise InvalidPacket(detail, violations=[Violation("", "packet.object", detail, index=index)])
    findings = Findings(index)
    cuts = _cut(raw)
    sent, value, is_octets = b"null", None, False
    if cuts.data is not UNSET and cuts.data_base64 is not UNSET:
        findings.add("/data_base64", "member.exclusive", "only one of data and data_base64 may be given")
    elif cuts.data is not UNSET:
        sent, value = bytes(cuts.data), event["data"]
    elif cuts.data_base64 is not UNSET:
        sent, value, is_octets = bytes(cuts.data_base64), event["data_base64"], True
        check_octets(value, "data_base64", findings)
    # An attribute that is null is unset (CloudEvents JSON format 2.2).
    attributes = {
        name: member for name, member in event.items() if member is not None and name not in ("data", "data_base64")
    }
    draft = _draft_of(attributes, sent, index, limits, findings, is_octets=is_octets)
    findings.raise_any()
    return Decoded(draft, value)


def decode_binary(headers: Iterable[tuple[str, str]], body: bytes, limits: Limits) -> Decoded:
    """The draft of a request in binary mode: attributes in `ce-` headers, data as the body.

    JSON by its content type is taken as it is, other text as a JSON string, octets as base64; without a
    content type the body decides. Raises as `decode_event`, and PacketTooLarge.
    """
    findings = Findings(None)
    attributes: dict[str, Any] = {}
    content_type = ""
    for name, text in headers:
        lowered = name.lower()
        if lowered == "content-type":
            content_type = text
        elif lowered.startswith(HEADER_PREFIX):
            _take_header(lowered.removeprefix(HEADER_PREFIX), text, attributes, findings)
    if content_type:
        attributes["datacontenttype"] = content_type
    sent, value, is_octets = b"null", None, False
    if body:
        sent, value, is_octets = _encode_body(body, content_type, limits)
    draft = _draft_of(attributes, sent, 0, limits, findings, is_octets=is_octets)
    findings.raise_any()
    return Decoded(draft, value)


def _encode_body(body: bytes, content_type: str, limits: Limits) -> tuple[bytes, Any, bool]:
    media = media_type_of(content_type)
    is_text = media.startswith("text/") or media.endswith("xml") or is_json_type(content_type)
    if content_type and not (is_text and is_text_type(content_type)):
        content_type = "application/octet-stream"
    return encode_data(body, content_type, limits, is_sniffed=not content_type)


def _take_header(name: str, text: str, attributes: dict[str, Any], findings: Findings) -> None:
    if name == "data":
        findings.add("/data", "event.name", "in binary mode the data is the body, not a header")
        return
    if name in attributes:
        findings.add(f"/{name}", "member.exclusive", f"the header {HEADER_PREFIX}{name} stands twice")
        return
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = _QUOTED_PAIR.sub(r"\1", text[1:-1])
    if _BAD_PERCENT.search(text):
        detail = f"the header {HEADER_PREFIX}{name} has a % that two hex digits don't follow"
        findings.add(f"/{name}", "member.format", detail)
        return
    try:
        # Header values are ISO 8859-1 on this side of the parser; the event's characters are in the percent codes.
        attributes[name] = unquote_to_bytes(text.encode("latin-1")).decode()
    except ValueError:
        findings.add(f"/{name}", "member.format", f"the header {HEADER_PREFIX}{name} isn't percent-encoded UTF-8")


def _draft_of(
    attributes: dict[str, Any], sent: bytes, index: int, limits: Limits, findings: Findings, *, is_octets: bool
) -> Draft:
    if attributes.get("specversion") != SPEC_VERSION:
        given = attributes.get("specversion", "nothing")
        findings.add("/specversion", "event.version", f"must be {SPEC_VERSION!r}, is {str(given)[:40]!r}")
    for name in _REQUIRED:
        if name not in attributes:
            findings.add(f"/{name}", "member.missing", f"the attribute {name} is required")
    draft = Draft(index, sent, sent, is_octets=is_octets)
    if "id" in attributes:
        draft.id = check_text(attributes["id"], "id", limits.id_chars, findings)
    if "source" in attributes:
        draft.source = check_text(attributes["source"], "source", limits.source_chars, findings)
    if "type" in attributes:
        draft.type = check_text(attributes["type"], "type", limits.id_chars, findings)
    if "time" in attributes:
        draft.time = check_time(attributes["time"], "time", findings)
    if kept := {name: member for name, member in attributes.items() if name not in _OWN}:
        _keep_attributes(draft, kept, limits, findings)
    return draft


def _keep_attributes(draft: Draft, kept: dict[str, Any], limits: Limits, findings: Findings) -> None:
    for name, member in kept.items():
        _check_extension(name, member, findings)
    draft.key = _key_of(kept, limits, findings)
    draft.metadata = msgspec.json.encode(kept)
    if len(draft.metadata) > limits.metadata_bytes:
        detail = f"the attributes have {len(draft.metadata)} bytes; {int(limits.metadata_bytes)} are taken"
        findings.add("", "member.length", detail)
    trace = kept.get("traceparent")
    if isinstance(trace, str) and is_traceparent(trace):
        draft.traceparent = trace


def _key_of(kept: dict[str, Any], limits: Limits, findings: Findings) -> str:
    if "partitionkey" in kept:
        return check_text(kept["partitionkey"], "partitionkey", limits.id_chars, findings)
    subject = kept.get("subject")
    return subject if isinstance(subject, str) and len(subject) <= limits.id_chars else ""


def _check_extension(name: str, member: Any, findings: Findings) -> None:
    if _NAME.fullmatch(name) is None:
        escaped = name.replace("~", "~0").replace("/", "~1")
        findings.add(f"/{escaped[:200]}", "event.name", "an attribute's name has lower-case letters and digits only")
    elif name in _TEXT_ATTRIBUTES:
        check_text(member, name, 4096, findings)
    elif type(member) is int:
        if not _INTEGER_MIN <= member <= _INTEGER_MAX:
            findings.add(f"/{name}", "event.value", "an integer attribute has 32 bits")
    elif type(member) not in (str, bool):
        findings.add(
            f"/{name}", "event.value", f"an attribute is a string, an integer or a boolean, not {word_of(member)}"
        )
