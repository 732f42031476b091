"""`overlayd produce`: publishes packets that bring a transaction of the producer's own."""

import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import click
from msgspec import UNSET

from overlayd.bsv.base58 import address_of, parse_wif
from overlayd.bsv.keys import PrivateKey
from overlayd.bsv.network import NETWORKS, REGTEST
from overlayd.cli.coin_file import CoinFile
from overlayd.cli.exits import FAILED, OK, tell
from overlayd.cli.output import json_option, print_json, printable
from overlayd.cli.packet_input import Form, PacketInput
from overlayd.cli.target import Target, read_key, target_options
from overlayd.client import Prepared, Producer, RetryPolicy, SyncClient, chain_calls, coins_in
from overlayd.client.calls import publish_packet
from overlayd.client.producing import SAT_PER_KB
from overlayd.client.publishing import is_uncertain
from overlayd.client.retry import ONCE
from overlayd.model.errors import InvalidPacket, MalformedChainData, NoCoins, OverlaydError
from overlayd.model.wire import Packet, ReceiptBody, StatusMessage

WRITTEN_AT_ONCE = 50
"""Packets that are written down together before they are sent."""
FUND_SAT = 1_000_000
PATIENCE = RetryPolicy(attempts=10, first_s=0.2, max_s=10.0)
_KEY = "OVERLAYD_PRODUCER_KEY"


@click.command("produce")
@click.argument("stream")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--signing-key", metavar="FILE", envvar="OVERLAYD_PRODUCER_KEY_FILE",
              help=f"File with the producer's key, 64 hex digits or as wallets export it (WIF) "
              f"[env: OVERLAYD_PRODUCER_KEY_FILE, or {_KEY} with the key itself]")  # fmt: skip
@click.option("--coins", "coins_path", metavar="FILE", required=True, type=click.Path(dir_okay=False, path_type=Path),
              help="JSON file of the key's coins, kept up to date")  # fmt: skip
@click.option("--regtest-fund", is_flag=True,
              help="Without coins, have the node's regtest miner pay some (needs the right admin)")  # fmt: skip
@click.option("--rate", type=click.IntRange(0, 1_000_000), default=SAT_PER_KB, show_default=True,
              help="Fee in satoshis for 1000 bytes")  # fmt: skip
@click.option("--unsigned", is_flag=True, help="Leave the packets' signature out")
@click.option("--input", "form", type=click.Choice(["auto", "json", "ndjson"]), default="auto", show_default=True,
              help="One JSON value or array, or a value a line")  # fmt: skip
@click.option("--bare", is_flag=True, help="The values are the packets' data, not packet objects")
@click.option("--id-prefix", metavar="TEXT", help="Packets without an id get this and their line number as id")
@click.option("--depth", type=click.IntRange(1), help="Follow until so deep [default: the stream's smallest depth]")
@click.option("--no-follow", is_flag=True, help="End once the node has the packets")
@target_options
@json_option
def command(
    stream: str, file: BinaryIO, signing_key: str | None, coins_path: Path, regtest_fund: bool, rate: int,
    unsigned: bool, form: Form, bare: bool, id_prefix: str | None, depth: int | None, no_follow: bool, target: Target,
    as_json: bool,
) -> None:  # fmt: skip
    """Publish the packets in FILE, or from standard input, to STREAM, each with a transaction of your own that commits
    to it, and follow them until a block holds them.

    The stream must commit each packet (confirm.commit is packet). Every packet needs an id. The transaction spends one
    of the coins in --coins, [{"txid": "…", "vout": 0, "satoshis": 1000}, …]: outputs to the address of your key. What is
    left comes back to it.

    The file is written before anything is sent. When this is interrupted, or the node goes away, run it again with the
    same file: what wasn't answered is sent as it was, and a coin is never spent twice. The packets of that run needn't
    be in the input any more.
    """
    key = read_signing_key(signing_key, os.environ)
    coin_file = CoinFile(coins_path)
    producer = Producer(key, coin_file.purse, sat_per_kb=rate, is_signing=not unsigned)
    packets = PacketInput(file, form=form, is_bare=bare, id_prefix=id_prefix)
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        client.ready()  # an absent node is told at once; later losses are waited out
        if regtest_fund and not len(coin_file.purse):
            _fund(client, producer, coin_file)
    with SyncClient(target.url, target.key, tls=target.tls, retry=PATIENCE) as client:
        work = _Work(client, producer, coin_file, depth=None if no_follow else depth or 0, as_json=as_json)
        try:
            work.send_unanswered()
            work.publish(stream, packets)
            work.follow()
        finally:
            coin_file.write()
    raise SystemExit(FAILED if work.refused else OK)


