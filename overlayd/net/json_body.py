"""A request's JSON body as a struct, with mistakes told by JSON pointers."""

import re
from typing import TypeVar

import msgspec
from quart import Request

from overlayd.model.errors import InvalidDefinition, Violation, WrongContentType
from overlayd.model.limits import Limits
from overlayd.net.app import read_body
from overlayd.net.content import Bodies
from overlayd.pipeline.json_text import parse_json

T = TypeVar("T")

_PLACE = re.compile(r"(.*) - at `\$(.*)`", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


class JsonBodies:
    """Reads bodies of at most `definition_bytes`, or another limit."""

    def __init__(self, bodies: Bodies, limits: Limits) -> None:
        self._bodies = bodies
        self._limits = limits

    async def read(self, asked: Request, kind: type[T], what: str, *, limit: str = "definition_bytes") -> T:
        """The body. `what` begins the words of a refusal: "the policy can't be used". `limit`: a larger one of the
        settings. Checkpoint.

        Raises WrongContentType, BodyTooLarge, MalformedJson, UnusableJson, InvalidDefinition, RequestTimeout, IntakeBusy,
        and Unauthorized when the credential ended while the body came.
        """
        return _decode(await self._read_raw(asked, limit), kind, what, self._limits.json_depth_max)

    async def read_or(self, asked: Request, kind: type[T], what: str, default: T) -> T:
        """As `read`; the default for a request without a body. Checkpoint."""
        raw = await self._read_raw(asked)
        return _decode(raw, kind, what, self._limits.json_depth_max) if raw else default

    async def _read_raw(self, asked: Request, setting: str = "definition_bytes") -> bytes:
        content_type = asked.mimetype
        if content_type and content_type != "application/json" and not content_type.endswith("+json"):
            raise WrongContentType(
                f"the body must be JSON, not {content_type[:80]}", subject="Content-Type",
                hint="Content-Type: application/json",
            )  # fmt: skip
        limit = int(getattr(self._limits, setting))
        with self._bodies.hold() as hold:
            return await read_body(asked, self._bodies, hold, limit, setting)


def _decode(raw: bytes, kind: type[T], what: str, depth_max: int) -> T:
    parse_json(raw, depth_max)
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as err:
        raise invalid_body(err, what) from err


def invalid_body(error: msgspec.ValidationError, what: str) -> InvalidDefinition:
    """msgspec's words with a JSON pointer: "Expected `str`, got `int` - at `$.tags[0]`"."""
    text = str(error)
    match = _PLACE.fullmatch(text)
    detail, path = (match[1], match[2]) if match else (text, "")
    pointer = "".join(f"/{name or index}" for name, index in _STEP.findall(path))
    return InvalidDefinition(
        f"{what}: {detail}" + (f" at {pointer}" if pointer else ""),
        violations=[Violation(pointer, "definition.member", detail)],
    )
