"""Rows of producing: commitments built and transactions signed in a second of one processor, ready to be published."""

import importlib.util
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.samples import Contender, Row, Sample
from overlayd.bsv.keys import PrivateKey
from overlayd.client import Coin, Producer, Purse

SECRET = (11).to_bytes(32, "big")
DATA = {"t": 21.5, "site": "roof", "at": "2026-01-02T03:04:05Z"}
SATOSHIS = 100_000
RATE = 100
AT_ONCE = 50
JS = Path(__file__).parents[1] / "tests" / "js"
SCRIPT = Path(__file__).with_name("commitments.mjs")


def spend_processor(work: Callable[[int], object], seconds: float) -> Sample:
    """Does it over and over; how often in a second of processor time, which other processes change little."""
    count, began = 0, time.process_time()
    while not count or time.process_time() - began < seconds:
        for _ in range(AT_ONCE):
            work(count)
            count += 1
    return Sample({"rate": count / (time.process_time() - began)})


def with_kit(seconds: float, *, is_signing: bool) -> Sample:
    """Packet in, request out: salt, commitment, coin chosen, transaction signed, JSON written."""
    producer = Producer(
        PrivateKey(SECRET), Purse([Coin("ab" * 32, 0, SATOSHIS)]), sat_per_kb=RATE, is_signing=is_signing, pool_coins=1
    )

    def prepare(number: int) -> None:
        prepared = producer.prepare("weather-001", DATA, id=f"p{number}", type="reading")
        producer.purse.note_confirmed(prepared.txid)
        if prepared.change[0].satoshis < SATOSHIS // 2:
            producer.purse.add(Coin(f"{number:064x}", 0, SATOSHIS))

    return spend_processor(prepare, seconds)


def with_bsv_sdk(seconds: float) -> Sample:
    """The transaction alone, by the chain library for Python: the commitment isn't hashed, no JSON is written."""
    from bsv import P2PKH, SatoshisPerKilobyte, Transaction, TransactionInput, TransactionOutput
    from bsv import PrivateKey as Key
    from bsv.script.script import Script

    key = Key(SECRET)
    lock = P2PKH().lock(key.address())
    source = Transaction([], [TransactionOutput(lock, SATOSHIS)])

    def build(number: int) -> None:
        script = Script("006a086f7665726c617964010120" + number.to_bytes(32, "big").hex())
        made = Transaction(
            [TransactionInput(source_transaction=source, source_output_index=0, unlocking_script_template=P2PKH().unlock(key))],
            [TransactionOutput(script, 0), TransactionOutput(lock, change=True)],
        )  # fmt: skip
        made.fee(SatoshisPerKilobyte(RATE))
        made.sign()
        made.to_ef()

    return spend_processor(build, seconds)


def with_javascript(node: str, seconds: float) -> Sample:
    """Commitment and transaction by @bsv/sdk in Node."""
    command = [node, str(SCRIPT), str(JS / "package.json"), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own script
    return Sample({"rate": float(json.loads(done.stdout)["rate"])})


def commitment_rows() -> list[Row]:
    """The kit, and what others need for the like, where they are installed."""
    contenders = [
        Contender("overlayd kit", lambda seconds: with_kit(seconds, is_signing=False)),
        Contender("overlayd kit, packets signed too", lambda seconds: with_kit(seconds, is_signing=True)),
    ]
    if importlib.util.find_spec("bsv") is not None:
        contenders.append(Contender("bsv-sdk", with_bsv_sdk, caveat="the transaction alone"))
    node = shutil.which("node")
    if node and (JS / "node_modules" / "@bsv" / "sdk").is_dir():
        contenders.append(Contender("@bsv/sdk in Node", partial(with_javascript, node)))
    return [
        Row("commitments", "commitments built and signed", "rate", tuple(contenders),
            "packets in a second of one processor's time, ready to be published")
    ]  # fmt: skip