def read_signing_key(path: str | None, environ: Mapping[str, str]) -> PrivateKey:
    """The producer's key, from a file or the environment. Raises UsageError, which repeats none of it."""
    text = read_key(Path(path), "--signing-key") if path else environ.get(_KEY, "").strip()
    if not text:
        raise click.UsageError(f"give --signing-key FILE, or the key in {_KEY}; a new one: openssl rand -hex 32")
    try:
        return PrivateKey.parse_hex(text)
    except MalformedChainData:
        pass
    for network in NETWORKS.values():
        try:
            return parse_wif(text, network)
        except MalformedChainData:
            continue
    raise click.UsageError("the producer's key is neither 64 hex digits nor a private key as wallets export it (WIF)")


def _fund(client: SyncClient, producer: Producer, coin_file: CoinFile) -> None:
    address = address_of(producer.key.public_key, REGTEST)
    paid = client.send(chain_calls.pay(address, FUND_SAT))
    for coin in coins_in(bytes.fromhex(paid.tx), producer.script):
        coin_file.purse.add(coin)
    coin_file.write()
    click.echo(f"overlayd: regtest coins of {FUND_SAT:,} satoshis paid to {address}", err=True)


class _Work:
    """One run. `depth`: packets are followed until so deep (0: the stream's smallest depth; None: not at all).
    `refused` counts packets that the node didn't take."""

    def __init__(
        self, client: SyncClient, producer: Producer, coin_file: CoinFile, *, depth: int | None, as_json: bool
    ) -> None:
        self._client = client
        self._producer = producer
        self._coin_file = coin_file
        self._depth = depth
        self._as_json = as_json
        self._receipts: dict[str, list[ReceiptBody]] = {}
        self.refused = 0

    def send_unanswered(self) -> None:
        """What an earlier run wrote down and heard nothing of."""
        for one in tuple(self._coin_file.unanswered):
            self._send(one.stream, one.packet, None)

    def publish(self, stream: str, packets: Iterable[bytes]) -> None:
        """Prepares some packets, writes them down, sends them; waits for a block when the coins are used up."""
        texts = iter(packets)
        left: list[bytes] = []
        while some := left or list(islice(texts, WRITTEN_AT_ONCE)):
            prepared, left, reason = self._prepare(stream, some)
            if left and not prepared and (self._depth is None or not self._receipts):
                assert reason is not None
                raise reason
            self._coin_file.note_prepared(prepared)
            for one in prepared:
                self._send(one.stream, one.packet.decode(), one)
            if left:
                self.follow()

    def _prepare(self, stream: str, texts: list[bytes]) -> tuple[list[Prepared], list[bytes], NoCoins | None]:
        """As many as there are coins for, the rest, and why."""
        prepared: list[Prepared] = []
        for place, text in enumerate(texts):
            try:
                prepared.append(self._producer.prepare_packet(stream, text))
            except NoCoins as error:
                return prepared, texts[place:], error
            except InvalidPacket as error:
                self.refused += 1
                tell(error)
        return prepared, [], None

    def _send(self, stream: str, packet: str, prepared: Prepared | None) -> None:
        try:
            receipt = self._client.send(publish_packet(stream, packet.encode(), is_repeatable=True))
        except OverlaydError as error:
            if error.retryable or is_uncertain(error):
                click.echo("overlayd: run this again with the same --coins; nothing is published twice", err=True)
                raise
            self._coin_file.settle(packet, is_refused=True)
            self.refused += 1
            tell(error)
            return
        if prepared is not None:
            prepared.check_receipt(receipt)
        self._coin_file.settle(packet)
        self._receipts.setdefault(stream, []).append(receipt)
        if self._as_json:
            print_json(receipt)
        else:
            again = " (was there already)" if receipt.duplicate else ""
            click.echo(f"{stream} {receipt.sequence}  transaction {receipt.txid}{again}")

    def follow(self) -> None:
        """Until everything that was published is confirmed."""
        if self._depth is None:
            return
        for stream in tuple(self._receipts):
            receipts = self._receipts.pop(stream)
            for packet in self._client.follow(receipts, min_confirmations=self._depth, on_status=self._tell_status):
                self._tell_confirmed(packet)
                if packet.txid is not UNSET:
                    self._producer.purse.note_confirmed(packet.txid)
            self._coin_file.write()

    def _tell_status(self, message: StatusMessage) -> None:
        if not self._as_json:
            reason = "" if message.reason is UNSET else f": {printable(message.reason)}"
            click.echo(f"{message.stream_id} {message.packet_sequence}  {message.confirmation_status}{reason}")

    def _tell_confirmed(self, packet: Packet) -> None:
        if self._as_json:
            print_json(packet)
            return
        click.echo(
            f"{packet.stream_id} {packet.packet_sequence}  confirmed in block {packet.block_height} "
            f"({packet.block_hash}), {packet.confirmations} deep"
        )
