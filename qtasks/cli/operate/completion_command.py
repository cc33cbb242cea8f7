"""`qtasks completion`: what a shell needs to complete commands, options, and the names that the service knows."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from qtasks.errors import ConfigurationError

_VARIABLE = "_QTASKS_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    r"""Print the completion for a shell. Names of queues, keys, tasks and messages are asked from the service.

    \b
    bash  qtasks completion bash > ~/.local/share/bash-completion/completions/qtasks
    zsh   qtasks completion zsh > a file _qtasks in a folder of $fpath
    fish  qtasks completion fish > ~/.config/fish/completions/qtasks.fish
    """
    completion = get_completion_class(shell)
    if completion is None:
        raise ConfigurationError(f"this click cannot complete for {shell}", fix="pip install -U click")
    root = context.find_root()
    script = completion(root.command, {}, "qtasks", _VARIABLE).source()
    # That of click for fish cuts a description at its first comma.
    click.echo(script.replace('(string split "," $completion)', '(string split --max 1 "," $completion)'))
