"""`overlayd regtest`: drives the chain inside a node."""

import click

from overlayd.cli.output import json_option, print_json
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient, chain_calls
from overlayd.client.calls import Call
from overlayd.client.chain_calls import Returned
from overlayd.client.retry import ONCE
from overlayd.model.wire_chain import RegtestBody


@click.group("regtest")
def command() -> None:
    """Drive the embedded regtest chain of a node: its coins are worth nothing, its proofs prove nothing to others."""


@command.command("mine")
@click.argument("blocks", type=click.IntRange(1, 1000), default=1)
@target_options
@json_option
def mine(blocks: int, target: Target, as_json: bool) -> None:
    """Mine BLOCKS blocks now, one without a number."""
    _show(_send(target, chain_calls.mine(blocks)), as_json, "")


@command.command("reorg")
@click.argument("depth", type=click.IntRange(1, 100))
@click.option("--transactions", type=click.Choice(["return", "remine", "drop"]), default="return", show_default=True,
              help="What becomes of those that lose their block: back to the mempool, into the new branch, forgotten")  # fmt: skip
@target_options
@json_option
def reorg(depth: int, transactions: Returned, target: Target, as_json: bool) -> None:
    """Take the newest DEPTH blocks back: another branch, one block longer, overtakes them."""
    _show(_send(target, chain_calls.reorg(depth, transactions)), as_json, "")


@command.command("drop")
@click.argument("txid")
@target_options
@json_option
def drop(txid: str, target: Target, as_json: bool) -> None:
    """Forget the transaction TXID that waits for a block, and those that build on it, without telling."""
    _show(_send(target, chain_calls.drop(txid)), as_json, "forgotten")


@command.command("doublespend")
@click.argument("txid")
@target_options
@json_option
def doublespend(txid: str, target: Target, as_json: bool) -> None:
    """Replace the transaction TXID that waits for a block by another that spends a coin of the miner's or the wallet's."""
    _show(_send(target, chain_calls.double_spend(txid)), as_json, "conflicts")


@command.command("pay")
@click.argument("address")
@click.argument("satoshis", type=click.IntRange(1, 100_000_000))
@click.option("--outputs", type=click.IntRange(1, 1000), default=1, show_default=True, help="So many of that amount")
@target_options
@json_option
def pay(address: str, satoshis: int, outputs: int, target: Target, as_json: bool) -> None:
    """Pay SATOSHIS of the miner's to ADDRESS. The next block holds it."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        paid = client.send(chain_calls.pay(address, satoshis, outputs))
    if as_json:
        print_json(paid)
        return
    click.echo(f"{paid.txid}  {outputs} x {satoshis} satoshis to {address}")


def _send(target: Target, call: Call[RegtestBody]) -> RegtestBody:
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        return client.send(call)


def _show(body: RegtestBody, as_json: bool, word: str) -> None:
    if as_json:
        print_json(body)
        return
    for txid in body.txids or ():
        click.echo(f"{word} {txid}")
    click.echo(f"tip {body.tip.height} {body.tip.hash}")
