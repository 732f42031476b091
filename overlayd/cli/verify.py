"""`overlayd verify`."""

import os
from pathlib import Path
from typing import Any

import click
import msgspec

from overlayd.bsv.chain_check import ChainCheck
from overlayd.bsv.known_headers import HEADERS_BYTES_MAX, KnownHeaders, parse_headers_file
from overlayd.cli.exits import BROKEN, FAILED, OK, REGTEST, SIGNED_ONLY, WITNESSED, tell
from overlayd.cli.export_check import check_expected, opened_export, parse_range, print_export, read_evidence
from overlayd.cli.output import json_option, print_facts, print_json
from overlayd.cli.target import data_directory
from overlayd.model.clock import format_time_us
from overlayd.model.errors import RegtestAnchor, VerificationFailed
from overlayd.model.export_check import ExportVerdict, verify_export
from overlayd.model.key_chain import decode_key_list, follow_keys
from overlayd.model.note import VerifierKey
from overlayd.model.proof import Proof, TrustedKeys, decode_proof, verify_proof
from overlayd.model.tlog_proof import decode_tlog_proof, proof_of_tlog
from overlayd.model.verdict import AnchorReport, SignerReport, Verdict

PROOF_BYTES_MAX = 64 << 20
_CODES = {"signed": SIGNED_ONLY, "witnessed": WITNESSED, "anchored": OK}
_EPILOG = """\
\b
Exit codes of a proof or an export:
  20  broken: something in it doesn't hold
  21  holds, signed by the log's own key only
  22  holds, and a known witness signed too
  23  holds, but is anchored on regtest and --allow-regtest isn't given
   0  holds, and is in a block of the given headers; or is as --accept asks
\b
Exit codes of a log (without FILE):
   0  intact
  20  broken
"""


