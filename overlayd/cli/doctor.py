"""`overlayd doctor`."""

import os
import random
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import trio

from overlayd.chain.sources.remote import ask_sources
from overlayd.cli import examinations
from overlayd.cli.examinations import Finding
from overlayd.cli.exits import CONFIG, FAILED
from overlayd.cli.features import known_features
from overlayd.cli.output import json_option, print_json
from overlayd.cli.settings import load, settings_options
from overlayd.cli.target import SOCKET_NAME
from overlayd.client import SyncClient
from overlayd.client.retry import ONCE
from overlayd.config import Settings
from overlayd.model.clock import SystemClock
from overlayd.model.errors import ConfigInvalid, OverlaydError
from overlayd.model.metrics import Metrics
from overlayd.outbound import Outbound
from overlayd.storage.machine import read_machine

ANSWER_S = 5.0
_MARKS = {"ok": "ok", "warning": "WARN", "failed": "FAIL", "skipped": "skip"}


@click.command("doctor")
@settings_options
@click.option("--offline", is_flag=True, help="Ask nobody outside the machine")
@json_option
def command(config: Path | None, data: str | None, listen: tuple[str, ...], offline: bool, as_json: bool) -> None:
    """Examine the machine, the configuration, the data directory and a running node, and say what to do.

    Nothing is changed; a small file is written to the data directory's disk and removed. Run it as the service's user.
    Exits 1 when something failed, 78 when the configuration can't be read.
    """
    try:
        loaded = load(config, data, listen)
    except ConfigInvalid as error:
        _tell(
            [Finding("configuration", "failed", line, error.hint) for line in error.detail.splitlines()],
            as_json=as_json,
        )
        sys.exit(CONFIG)
    found = list(_tell(_examine(loaded.settings, loaded.files, is_offline=offline), as_json=as_json))
    if any(finding.state == "failed" for finding in found):
        sys.exit(FAILED)


def _examine(settings: Settings, read: tuple[Path, ...], *, is_offline: bool) -> Iterator[Finding]:
    directory, clock = Path(settings.storage.dir), SystemClock()
    yield from examinations.examine_settings(settings, read)
    yield from examinations.examine_directory(directory)
    yield from examinations.examine_space(settings, directory)
    yield from examinations.examine_disk(directory)
    yield from examinations.examine_descriptors(settings)
    yield from examinations.examine_sqlite()
    yield from examinations.examine_clock(clock, read_machine(), examinations.newest_entry_us(directory))
    yield from examinations.examine_log(directory, known_features())
    yield from examinations.examine_certificates(settings, clock)
    yield from _examine_chain(settings, is_offline=is_offline)
    yield from _examine_node(directory)


def _examine_chain(settings: Settings, *, is_offline: bool) -> Iterator[Finding]:
    chain = settings.chain
    if chain.network == "none" or not chain.sources:
        shown = (
            "none: nothing is confirmed on a chain" if chain.network == "none" else f"{chain.network}, inside the node"
        )
        yield Finding("chain", "ok", shown)
        return
    if is_offline:
        yield Finding("chain", "skipped", f"{chain.network}; its sources weren't asked")
        return

    try:
        answers = trio.run(_ask_sources, settings)
    except OverlaydError as error:
        yield Finding("chain", "failed", error.detail, error.hint)
        return
    for name, trouble in answers:
        if trouble:
            yield Finding("chain", "warning", f"{name}: {trouble}", "see to its URL and token, or name another source")
        else:
            yield Finding("chain", "ok", f"{name} answers for {chain.network}")


async def _ask_sources(settings: Settings) -> list[tuple[str, str]]:
    outbound = Outbound(settings.limits, settings.webhooks.outbound, Metrics())
    return await ask_sources(
        settings.chain, sender=outbound, environ=os.environ, clock=SystemClock(), metrics=Metrics(),
        chance=random.Random(),  # noqa: S311 - spreads retries, keeps no secret
    )  # fmt: skip


def _examine_node(directory: Path) -> Iterator[Finding]:
    """A node that runs on the directory, if there is one."""
    path = directory / SOCKET_NAME
    if not path.exists():
        yield Finding("node", "ok", f"none runs on {directory}")
        return
    if not _is_answered(path):
        fix = "systemctl status overlayd, journalctl -u overlayd"
        yield Finding("node", "warning", f"none answers at {path}", fix)
        return
    try:
        with SyncClient(f"unix:{path}", retry=ONCE) as client:
            ready = client.ready()
    except OverlaydError as error:
        yield Finding("node", "failed", error.detail, error.hint)
        return
    for name, check in ready.checks.items():
        if not check.ok:
            yield Finding("node", "failed", f"{name}: {check.detail}", "overlayd node shows more")
    if ready.ready:
        yield Finding("node", "ok", "takes packets")


def _is_answered(path: Path) -> bool:
    """Whether somebody listens; httpx would leave the socket of a refused connection open."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(ANSWER_S)
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True


def _tell(findings: Iterable[Finding], *, as_json: bool) -> list[Finding]:
    told = []
    for finding in findings:
        told.append(finding)
        if as_json:
            print_json(finding)
            continue
        click.echo(f"{_MARKS[finding.state]:5} {finding.name:14} {finding.detail}")
        if finding.fix:
            click.echo(f"{'':20} → {finding.fix}")
    return told
