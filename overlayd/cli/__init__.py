"""The command line. Each command's module is loaded when it is called, so that --help and small commands start fast."""

import importlib

import click

_COMMANDS = {
    "run": ("overlayd.cli.run", "Run a node"),
    "init": ("overlayd.cli.init", "Write a commented configuration and the node's keys into a directory"),
    "check-config": ("overlayd.cli.check_config", "Show the settings in effect and where each comes from"),
    "reload": ("overlayd.cli.reload", "Have a node read its configuration anew"),
    "apply": ("overlayd.cli.apply", "Bring a node's streams and subscriptions in line with a file"),
    "publish": ("overlayd.cli.publish", "Publish packets from standard input or a file"),
    "produce": ("overlayd.cli.produce", "Publish packets that bring a transaction of your own, and follow them"),
    "import": ("overlayd.cli.import_events", "Bring in what other programs have stored"),
    "tail": ("overlayd.cli.tail", "Print packets as they arrive"),
    "streams": ("overlayd.cli.streams", "List, define, pause, resume, stop, hold and delete streams"),
    "retention": ("overlayd.cli.retention", "Show how taking old packets away stands"),
    "subscriptions": ("overlayd.cli.subscriptions", "Create, list, move, fetch from and delete durable subscriptions"),
    "agents": ("overlayd.cli.agents", "Pause all agents, or let them go on"),
    "sessions": ("overlayd.cli.sessions", "List and end live connections"),
    "erase": ("overlayd.cli.erase", "Erase packets, or everything about somebody"),
    "subject": ("overlayd.cli.subject", "Show and export what is kept about somebody, and their consent"),
    "keys": ("overlayd.cli.keys", "Make, list, rotate and revoke API keys"),
    "top": ("overlayd.cli.top", "Watch a node: streams, rates, lags, sessions, chain"),
    "usage": ("overlayd.cli.usage", "Show what was published, read and delivered"),
    "quotas": ("overlayd.cli.quotas", "Show quotas and change their policies"),
    "wallet": ("overlayd.cli.wallet", "Show what the node has to pay with on the chain, and make coins"),
    "regtest": ("overlayd.cli.regtest", "Mine, reorganize and spend twice on the node's embedded chain"),
    "node": ("overlayd.cli.node", "Show who the node is and where its log stands"),
    "verify": ("overlayd.cli.verify", "Check a whole log, an evidence export or one proof file"),
    "export": ("overlayd.cli.export", "Write a part of the log with all that proves it"),
    "backup": ("overlayd.cli.backup", "Make, list and check backups of the log"),
    "restore": ("overlayd.cli.restore", "Put a backup in place of a log"),
    "salvage": ("overlayd.cli.salvage", "Save what can be saved of a damaged log"),
    "rebuild": ("overlayd.cli.rebuild", "Make anew what a node derives from its log"),
    "doctor": ("overlayd.cli.doctor", "Examine machine, configuration, data and node, and say what to do"),
    "smoke": ("overlayd.cli.smoke", "Publish, read live and verify on a running node, then clean up"),
    "completion": ("overlayd.cli.completion", "Print the completion script of a shell"),
}

_EPILOG = """\
\b
Commands on a running node use its Unix socket DIR/overlayd.sock; --url or
$OVERLAYD_URL leads elsewhere.

\b
Exit codes:
   0  done
   1  failed: refused, rejected, or broken on the way
   2  wrong usage
  69  the node can't be reached
  75  the data directory is in use, or a failure that may pass
  78  wrong configuration
 130  interrupted
`verify` adds its own: see overlayd verify --help.
"""


class _LazyGroup(click.Group):
    """A group that knows its commands by name and loads them when needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib  # only for a mistake, and not quick to load

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        from overlayd.cli.exits import told_errors  # brings the error tree, which --help doesn't need

        with told_errors():
            return super().invoke(ctx)


def _tell_version(ctx: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked and not ctx.resilient_parsing:
        from overlayd.model.build_info import version_text  # looks at every library, which no other command needs

        click.echo(version_text())
        ctx.exit()


@click.group(
    cls=_LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_tell_version, help="Show versions and exit."
)
def cli() -> None:
    """A durable, verifiable event broker for an edge node: one process, one file."""


def main() -> None:
    """Entry point of the `overlayd` command."""
    cli(prog_name="overlayd")
