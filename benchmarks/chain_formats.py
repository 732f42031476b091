"""What the chain's formats cost: proofs, signatures, transactions. Processor time of one core, medians of five runs.

Run: python3 -m benchmarks.chain_formats
"""

import statistics
import time
from collections.abc import Callable

from overlayd.bsv.anchor import Anchor, AnchorKind, anchor_output
from overlayd.bsv.beef import assemble_beef, parse_beef, verify_beef
from overlayd.bsv.blocktree import BlockTree
from overlayd.bsv.brc42 import derive_private, derive_public
from overlayd.bsv.brc77 import parse_message_signature, sign_message
from overlayd.bsv.bump import parse_bump
from overlayd.bsv.hashes import hash256, sha256
from overlayd.bsv.header import parse_header
from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.network import MAINNET
from overlayd.bsv.script import lock_to_key
from overlayd.bsv.spending import Spendable, build_spend, verify_spending
from overlayd.bsv.tx import OutPoint, Transaction, TxInput, TxOutput, parse_extended, parse_transaction
from overlayd.model.entry import commitment_of
from overlayd.model.txid import TxId

RUNS = 5
KEY = PrivateKey((11).to_bytes(32, "big"))
SCRIPT = lock_to_key(KEY.public_key.encoded)
PARENT = Transaction((TxInput(OutPoint(TxId(bytes(32)), 0), b"\x51"),), (TxOutput(10_000, SCRIPT),))


def measure(name: str, work: Callable[[], object], repeats: int) -> None:
    """Prints microseconds and how many a second."""
    took = []
    for _ in range(RUNS):
        began = time.process_time()
        for _ in range(repeats):
            work()
        took.append((time.process_time() - began) / repeats)
    seconds = statistics.median(took)
    print(f"{name:48} {seconds * 1e6:8.1f} µs {1 / seconds:10,.0f}/s")


def build_commitment(number: int = 0) -> bytes:
    """A packet's commitment, and the signed transaction that carries it, ready to broadcast."""
    commitment = commitment_of(
        number.to_bytes(16, "big"), "weather-001", id="a-packet", type="reading", time="2026-01-02T03:04:05Z", source="s",
        key="", topics=b"", metadata=b"", sent=b'{"t":21.5}',
    )  # fmt: skip
    spendable = Spendable(TxInput(PARENT.outpoint(0)), PARENT.outputs[0], KEY)
    extended = build_spend([spendable], [anchor_output(Anchor(AnchorKind.COMMITMENT, commitment))], SCRIPT, 50)
    return extended.encode()


def measure_proofs() -> None:
    """Merkle paths and headers."""
    txids = [TxId(hash256(number.to_bytes(4, "big"))) for number in range(4000)]
    tree = BlockTree(900_000, txids)
    raw = tree.bump([txids[1234]]).encode()
    measure("BUMP, 12 levels: bytes to checked root", lambda: parse_bump(raw).verify(txids[1234], tree.root), 5_000)
    measure("BUMP, 12 levels: cut from a block and written", lambda: tree.bump([txids[1234]]).encode(), 5_000)
    measure("tree of a block of 4000", lambda: BlockTree(900_000, txids), 5)
    header = MAINNET.genesis.raw
    measure("header: bytes to checked work", lambda: parse_header(header).verify_work(MAINNET.limit_bits), 5_000)


def measure_signatures() -> None:
    """Keys, signatures, derived keys."""
    digest = sha256(b"digest")
    signature = KEY.sign_digest(digest)
    other = PrivateKey((12).to_bytes(32, "big"))
    signed = sign_message(b"packet", KEY, digest).encode()
    measure("sign", lambda: KEY.sign_digest(digest), 3_000)
    measure("verify", lambda: KEY.public_key.verify_digest(digest, signature), 3_000)
    measure("BRC-42 child, private", lambda: derive_private(KEY, other.public_key, "2-some protocol-1"), 2_000)
    measure("BRC-42 child, public", lambda: derive_public(KEY.public_key, other, "2-some protocol-1"), 2_000)
    measure("BRC-77 verify", lambda: parse_message_signature(signed).verify(b"packet"), 1_000)


def measure_transactions() -> None:
    """Parsing, building, checking."""
    extended = parse_extended(build_commitment())
    raw, encoded = extended.tx.raw, extended.encode()
    bump = BlockTree(5, [TxId(bytes(32)), PARENT.txid]).bump([PARENT.txid])
    beef = assemble_beef(extended.tx, {PARENT.txid: (PARENT, bump)}).encode()
    measure(f"transaction of {len(raw)} bytes: parse", lambda: parse_transaction(raw), 3_000)
    measure("extended: parse", lambda: parse_extended(encoded), 3_000)
    measure("extended: check amounts and script", lambda: verify_spending(extended), 2_000)
    measure(f"BEEF of {len(beef)} bytes: parse", lambda: parse_beef(beef), 2_000)
    measure("BEEF: parse and verify", lambda: verify_beef(parse_beef(beef), {5: bump.root}.get), 1_000)
    measure("commitment: hashed, built, signed, extended", build_commitment, 2_000)


if __name__ == "__main__":
    measure_proofs()
    measure_signatures()
    measure_transactions()
