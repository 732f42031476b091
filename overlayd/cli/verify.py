"""`overlayd verify`."""

import os
from pathlib import Path
from typing import Any

import click
import msgspec

from overlayd.cli.exits import BROKEN, FAILED, OK, SIGNED_ONLY, WITNESSED, tell
from overlayd.cli.output import json_option, print_facts, print_json
from overlayd.cli.target import data_directory
from overlayd.model.clock import format_time_us
from overlayd.model.errors import VerificationFailed
from overlayd.model.key_chain import decode_key_list, follow_keys
from overlayd.model.note import VerifierKey
from overlayd.model.proof import Proof, TrustedKeys, decode_proof, verify_proof
from overlayd.model.tlog_proof import decode_tlog_proof, proof_of_tlog
from overlayd.model.verdict import SignerReport, Verdict

PROOF_BYTES_MAX = 64 << 20
_LEVELS = ("signed", "witnessed")
_CODES = {"signed": SIGNED_ONLY, "witnessed": WITNESSED}
_EPILOG = """\
\b
Exit codes of a proof:
  20  broken: something in it doesn't hold
  21  holds, signed by the log's own key only
  22  holds, and a known witness signed too
   0  holds as strongly as --accept asks
\b
Exit codes of a log (without FILE):
   0  intact
  20  broken
\b
23 (anchored on regtest) and 0 without --accept (anchored on a public chain)
are kept for versions that check anchors; this one checks none.
"""


