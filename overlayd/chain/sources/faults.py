"""Why a source gave nothing that can be used, in one stable word each; docs/chain.md lists them (a test compares)."""

from enum import StrEnum

from overlayd.model.errors import SourceUnavailable

REASON_CHARS = 400


class Fault(StrEnum):
    """What a source is to blame for. A verdict about a transaction is none of these."""

    UNREACHABLE = "unreachable"
    """No connection, or it broke."""
    TIMEOUT = "timeout"
    """It connected, but didn't answer in time."""
    BUSY = "busy"
    """It asks us to come later (429, 503), or its rate leaves no room for the request."""
    UNAUTHORIZED = "unauthorized"
    """It doesn't take our token (401, 403), or the token can't be read."""
    FAILED = "failed"
    """It answers with an error of its own, or in a way that its contract doesn't know."""
    MALFORMED = "malformed"
    """What it answers can't be read, or is about something else."""
    BAD_PROOF = "bad_proof"
    """A proof that isn't one: unreadable, of another transaction, or to a block that isn't there."""
    BAD_HEADERS = "bad_headers"
    """Block headers that break the chain's rules."""
    WRONG_NETWORK = "wrong_network"
    """It answers for another network."""


LASTING = frozenset({Fault.UNAUTHORIZED, Fault.WRONG_NETWORK})
"""What somebody has to mend; asking again soon is of no use."""


def unavailable(
    fault: Fault, detail: str, *, source: str, retry_after_s: float | None = None, hint: str = ""
) -> SourceUnavailable:
    """The error for a fault; `extra` has its word."""
    return SourceUnavailable(
        detail, subject=f"source {source}", hint=hint, retry_after_s=retry_after_s, extra={"reason": str(fault)}
    )


def fault_of(error: SourceUnavailable) -> Fault:
    """The fault that an error tells of. Errors of those who know no faults are about what was answered."""
    return Fault(error.extra.get("reason", Fault.MALFORMED))


def words_of(text: str) -> str:
    """A foreign text for logs and answers: on one line, bounded."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 2 * REASON_CHARS]).split())
    return line if len(line) <= REASON_CHARS else f"{line[: REASON_CHARS - 1]}…"