class _ProofOrExport(click.File):
    """A file, or the directory of an export."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return Path(value) if isinstance(value, str) and Path(value).is_dir() else super().convert(value, param, ctx)


class _Expected(msgspec.Struct, frozen=True):
    """What an export has to be of."""

    span: str | None
    streams: tuple[str, ...]
    is_all: bool

    @property
    def is_any(self) -> bool:
        return self.span is not None or bool(self.streams) or self.is_all


@click.command("verify", epilog=_EPILOG)
@click.argument("file", metavar="[FILE|EXPORT]", type=_ProofOrExport("rb"), required=False)
@click.option(
    "--data", metavar="DIR", help="Data directory: its key is trusted, and without FILE its whole log checked"
)
@click.option("--log-key", "log_keys", metavar="VKEY", multiple=True, help="A log key as its owner published it")
@click.option(
    "--key-list", type=click.File("rb"), help="The log's list of keys (`overlayd keys node --json`), for rotated keys"
)
@click.option("--witness-key", "witness_keys", metavar="VKEY", multiple=True, help="A witness's key")
@click.option("--witnesses", type=click.IntRange(0), default=0, help="So many of them must have signed")
@click.option(
    "--headers",
    type=click.File("rb"),
    help="Block headers to believe: the JSON of GET /v1/chain/headers, or raw headers from a network's first block on",
)
@click.option("--allow-regtest", is_flag=True, help="Take an anchor on a regtest chain, which proves nothing, for one")
@click.option(
    "--accept",
    type=click.Choice(["signed", "witnessed", "anchored"]),
    help="Exit 0 for any proof that holds, for one that a witness signed, or for one in a block",
)
@click.option("--expect-range", "span", metavar="FROM..TO", help="The export must be of exactly these offsets")
@click.option("--expect-stream", "streams", metavar="NAME", multiple=True, help="The export must show this stream")
@click.option("--expect-all-streams", "is_all", is_flag=True,
              help="The export must show every stream that has packets in its range, but for the node's own")  # fmt: skip
@click.option("--rate", type=click.IntRange(0), default=0, metavar="N",
              help="Check at most N entries of a whole log a second, so that a node beside it has the disk [default: all]")  # fmt: skip
@click.option("--resume", "progress", type=click.Path(path_type=Path, dir_okay=False), metavar="PROGRESS",
              help="Keep in this file how far a whole log is checked, and go on from there when it was cut off")  # fmt: skip
@json_option
def command(
    file: Any, data: str | None, log_keys: tuple[str, ...], key_list: Any, witness_keys: tuple[str, ...], witnesses: int,
    headers: Any, allow_regtest: bool, accept: str | None, span: str | None, streams: tuple[str, ...], is_all: bool,
    rate: int, progress: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Check one packet's proof file, an evidence export, or without either the whole log of a data directory. Nothing is
    sent anywhere.

    A proof is only worth what the key is worth: give --log-key as the log's owner published it (`overlayd node`
    shows it there). On the node's own machine --data takes it from the directory. Where the log's key was rotated since,
    or before, --key-list leads from that key to the one that signed; nobody has to be believed for it.

    A proof that carries a block is held against block headers: those of --headers, or those that the node of --data
    checked itself. Without any it is worth what the log's signature is worth.

    Says who signed, what was checked, and what is not proven.
    """
    directory, expected = data_directory(data, os.environ), _Expected(span, streams, is_all)
    if expected.is_any and not isinstance(file, Path):
        raise click.UsageError("only an export has a range and streams to expect")
    try:
        trusted = _trusted_keys(log_keys, witness_keys, witnesses)
        if key_list is not None:
            trusted = follow_keys(decode_key_list(_read_bounded(key_list, "a list of keys")), trusted)
        if not trusted.log_keys and (file is None or data is not None):
            _expect_log(directory)
        if file is None:
            raise SystemExit(_check_log(directory, trusted, rate, progress, as_json))
        own = directory if data is not None else None
        trusted = _believed(trusted, own)
        verdict = _judge(file, trusted, (headers, own, allow_regtest), expected)
    except VerificationFailed as error:
        if as_json:
            print_json({"holds": False, "reason": error.detail, "subject": error.subject})
        tell(error)
        raise SystemExit(REGTEST if isinstance(error, RegtestAnchor) else BROKEN) from error
    if as_json:
        print_json({"holds": True, "verdict": verdict})
    elif isinstance(verdict, ExportVerdict):
        print_export(verdict)
    else:
        _print_verdict(verdict)
    raise SystemExit(OK if _is_accepted(verdict, accept) else _code_of(verdict, accept))


def _judge(
    file: Any, trusted: TrustedKeys, chain: tuple[Any, Path | None, bool], expected: _Expected
) -> Verdict | ExportVerdict:
    """A proof file, or an export. `chain`: the file of headers, the directory that has some, whether regtest counts."""
    headers, own, allow_regtest = chain
    if isinstance(file, Path):
        evidence = read_evidence(file)
        heights = [anchor.anchor.height for anchor in evidence.anchors]
        if evidence.transactions is not None:
            heights.append(evidence.transactions.lowest)
        lowest = min(heights, default=None)
        known = _known_headers(headers, own, lowest)
        return _judge_export(file, trusted, ChainCheck(known, allow_regtest=allow_regtest), expected)
    proof = _read_proof(file)
    known = _known_headers(headers, own, None if proof.anchor is None else proof.anchor.height)
    return verify_proof(proof, trusted, ChainCheck(known, allow_regtest=allow_regtest))


def _judge_export(place: Path, trusted: TrustedKeys, chain: ChainCheck, expected: _Expected) -> ExportVerdict:
    span = None if expected.span is None else parse_range(expected.span)
    with opened_export(place) as files:
        verdict = verify_export(files, trusted, chain)
    check_expected(verdict, span, expected.streams, all_streams=expected.is_all)
    return verdict


