"""`overlayd completion`."""

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_OVERLAYD_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  overlayd completion bash > ~/.local/share/bash-completion/completions/overlayd
    zsh:   overlayd completion zsh > "${fpath[1]}/_overlayd"
    fish:  overlayd completion fish > ~/.config/fish/completions/overlayd.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root()
    complete = kind(root.command, {}, "overlayd", _VARIABLE)
    # `source()` of the bash class starts a bash to look at its version, which may be missing where this runs.
    click.echo(complete.source_template % complete.source_vars())
