"""Bodies that aren't packet objects: whatever arrives becomes the data of one packet.

JSON is taken as it is, other text as a JSON string, octets as a base64 JSON string (docs/log-format.md, Body).
"""

import base64
from typing import Any

from overlayd.model.draft import Draft
from overlayd.model.errors import InvalidPacket, MalformedJson, PacketTooLarge, Violation
from overlayd.model.limits import Limits
from overlayd.pipeline.decode import Decoded
from overlayd.pipeline.json_text import parse_json
from overlayd.pipeline.members import Findings, check_text, encode_text

_JSON_SPACE = b" \t\r\n"
_UTF8_CHARSETS = frozenset(("utf-8", "utf8", "us-ascii", "ascii"))


def decode_data(
    body: bytes, content_type: str, limits: Limits, *, packet_id: str = "", packet_type: str = "", key: str = ""
) -> Decoded:
    """The draft of a `…/data` request. The query gives id, type and key ("" = not given).

    A body that says it is JSON must be; any other one is taken as JSON when it is JSON, because that is
    what `curl -d` sends under a form's content type. Raises as `decode_packet`, and PacketTooLarge.
    """
    findings = Findings(None)
    for name, text in (("id", packet_id), ("type", packet_type), ("key", key)):
        if text:
            check_text(text, name, limits.id_chars, findings)
    findings.raise_any()
    if not body:
        detail = "the body is empty; send the data itself"
        raise InvalidPacket(detail, violations=[Violation("/data", "member.missing", detail)])
    sent, value, is_octets = encode_data(body, content_type, limits, is_sniffed=not is_json_type(content_type))
    return Decoded(Draft(0, sent, sent, packet_id, packet_type, key=key, is_octets=is_octets), value)


def encode_data(body: bytes, content_type: str, limits: Limits, *, is_sniffed: bool) -> tuple[bytes, Any, bool]:
    """`sent`, its value, and whether it holds octets.

    `is_sniffed`: a body that looks like JSON and is JSON counts as JSON, whatever its content type says.
    """
    if is_json_type(content_type):
        return body.strip(_JSON_SPACE), parse_json(body, limits.json_depth_max), False
    if is_sniffed:
        try:
            return body.strip(_JSON_SPACE), parse_json(body, limits.json_depth_max), False
        except MalformedJson:
            pass  # then it is text or octets; JSON that is unusable is refused all the same
        except InvalidPacket:
            if is_utf8(body):
                raise
    if is_text_type(content_type) and is_utf8(body):
        text = body.decode()
        return _bounded(encode_text(text), limits), text, False
    value = base64.b64encode(body).decode()
    return _bounded(encode_text(value), limits), value, True


def is_utf8(body: bytes) -> bool:
    """Whether the octets are UTF-8 text."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_json_type(content_type: str) -> bool:
    """`application/json`, `text/json` or anything `+json`, whatever its parameters."""
    media = media_type_of(content_type)
    return media in ("application/json", "text/json") or media.endswith("+json")


def is_text_type(content_type: str) -> bool:
    """Whether text may be taken as text: not when it is an image, audio, video, octets, or in another charset."""
    media = media_type_of(content_type)
    if media.startswith(("image/", "audio/", "video/", "font/")) or media == "application/octet-stream":
        return False
    return charset_of(content_type) in _UTF8_CHARSETS


def media_type_of(content_type: str) -> str:
    """Lower-cased, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def charset_of(content_type: str) -> str:
    """The charset parameter, lower-cased; "utf-8" when none is given."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower()
    return "utf-8"


def _bounded(sent: bytes, limits: Limits) -> bytes:
    """Escapes and base64 make a body longer than what was sent; the limit holds for what is stored."""
    if len(sent) > limits.packet_bytes:
        raise PacketTooLarge(
            f"as JSON the data has {len(sent)} bytes; {int(limits.packet_bytes)} are taken", subject="packet_bytes"
        )
    return sent
