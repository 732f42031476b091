"""A transaction as producers bring it: raw, Extended Format, BEEF or Atomic BEEF, as hex or as an array of numbers.

Wallets give whatever their library's method is named after; the bytes say themselves which it is.
"""

from collections.abc import Sequence
from enum import Enum

import msgspec

from overlayd.bsv.beef import Beef, is_beef, parse_beef
from overlayd.bsv.tx import ExtendedTransaction, Transaction, is_extended, parse_extended, parse_transaction
from overlayd.model.errors import MalformedChainData, VerificationFailed

BROUGHT_BYTES_MAX = 4 << 20


class Form(Enum):
    """What the bytes were."""

    RAW = "raw"
    EXTENDED = "extended"
    BEEF = "beef"


class Brought(msgspec.Struct, frozen=True):
    """A transaction and what came with it. `extended` is None when the spent outputs aren't known from it."""

    form: Form
    tx: Transaction
    extended: ExtendedTransaction | None = None
    beef: Beef | None = None


def parse_brought(value: str | Sequence[int] | bytes, *, bytes_max: int = BROUGHT_BYTES_MAX) -> Brought:
    """Reads a transaction in any form. Nothing of it is verified beyond its form. Raises MalformedChainData."""
    raw = _octets(value, bytes_max)
    if is_beef(raw):
        beef = parse_beef(raw, bytes_max=bytes_max)
        tx = beef.subject_tx
        try:
            extended = beef.extended()
        except VerificationFailed:
            # A proven subject needs no parents; one that isn't proven is judged by verify_beef.
            return Brought(Form.BEEF, tx, beef=beef)
        return Brought(Form.BEEF, tx, extended, beef)
    if is_extended(raw):
        extended = parse_extended(raw, bytes_max=bytes_max)
        return Brought(Form.EXTENDED, extended.tx, extended)
    return Brought(Form.RAW, parse_transaction(raw, bytes_max=bytes_max))


def _octets(value: str | Sequence[int] | bytes, bytes_max: int) -> bytes:
    if isinstance(value, bytes):
        octets = value
    elif len(value) > 2 * bytes_max or (len(value) > bytes_max and not isinstance(value, str)):
        raise MalformedChainData(f"at most {bytes_max} bytes are taken", subject="transaction")
    elif isinstance(value, str):
        try:
            octets = bytes.fromhex(value)
        except ValueError as err:
            raise MalformedChainData("not hex digits", subject="transaction") from err
        if 2 * len(octets) != len(value):
            raise MalformedChainData("white space stands between the hex digits", subject="transaction")
    else:
        # bytes() alone would take true for 1, too.
        if not all(type(item) is int and 0 <= item <= 255 for item in value):
            raise MalformedChainData("not an array of numbers from 0 to 255", subject="transaction")
        octets = bytes(value)
    if len(octets) > bytes_max:
        raise MalformedChainData(f"{len(octets)} bytes; at most {bytes_max} are taken", subject="transaction")
    return octets
