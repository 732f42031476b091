"""Prints overlayd(1) in roff, from the command line's own help. Run: python packaging/man_page.py > overlayd.1"""

import sys

import click

from overlayd import __version__
from overlayd.cli import cli


def _escaped(text: str) -> str:
    lines = text.replace("\\", "\\e").replace("-", "\\-").split("\n")
    return "\n".join(f"\\&{line}" if line[:1] in ".'" else line for line in lines)


def _plain(text: str) -> str:
    """A help text as paragraphs; click's \\b marks keep their lines."""
    out = []
    for paragraph in (text or "").strip().split("\n\n"):
        if paragraph.startswith("\b\n"):
            out.append(f".nf\n{_escaped(paragraph[2:])}\n.fi")
        else:
            out.append(_escaped(" ".join(paragraph.split())))
    return "\n.PP\n".join(out)


def _options(command: click.Command, context: click.Context) -> list[str]:
    lines = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            lines += [".TP", f"\\fB{_escaped(record[0])}\\fR", _escaped(record[1]) or "\\&"]
    return lines


def _command(name: str, command: click.Command, parent: click.Context) -> list[str]:
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [
        f".SS {_escaped(context.command_path)} {_escaped(usage)}",
        _plain(command.help or ""),
        *_options(command, context),
    ]
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                lines += _command(child, found, context)
    return lines


def man_page() -> str:
    """The whole page."""
    root = click.Context(cli, info_name="overlayd")
    lines = [
        f'.TH OVERLAYD 1 "" "overlayd {__version__}" "User commands"',
        ".SH NAME", "overlayd \\- durable, verifiable event broker for an edge node",
        ".SH SYNOPSIS", ".B overlayd", "[\\-\\-version] [\\-\\-help] \\fICOMMAND\\fR [\\fIOPTIONS\\fR]",
        ".SH DESCRIPTION", _plain(cli.help or ""), ".PP", _plain(cli.epilog or ""), ".SH COMMANDS",
    ]  # fmt: skip
    for name in cli.list_commands(root):
        found = cli.get_command(root, name)
        if found is not None:
            lines += _command(name, found, root)
    lines += [
        ".SH FILES", ".TP", "/etc/overlayd/config.toml", "Settings; conf.d/*.toml beside it are read after it.",
        ".TP", "/var/lib/overlayd", "The log and its keys.",
        ".TP", "/var/lib/overlayd/overlayd.sock", "The Unix socket that commands use.",
        ".TP", "/usr/share/overlayd", "A Grafana dashboard and Prometheus alert rules.",
        ".SH SEE ALSO", "/usr/share/doc/overlayd/docs/operations.md: installing and running a node, what to do for each",
        "alert, backup, restore, upgrade. The other pages of the manual lie beside it.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(man_page())
