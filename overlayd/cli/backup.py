"""`overlayd backup`: makes, lists and checks backups, through the running node or in its absence."""

import os
import time
from pathlib import Path

import click
import msgspec
from msgspec import UNSET

from overlayd.cli.exits import BROKEN, FAILED
from overlayd.cli.making_backup import be_gentle, default_place, make_backup
from overlayd.cli.output import json_option, print_json, print_table, shown_bytes
from overlayd.cli.target import Target, target_options
from overlayd.client import SyncClient, backup_calls
from overlayd.client.retry import ONCE
from overlayd.config import load_settings
from overlayd.model.clock import SystemClock, format_time_us
from overlayd.model.errors import BackupDamaged, DirectoryInUse, NodeUnreachable, VerificationFailed
from overlayd.model.units import Size
from overlayd.model.wire_backup import BackupBody, BackupsBody
from overlayd.storage.backup.catalogue import BackupCatalogue, BackupRecord, begin_record, rotate_backups
from overlayd.storage.backup.settings import BackupSettings
from overlayd.storage.files import DirectoryLock

LOOK_S = 0.2


@click.group("backup", invoke_without_command=True)
@click.option("--to", "place", metavar="DIR", type=click.Path(path_type=Path),
              help="Where to put it, while no node runs [default: [backup] dir of the configuration]")  # fmt: skip
@click.option("--keep", type=click.IntRange(1),
              help="Verified backups that stay, while no node runs [default: [backup] keep]")  # fmt: skip
@click.option("--config", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="Whose [backup] counts while no node runs [default: where `overlayd run` looks for one]")  # fmt: skip
@target_options
@json_option
@click.pass_context
def command(
    ctx: click.Context, target: Target, place: Path | None, keep: int | None, config: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Make a backup: whole, compact, checked entry by entry before it counts.

    A running node makes it itself, as its settings say, and publishing goes on. While no node runs it is made from the
    files, as the configuration says. No private key is in it: `overlayd keys export` saves those.
    """
    if ctx.invoked_subcommand is not None:
        return
    try:
        record = _ask_node(target, place)
    except NodeUnreachable:
        if not target.url.startswith("unix:"):
            raise
        settings = load_settings(config, environ=os.environ).settings.backup
        if keep is not None:
            settings = msgspec.structs.replace(settings, keep=keep)
        record = _make_alone(Path(target.url.removeprefix("unix:")).parent, place, settings)
    if as_json:
        print_json(record)
    else:
        click.echo(f"{record.path}: {record.entries} entries, {shown_bytes(record.bytes)}, "
                   f"{'verified' if record.verified else 'with DAMAGED entries'}")  # fmt: skip
    raise SystemExit(0 if record.verified else BROKEN)


@command.command("list")
@target_options
@json_option
def list_backups(target: Target, as_json: bool) -> None:
    """List every backup the node remembers, those that are gone included."""
    try:
        with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
            listed = client.send(backup_calls.backups()).backups
    except NodeUnreachable:
        if not target.url.startswith("unix:"):
            raise
        directory = Path(target.url.removeprefix("unix:")).parent
        listed = tuple(_shown(record) for record in BackupCatalogue(directory).all())
    if as_json:
        for backup in listed:
            print_json(backup)
        return
    print_table(
        ("MADE", "ENTRIES", "SIZE", "STATE", "PATH"),
        [(b.made_at[:19] + "Z", b.entries, shown_bytes(b.bytes), _state(b), b.path) for b in listed],
    )


@command.command("verify")
@click.argument("backup", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--log-key", "log_keys", metavar="VKEY", multiple=True, help="The log's key as its owner published it")
@json_option
def verify(backup: Path, log_keys: tuple[str, ...], as_json: bool) -> None:
    """Check a backup again: every byte against its manifest, every entry, root and signature of the log in it."""
    from overlayd.cli.restoring import inspect_backup

    try:
        inspected = inspect_backup(backup, log_keys)
    except (BackupDamaged, VerificationFailed) as error:
        click.echo(f"overlayd: {error.detail}", err=True)
        raise SystemExit(BROKEN) from error
    if as_json:
        print_json({"manifest": inspected.manifest, "report": msgspec.to_builtins(inspected.report)})
    else:
        inspected.report.print()
    raise SystemExit(0 if inspected.report.is_intact else BROKEN)


@command.command("make-beside", hidden=True)
@click.option("--data", required=True, type=click.Path(path_type=Path))
@click.option("--to", "place", required=True, type=click.Path(path_type=Path))
@click.option("--at", "made_us", required=True, type=int)
@click.option("--wal-bytes", required=True, type=int)
@click.option("--rate", required=True, type=int)
def make_beside(data: Path, place: Path, made_us: int, wal_bytes: int, rate: int) -> None:
    """What a node calls; it keeps the list of backups itself."""
    be_gentle()
    made = make_backup(data, place, made_us, BackupSettings(wal_bytes=Size(wal_bytes), rate=Size(rate)))
    print_json(made.record)


def _ask_node(target: Target, place: Path | None) -> BackupBody:
    with SyncClient(target.url, target.key, tls=target.tls, retry=ONCE) as client:
        if place is not None:
            client.node()
            raise click.UsageError("the node runs, and puts backups where its settings say: [backup] dir")
        asked = client.send(backup_calls.make_backup())
        while True:
            found = _find_run(client.send(backup_calls.backups()), asked.id)
            if found is not None:
                return found
            time.sleep(LOOK_S)


def _find_run(listed: BackupsBody, wanted: str) -> BackupBody | None:
    """The backup once it is made; None while it isn't."""
    run = listed.run
    if run is UNSET or run.id != wanted:
        raise SystemExit(FAILED)
    if run.state == "running":
        return None
    if run.state == "failed":
        click.echo(f"overlayd: no backup: {run.error}", err=True)
        raise SystemExit(FAILED)
    return next(backup for backup in listed.backups if backup.id == wanted)


def _make_alone(directory: Path, place: Path | None, settings: BackupSettings) -> BackupBody:
    """While no node runs. `place`: instead of that of the settings."""
    configured = Path(settings.dir) if settings.dir else default_place(directory)
    clock, place = SystemClock(), (place or configured).absolute()
    if not (directory / "log.sqlite3").exists():
        raise VerificationFailed(f"there is no log in {directory}", subject=str(directory))
    try:
        DirectoryLock(directory).release()
    except DirectoryInUse as error:
        raise DirectoryInUse(
            f"a node holds {directory}, but doesn't answer", subject=str(directory), hint="is it starting or stopping?"
        ) from error
    catalogue, made_us = BackupCatalogue(directory), clock.now_us()
    record = begin_record(made_us, place)
    catalogue.add(record)
    try:
        made = make_backup(directory, place, made_us, settings)
    except BaseException:
        catalogue.note_removed(frozenset({record.id}), clock.now_us())
        raise
    catalogue.add(made.record)
    rotate_backups(catalogue, place, settings.keep, clock.now_us())
    return _shown(made.record)


def _shown(record: BackupRecord) -> BackupBody:
    return BackupBody(
        id=record.id, made_at=format_time_us(record.made_us), path=record.path, bytes=record.bytes, log=record.log,
        epoch=record.epoch, entries=record.entries, root=record.root, verified=record.verified,
        present=record.is_there, removed_at=format_time_us(record.removed_us) if record.removed_us else UNSET,
    )  # fmt: skip


def _state(backup: BackupBody) -> str:
    if not backup.present:
        return "gone"
    return "verified" if backup.verified else "damaged"
