"""What a producer is told: receipts, counts, and errors with their places."""

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import UNSET, Raw, UnsetType

from overlayd.model.cursor import Epoch
from overlayd.model.draft import Receipt
from overlayd.model.errors import InvalidPacket, OverlaydError, Violation
from overlayd.model.names import StreamName
from overlayd.model.proof import encode_proof
from overlayd.model.receipt_text import encode_receipt
from overlayd.model.wire import ReceiptBody, encode_wire, receipt_body
from overlayd.net.proofs import prove_entry
from overlayd.storage import Log

JSON = "application/json"


class Published(msgspec.Struct, frozen=True):
    """An answer, whatever carries it."""

    status: int
    body: bytes
    content_type: str = JSON


class PublishText(msgspec.Struct, kw_only=True):
    """A `PublishBody` whose receipts are text already."""

    accepted: int
    duplicates: int
    rejected: int
    receipts: Raw | UnsetType
    errors: list[Violation]
    first: Raw | UnsetType
    last: Raw | UnsetType


class Rejected(msgspec.Struct, frozen=True):
    """A packet that isn't in the log: its place in the request (`line` from 1 for NDJSON, else `index`), and why."""

    error: OverlaydError
    index: int | None = None
    line: int | None = None

    def violations(self) -> list[Violation]:
        """The error's own violations at this place; one made from it if it has none."""
        found: Sequence[Violation] = self.error.violations or (Violation("", self.error.code, self.error.detail),)
        return [
            Violation(pointer=one.pointer, code=one.code, detail=one.detail, index=self.index, line=self.line)
            for one in found
        ]


def list_violations(rejected: Iterable[Rejected], errors_max: int) -> list[Violation]:
    """The first violations of all; counts tell that there were more."""
    listed: list[Violation] = []
    for one in rejected:
        listed += one.violations()
        if len(listed) >= errors_max:
            break
    return listed[:errors_max]


async def receipt_bodies(
    log: Log, stream: StreamName, receipts: Sequence[Receipt], *, with_proof: bool
) -> list[ReceiptBody]:
    """The receipts as they travel. Proofs make them bind, and cost a path each. Checkpoint."""
    bodies = [receipt_body(receipt, Epoch(receipt.epoch)) for receipt in receipts]
    if not with_proof or not receipts:
        return bodies
    found = log.find_stream(stream)
    checkpoint = await log.checkpoint(max(receipt.offset for receipt in receipts))
    if found is not None:
        for receipt, body in zip(receipts, bodies, strict=True):
            entry = await log.read_entry(receipt.offset)
            body.proof = Raw(encode_proof(await prove_entry(log, found, entry, checkpoint)))
    return bodies


async def receipt_texts(
    log: Log, stream: StreamName, receipts: Sequence[Receipt], *, with_proof: bool
) -> list[bytes]:  # fmt: skip
    """The same as JSON texts. A checkpoint with proofs only."""
    if not with_proof:
        return [encode_receipt(receipt) for receipt in receipts]
    return [encode_wire(body) for body in await receipt_bodies(log, stream, receipts, with_proof=True)]


def answer_one(receipt: Receipt, text: bytes) -> Published:
    """201 for a packet, 200 for a repeat."""
    return Published(200 if receipt.duplicate else 201, text)


def answer_many(
    receipts: Sequence[bytes] | None, rejected: Sequence[Rejected], *, rejected_count: int, duplicates: int,
    accepted: int, errors_max: int, first: bytes = b"", last: bytes = b"",
) -> Published:  # fmt: skip
    """201 when something is new, 200 when all was there before. Raises InvalidPacket (422) when all were rejected.

    Receipts are JSON texts. `first` and `last` (b"" = none) are told where `receipts` is None.
    """
    errors = list_violations(rejected, errors_max)
    if rejected_count and not accepted and not duplicates:
        raise InvalidPacket(
            f"none of the {rejected_count} packets was taken; the first: {errors[0].detail}",
            violations=errors,
            extra={"accepted": 0, "duplicates": 0, "rejected": rejected_count, "receipts": []},
        )
    body = PublishText(
        accepted=accepted, duplicates=duplicates, rejected=rejected_count,
        receipts=UNSET if receipts is None else Raw(b"[%b]" % b",".join(receipts)),
        errors=errors,
        first=Raw(first) if first and receipts is None else UNSET,
        last=Raw(last) if last and receipts is None else UNSET,
    )  # fmt: skip
    return Published(201 if accepted else 200, encode_wire(body))
