"""What confirming packets costs: watching 10,000 waiting transactions, a block that confirms them, and memory over many.

Run: .venv/bin/python -m benchmarks.confirmations [--packets 10000] [--blocks 1] [--stored 0] [--json]

Log, embedded chain, headers and watcher in one process: the chain's own work (a thread over its file) is counted with
the node's, so the node's part is less. Processor time is user and kernel of all threads.
"""

import argparse
import json
import random
import resource
import sqlite3
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from overlayd.bsv.anchor import Anchor, AnchorKind, anchor_output
from overlayd.bsv.hashes import sha256
from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.script import lock_to_key
from overlayd.bsv.spending import Spendable, build_spend
from overlayd.bsv.tx import OutPoint, Transaction, TxInput
from overlayd.chain.engine import CHAIN_FEATURES, ChainEngine, open_engine
from overlayd.chain.regtest import RegtestChain, RegtestSettings
from overlayd.chain.settings import ChainSettings
from overlayd.model.clock import Entropy, SystemClock
from overlayd.model.confirmation import BroughtTx
from overlayd.model.definition import ConfirmRule, Definition
from overlayd.model.draft import AppendRequest, Draft
from overlayd.model.entry import commitment_of
from overlayd.model.limits import Limits
from overlayd.model.memory_budget import give_back
from overlayd.model.metrics import Metrics
from overlayd.model.names import StreamName
from overlayd.model.units import Duration
from overlayd.storage import Log, StorageSettings, open_log

STREAM = StreamName("weather-001")
KEY = PrivateKey((11).to_bytes(32, "big"))
SCRIPT = lock_to_key(KEY.public_key.encoded)
COINS_AT_ONCE = 10_000
REQUEST_PACKETS = 500
STORED_AT_ONCE = 20_000
FAR = 1 << 40


def make_draft(number: int, index: int, parent: Transaction, place: int) -> Draft:
    """A packet with its own transaction."""
    csalt, body, name = number.to_bytes(16, "big"), b'{"t":%d}' % number, f"p{number}"
    commitment = commitment_of(
        csalt, STREAM, id=name, type="", time="", source="", key="", topics=b"", metadata=b"", sent=body
    )
    spendable = Spendable(TxInput(OutPoint(parent.txid, place)), parent.outputs[place], KEY)
    made = build_spend([spendable], [anchor_output(Anchor(AnchorKind.COMMITMENT, commitment))], SCRIPT, 100)
    brought = BroughtTx(made.tx.txid, made.tx.raw, made.encode(), None, 0)
    return Draft(index, body, body, id=name, csalt=csalt, brought=brought)


async def publish(log: Log, chain: RegtestChain, first: int, count: int) -> None:
    """Packets with their transactions."""
    stream = log.find_stream(STREAM)
    assert stream is not None
    for start in range(first, first + count, COINS_AT_ONCE):
        parent = await chain.pay(SCRIPT, 10_000, COINS_AT_ONCE)
        end = min(start + COINS_AT_ONCE, first + count)
        for base in range(start, end, REQUEST_PACKETS):
            many = min(REQUEST_PACKETS, end - base)
            drafts = [make_draft(base + at, at, parent, base + at - start) for at in range(many)]
            await log.append(AppendRequest(STREAM, drafts, definition_version=stream.definition_version))


async def store_earlier(log: Log, block: bytes, count: int) -> None:
    """Rows as so many packets leave them that were confirmed long ago; the log itself doesn't hold them."""

    def write(c: sqlite3.Connection, first: int, last: int) -> None:
        c.executemany(
            "INSERT INTO chain_tx (id, txid, role, raw, height, block, bump, to_send, is_open, timeout_blocks, created_us)"
            " VALUES (?, ?, 'brought', ?, 1, ?, ?, 0, 0, 144, 0)",
            [
                (one, sha256(one.to_bytes(8, "big")), bytes(240), block, bytes(480))
                for one in range(FAR + first, FAR + last)
            ],
        )  # fmt: skip
        c.executemany(
            "INSERT INTO chain_item (is_range, offset, to_offset, stream_hash, commitment, tx_id, vout, height, state,"
            " told, ever, next_depth) VALUES (0, ?1, ?1, ?2, ?2, ?1, 0, 1, 'confirmed', ',1,', ',1,', 0)",
            [(one, bytes(32)) for one in range(FAR + first, FAR + last)],
        )

    for first in range(0, count, STORED_AT_ONCE):
        await log.write(partial(write, first=first, last=min(count, first + STORED_AT_ONCE)))


