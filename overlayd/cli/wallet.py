"""`overlayd wallet`: what the node has to pay with."""

from typing import TextIO

import click
from msgspec import UNSET

from overlayd.cli.output import json_option, print_facts, print_json, print_table, printable
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient, chain_calls
from overlayd.client.retry import ONCE
from overlayd.model.wire_chain import WalletBody, WalletTxBody


@click.group("wallet")
def command() -> None:
    """Show what the node pays with for packets and checkpoints."""


@command.command("address")
@target_options
def address(target: Target) -> None:
    """Print the address to pay to. Tell the node of the payment with `overlayd wallet deposit`."""
    click.echo(_read(target).address)


@command.command("balance")
@target_options
@json_option
def balance(target: Target, as_json: bool) -> None:
    """Show what the wallet has, in satoshis, and whether something keeps it from paying."""
    body = _read(target)
    if as_json:
        print_json(body)
        return
    print_facts((
        ("network", body.network),
        ("confirmed", f"{body.confirmed:,} satoshis"),
        ("unconfirmed", f"{body.unconfirmed:,} satoshis"),
        ("doubtful", f"{body.doubtful:,} satoshis"),
        ("coins to spend", f"{body.usable_coins:,}"),
        ("fees today", f"{body.fees_today:,} satoshis"),
        ("low", "yes, below the alarm" if body.low else "no"),
        ("waits", "for nothing" if body.waits is UNSET else printable(body.waits)),
    ))  # fmt: skip


@command.command("fan-out")
@click.argument("coins", type=click.IntRange(2, 10_000), required=False)
@target_options
@json_option
def fan_out(coins: int | None, target: Target, as_json: bool) -> None:
    """Split the largest coin that a block holds into COINS small ones, or as many as the pool lacks."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        made = client.send(chain_calls.fan_out(coins or 0))
    if as_json:
        print_json(made)
        return
    click.echo(f"{made.txid}  {made.coins} outputs")


@command.command("deposit")
@click.argument("file", type=click.File("r"), default="-")
@target_options
def deposit(file: TextIO, target: Target) -> None:
    """Tell the node of a transaction that pays its wallet: raw, Extended Format or BEEF, in hex, from FILE or standard
    input. Its coins can be spent once a block holds it."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        click.echo(client.send(chain_calls.deposit(file.read().strip())).txid)


@command.command("history")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many")
@click.option("--before", type=click.IntRange(min=1), help="Older than this number, as the last line says it")
@target_options
@json_option
def history(limit: int, before: int | None, target: Target, as_json: bool) -> None:
    """Show the wallet's transactions, the newest first."""
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        page = client.send(chain_calls.wallet_history(limit=limit, before=before or 0))
    if as_json:
        for line in page.transactions:
            print_json(line)
        return
    print_table(("AT", "TXID", "FOR", "FEE", "STATE", "HEIGHT"), [_row(line) for line in page.transactions])
    if page.next_before is not UNSET:
        click.echo(f"older ones: --before {page.next_before}", err=True)


def _row(line: WalletTxBody) -> tuple[object, ...]:
    state = line.state.replace("_", " ")
    if line.reason is not UNSET:
        state = f"{state}: {printable(line.reason)}"
    return line.at[:19] + "Z", line.txid, line.for_, line.fee, state, "-" if line.height is UNSET else line.height


def _read(target: Target) -> WalletBody:
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        return client.send(chain_calls.wallet())