@click.command("verify", epilog=_EPILOG)
@click.argument("file", type=click.File("rb"), required=False)
@click.option(
    "--data", metavar="DIR", help="Data directory: its key is trusted, and without FILE its whole log checked"
)
@click.option("--log-key", "log_keys", metavar="VKEY", multiple=True, help="A log key as its owner published it")
@click.option(
    "--key-list", type=click.File("rb"), help="The log's list of keys (`overlayd keys node --json`), for rotated keys"
)
@click.option("--witness-key", "witness_keys", metavar="VKEY", multiple=True, help="A witness's key")
@click.option("--witnesses", type=click.IntRange(0), default=0, help="So many of them must have signed")
@click.option("--accept", type=click.Choice(_LEVELS), help="Exit 0 for a proof that is at least so strong")
@json_option
def command(
    file: Any, data: str | None, log_keys: tuple[str, ...], key_list: Any, witness_keys: tuple[str, ...], witnesses: int,
    accept: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Check one packet's proof file, or without FILE the whole log of a data directory. Nothing is sent anywhere.

    A proof is only worth what the key is worth: give --log-key as the log's owner published it (`overlayd node`
    shows it there). On the node's own machine --data takes it from the directory. Where the log's key was rotated since,
    or before, --key-list leads from that key to the one that signed; nobody has to be believed for it.

    Says who signed, what was checked, and what is not proven.
    """
    directory = data_directory(data, os.environ)
    try:
        trusted = _trusted_keys(log_keys, witness_keys, witnesses)
        if key_list is not None:
            trusted = follow_keys(decode_key_list(_read_bounded(key_list, "a list of keys")), trusted)
        if not trusted.log_keys and (file is None or data is not None):
            _expect_log(directory)
        if file is None:
            raise SystemExit(_check_log(directory, trusted, as_json))
        if not trusted.log_keys and data is not None:
            trusted = _own_keys(directory, trusted)
        if not trusted.log_keys:
            raise click.UsageError("whose log is it? Give --log-key, or --data for a log of this machine")
        verdict = verify_proof(_read_proof(file), trusted)
    except VerificationFailed as error:
        if as_json:
            print_json({"holds": False, "reason": error.detail, "subject": error.subject})
        tell(error)
        raise SystemExit(BROKEN) from error
    if as_json:
        print_json({"holds": True, "verdict": verdict})
    else:
        _print_verdict(verdict)
    is_accepted = accept is not None and _LEVELS.index(verdict.level) >= _LEVELS.index(accept)
    raise SystemExit(OK if is_accepted else _CODES[verdict.level])


def _trusted_keys(log_keys: tuple[str, ...], witness_keys: tuple[str, ...], witnesses: int) -> TrustedKeys:
    try:
        keys = [VerifierKey.parse(text) for text in log_keys]
        witness = [VerifierKey.parse(text) for text in witness_keys]
    except VerificationFailed as error:
        raise click.BadParameter(error.detail, param_hint="--log-key / --witness-key") from error
    return TrustedKeys(tuple(keys), tuple(witness), witnesses)


def _expect_log(directory: Path) -> None:
    if not (directory / "log.sqlite3").exists():
        click.echo(f"overlayd: {directory}: there is no log", err=True)
        raise SystemExit(FAILED)


def _own_keys(directory: Path, trusted: TrustedKeys) -> TrustedKeys:
    """With the keys of the log in a directory."""
    from overlayd.cli.log_check import opened_log  # brings the storage, which a proof file doesn't need
    from overlayd.cli.own_keys import read_own_keys

    with opened_log(directory) as (connection, _):
        own = read_own_keys(connection, directory).trusted
    return msgspec.structs.replace(trusted, log_keys=own.log_keys, log_id=own.log_id, spans=own.spans)


def _read_proof(file: Any) -> Proof:
    raw = _read_bounded(file, "a proof file")
    if raw.startswith(b"c2sp.org/tlog-proof@"):
        try:
            return proof_of_tlog(decode_tlog_proof(raw.decode()))
        except UnicodeDecodeError as error:
            raise VerificationFailed("not a C2SP tlog-proof: it isn't UTF-8", subject="proof") from error
    return decode_proof(raw)


def _read_bounded(file: Any, what: str) -> bytes:
    raw: bytes = file.read(PROOF_BYTES_MAX + 1)
    if len(raw) > PROOF_BYTES_MAX:
        raise click.UsageError(f"{what} has at most {PROOF_BYTES_MAX} bytes")
    return raw


def _print_verdict(verdict: Verdict) -> None:
    click.echo("The proof holds.\n")
    what = f"{verdict.stream} {verdict.sequence}" if verdict.stream else f"a {verdict.kind} entry, nothing opened"
    body = "shown and checked" if verdict.is_body_shown else "not shown" if verdict.is_opened else "not opened"
    facts: list[tuple[str, object]] = [
        ("entry", f"{verdict.offset} of {verdict.checkpoint_size}, epoch {verdict.epoch}"),
        ("about", what),
        ("appended", f"{format_time_us(verdict.appended_us)} (the node's word)"),
        ("body", body),
        *([("content hash", verdict.content_hash)] if verdict.content_hash else []),
        ("leaf hash", verdict.leaf_hash),
        ("commitment", verdict.commitment),
        ("log", verdict.log_id),
        ("checkpoint", f"{verdict.origin}, root {verdict.checkpoint_root}"),
        *(("signed by", _describe_signer(signer)) for signer in verdict.signers),
    ]
    print_facts(facts)
    click.echo("\nNot proven:")
    for sentence in verdict.not_proven:
        click.echo(f"  - {sentence}")


def _describe_signer(signer: SignerReport) -> str:
    if signer.role == "unknown":
        return f"{signer.name} ({signer.key_id}): not a known key, not looked at"
    when = "" if signer.cosigned_s is None else f", at {format_time_us(signer.cosigned_s * 1_000_000)} by its clock"
    return f"{signer.name} ({signer.key_id}): the {'log' if signer.role == 'log' else 'witness'}, verified{when}"


def _check_log(directory: Path, trusted: TrustedKeys, as_json: bool) -> int:
    from overlayd.cli.log_check import check_log  # brings the storage, which a proof file doesn't need

    report = check_log(directory, trusted)
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        report.print()
    return OK if report.is_intact else BROKEN