def _is_accepted(verdict: Verdict | ExportVerdict, accept: str | None) -> bool:
    return accept == "signed" or (accept == "witnessed" and verdict.is_witnessed) or accept == verdict.level


def _code_of(verdict: Verdict | ExportVerdict, accept: str | None) -> int:
    """Of a proof that holds, but not as it was asked. A block isn't a witness."""
    if verdict.level == "anchored" and accept == "witnessed":
        return SIGNED_ONLY
    return _CODES[verdict.level]


def _known_headers(file: Any, directory: Path | None, height: int | None) -> KnownHeaders | None:
    """Those of the file; else those of the directory from the proof's block on; None where it has no block."""
    if file is not None:
        raw = file.read(HEADERS_BYTES_MAX + 1)
        if len(raw) > HEADERS_BYTES_MAX:
            raise click.UsageError(f"a file of headers has at most {HEADERS_BYTES_MAX} bytes")
        return parse_headers_file(raw)
    if directory is None or height is None:
        return None
    from overlayd.cli.log_check import opened_log  # brings the storage, which a proof file doesn't need
    from overlayd.cli.own_headers import read_own_headers

    with opened_log(directory) as (connection, _):
        return read_own_headers(connection, height)


def _trusted_keys(log_keys: tuple[str, ...], witness_keys: tuple[str, ...], witnesses: int) -> TrustedKeys:
    try:
        keys = [VerifierKey.parse(text) for text in log_keys]
        witness = [VerifierKey.parse(text) for text in witness_keys]
    except VerificationFailed as error:
        raise click.BadParameter(error.detail, param_hint="--log-key / --witness-key") from error
    return TrustedKeys(tuple(keys), tuple(witness), witnesses)


def _believed(trusted: TrustedKeys, own: Path | None) -> TrustedKeys:
    """With the keys of this machine's log, unless others were given."""
    if not trusted.log_keys and own is not None:
        trusted = _own_keys(own, trusted)
    if not trusted.log_keys:
        raise click.UsageError("whose log is it? Give --log-key, or --data for a log of this machine")
    return trusted


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
        *([("producer", f"{verdict.producer}, signature verified")] if verdict.producer else []),
        *_describe_anchor(verdict.anchor),
        *(("signed by", _describe_signer(signer)) for signer in verdict.signers),
    ]
    print_facts(facts)
    click.echo("\nNot proven:")
    for sentence in verdict.not_proven:
        click.echo(f"  - {sentence}")


def _describe_anchor(anchor: AnchorReport | None) -> list[tuple[str, object]]:
    if anchor is None:
        return [("block", "none: the proof carries no anchor")]
    when = format_time_us(anchor.block_time_s * 1_000_000)
    what = "the checkpoint, and so all before it" if anchor.covers == "checkpoint" else "the packet's commitment"
    depth = f"{anchor.confirmations} deep by the given headers" if anchor.is_in_chain else "compared with no headers"
    return [
        ("transaction", f"{anchor.txid}, commits to {what}"),
        ("block", f"{anchor.block}, {anchor.network} {anchor.height}, {depth}"),
        ("block time", f"{when} (its miner's word)"),
    ]


def _describe_signer(signer: SignerReport) -> str:
    if signer.role == "unknown":
        return f"{signer.name} ({signer.key_id}): not a known key, not looked at"
    when = "" if signer.cosigned_s is None else f", at {format_time_us(signer.cosigned_s * 1_000_000)} by its clock"
    return f"{signer.name} ({signer.key_id}): the {'log' if signer.role == 'log' else 'witness'}, verified{when}"


def _check_log(directory: Path, trusted: TrustedKeys, rate: int, progress: Path | None, as_json: bool) -> int:
    from overlayd.cli.check_pace import CheckPace
    from overlayd.cli.log_check import check_log  # brings the storage, which a proof file doesn't need

    report = check_log(directory, trusted, CheckPace(rate, progress))
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        report.print()
    return OK if report.is_intact else BROKEN
