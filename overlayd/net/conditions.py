"""What a request is only meant for: `If-Match` (RFC 9110)."""

from quart import Request


def wanted_tags(asked: Request) -> list[str] | None:
    """The entity tags that `If-Match` names, with their quotes; `*` for anything that is there. None: no such header."""
    text = asked.headers.get("If-Match")
    return None if text is None else [tag.strip() for tag in text.split(",")]