async def measure_block(log: Log, engine: ChainEngine, first: int, count: int) -> dict[str, float]:
    """One block's packets, from publishing to entries; what asking and telling took of a core, and the memory then."""
    chain, watcher = engine.regtest, engine.watcher
    assert chain is not None
    await publish(log, chain, first, count)
    began, cpu = trio.current_time(), time.process_time()
    await watcher.step()
    print(
        f"broadcast {count} and note their answers     {trio.current_time() - began:6.2f} s, {time.process_time() - cpu:6.2f} s of a core"
    )
    watcher.hint_all()
    began, cpu = trio.current_time(), time.process_time()
    await watcher.step()
    asked_s, poll_s = time.process_time() - cpu, float(engine.settings.watch.poll_interval)
    print(f"ask about {count} that wait, once            {trio.current_time() - began:6.2f} s, {asked_s:6.2f} s of a core"
          f" = {asked_s / poll_s:.2%} of one at every {poll_s:.0f} s")  # fmt: skip
    await chain.mine()
    head = log.head
    began, cpu = trio.current_time(), time.process_time()
    await engine.book.follow(chain)
    await watcher.step()
    took_s, used_s = trio.current_time() - began, time.process_time() - cpu
    assert log.head - head == count, f"{log.head - head} entries"
    print(f"a block that confirms {count}: to entries    {took_s:6.2f} s, {used_s:6.2f} s of a core")
    memory_mib = held_mib()
    print(f"memory after {first + count} confirmed packets: {memory_mib:.0f} MiB")
    return {"ask_cpu_s": asked_s, "entries_cpu_s": used_s, "entries_s": took_s, "memory_mib": memory_mib}


def held_mib() -> float:
    """What the process holds now, without what the allocator keeps of what was freed: filling the tables frees tens of MiB
    of rows, more with more of them, which tells nothing about the node."""
    give_back()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


async def run(packets: int, blocks: int, stored: int, is_json: bool) -> None:
    """Everything, in a directory of its own."""
    clock, entropy, metrics = SystemClock(), Entropy(), Metrics()
    nobody: Any = None
    settings = ChainSettings(network="regtest", regtest=RegtestSettings(block_interval=Duration(0)))
    with tempfile.TemporaryDirectory(prefix="overlayd-bench-") as name:
        directory = Path(name)
        async with (
            open_log(
                directory, settings=StorageSettings(), limits=Limits(), defaults=Definition(), clock=clock,
                entropy=entropy, metrics=metrics, features=CHAIN_FEATURES,
            ) as log,
            open_engine(
                settings, log, directory, outbound=nobody, secret=bytes(32), environ={}, clock=clock, entropy=entropy,
                metrics=metrics, chance=random.Random(1),  # noqa: S311 - spreads retries
            ) as engine,
        ):  # fmt: skip
            assert engine is not None
            assert engine.regtest is not None
            await engine.book.follow(engine.regtest)
            await log.define_stream(STREAM, Definition(confirm=ConfirmRule(commit="packet")))
            await engine.regtest.mine(max(1, blocks * packets // 100_000 + 1))
            first = await engine.book.read_at(1)
            assert first is not None
            await store_earlier(log, first.hash, stored)
            print(f"beside {stored} packets confirmed earlier; memory {held_mib():.0f} MiB")
            for block in range(blocks):
                figures = await measure_block(log, engine, 1 + block * packets, packets)
                if is_json:
                    print(json.dumps(figures))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packets", type=int, default=10_000, help="packets of one block")
    parser.add_argument("--blocks", type=int, default=1, help="blocks, one after the other")
    parser.add_argument("--stored", type=int, default=0, help="packets that were confirmed before")
    parser.add_argument("--json", action="store_true", help="also each block's figures, on a line")
    asked = parser.parse_args()
    trio.run(run, asked.packets, asked.blocks, asked.stored, asked.json)


if __name__ == "__main__":
    main()
