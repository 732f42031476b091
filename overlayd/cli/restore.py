"""`overlayd restore`."""

import os
from pathlib import Path
from typing import TextIO

import click

from overlayd.cli.exits import BROKEN
from overlayd.cli.key_bundle import import_keys, read_passphrase
from overlayd.cli.output import json_option, print_json
from overlayd.cli.restoring import Inspected, Restored, describe_epoch, inspect_backup, look_at_old, restore
from overlayd.cli.target import data_directory
from overlayd.model.clock import SystemClock
from overlayd.model.errors import BackupDamaged, VerificationFailed
from overlayd.storage.files import DirectoryLock, make_directory


@click.command("restore")
@click.argument("backup", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--data", metavar="DIR", help="Data directory [default: $STATE_DIRECTORY or ./overlayd-data]")
@click.option("--keys", "keys_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Keys that `overlayd keys export` wrote, where the directory has none")  # fmt: skip
@click.option("--passphrase-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Where the passphrase of --keys stands, instead of being asked for")  # fmt: skip
@click.option("--log-key", "log_keys", metavar="VKEY", multiple=True, help="The log's key as its owner published it")
@click.option("--checkpoint", "checkpoints", multiple=True, type=click.File("r"),
              help="A checkpoint's note that was anchored, witnessed or kept elsewhere; the backup should cover it")  # fmt: skip
@click.option("--replace", is_flag=True, help="Move the directory's log aside; nothing of it is deleted")
@click.option("--accept-loss", is_flag=True, help="Restore although entries are known to be lost by it")
@json_option
def command(
    backup: Path, data: str | None, keys_file: Path | None, passphrase_file: Path | None, log_keys: tuple[str, ...],
    checkpoints: tuple[TextIO, ...], replace: bool, accept_loss: bool, as_json: bool,
) -> None:  # fmt: skip
    """Put a backup in place of a log, while no node runs.

    Every byte and entry of it is checked first; one that was cut off or altered is refused. The node then begins a new
    epoch: clients that were further than the backup are told `gap {reason: restored}` and go on.
    """
    directory = data_directory(data, os.environ)
    make_directory(directory)
    lock = DirectoryLock(directory)
    try:
        inspected = inspect_backup(backup, log_keys, directory)
        known = look_at_old(directory, [file.read() for file in checkpoints], inspected.trusted)
        if keys_file is not None:
            import_keys(keys_file, directory, read_passphrase(passphrase_file, is_new=False))
            inspected = inspect_backup(backup, log_keys, directory)
        if not inspected.report.is_intact and not accept_loss:
            raise BackupDamaged(
                f"{backup}: {inspected.report.fault_count} faults in it, the first: {inspected.report.faults[0]}; "
                "take another backup, or restore what is whole of this one with --accept-loss",
                subject=str(backup),
            )  # fmt: skip
        done = restore(
            inspected, backup, directory, known, SystemClock(), may_lose=accept_loss, may_replace=replace
        )  # fmt: skip
    except (BackupDamaged, VerificationFailed) as error:
        click.echo(f"overlayd: {error.detail}", err=True)
        raise SystemExit(BROKEN) from error
    finally:
        lock.release()
    if as_json:
        print_json({"restored": done, "manifest": inspected.manifest, "faults": inspected.report.fault_count})
    else:
        _tell(done, inspected, directory)


def _tell(done: Restored, inspected: Inspected, directory: Path) -> None:
    manifest = inspected.manifest
    click.echo(f"restored {done.entries} entries of {manifest.made_at} into {directory}")
    if not inspected.report.is_intact:
        click.echo(f"  {inspected.report.fault_count} faults in it; overlayd verify names them")
    if done.lost:
        click.echo(f"  at least {done.lost} entries came after it and are lost; clients that saw them are told so")
    if done.known.anchored > done.entries:
        click.echo(f"  it lies BEHIND the last anchored checkpoint, which covers {done.known.anchored} entries")
    if done.known.is_unreadable:
        click.echo("  the old database couldn't be read in full; more may be lost than is said here")
    if describe_epoch(done.known):
        click.echo(f"  the next start begins an epoch after {describe_epoch(done.known)}")
    if done.moved_to:
        click.echo(f"  the old log is in {done.moved_to}")
    if not any((directory / "keys").glob("log*.ed25519")):
        click.echo(
            "  there are no key files: put them into DIR/keys, or restore with --keys, before the node is started"
        )
