"""Exit codes, and how errors are told to a person. Documented in docs/cli.md and by `overlayd --help`."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from overlayd.model.errors import ConfigInvalid, DirectoryInUse, NodeUnreachable, OverlaydError, Violation

OK = 0
FAILED = 1
USAGE = 2
BROKEN = 20
SIGNED_ONLY = 21
WITNESSED = 22
REGTEST = 23
UNREACHABLE = 69
TEMPORARY = 75
CONFIG = 78
SIGNALED = 128
"""Plus the signal's number: 130 for Ctrl-C."""

VIOLATIONS_SHOWN = 20


def code_of(error: OverlaydError) -> int:
    """The exit code that fits an error."""
    if isinstance(error, NodeUnreachable):
        return UNREACHABLE
    if isinstance(error, ConfigInvalid):
        return CONFIG
    if isinstance(error, DirectoryInUse) or error.retryable:
        return TEMPORARY
    return FAILED


def tell(error: OverlaydError) -> None:
    """Writes an error to standard error: what, where, what to do."""
    lines = error.detail.splitlines() or [error.title]
    for line in lines:
        click.echo(f"overlayd: {line}", err=True)
    told = set(lines)
    for violation in error.violations[:VIOLATIONS_SHOWN]:
        if violation.detail not in told:
            click.echo(f"  {describe_violation(violation)}", err=True)
    if len(error.violations) > VIOLATIONS_SHOWN:
        click.echo(f"  and {len(error.violations) - VIOLATIONS_SHOWN} more", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)


def describe_violation(violation: Violation) -> str:
    """One line: where, what, which rule."""
    place = ""
    if violation.line is not None:
        place = f"line {violation.line}: "
    elif violation.index is not None:
        place = f"packet {violation.index}: "
    pointer = f"{violation.pointer}: " if violation.pointer else ""
    return f"{place}{pointer}{violation.detail} ({violation.code})"


@contextmanager
def told_errors() -> Iterator[None]:
    """Turns the project's errors into words on standard error and an exit code."""
    try:
        yield
    except OverlaydError as error:
        tell(error)
        raise SystemExit(code_of(error)) from error
