"""Command lines of `qtasks` as a page shows them."""

from __future__ import annotations

import re
import shlex
from typing import Final

import click

from qtasks.cli import cli

_ALWAYS: Final = frozenset({"--help", "--version"})
_OPTION: Final = re.compile(r"--?[a-z]")


def words(line: str) -> list[str]:
    """The words of a command line, without a comment, a redirection and an `&`."""
    return shlex.split(line.partition("  #")[0].partition(" > ")[0].removesuffix("&"))


def unknown_parts(line: str) -> list[str]:
    """What of a command line does not exist: the command, or else its options."""
    command: click.Command = cli
    context = click.Context(cli, info_name="qtasks")
    _, *rest = words(line)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, *rest = rest
        found = command.get_command(context, name)
        if found is None:
            return [name]
        command, context = found, click.Context(found, info_name=name, parent=context)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = [word.partition("=")[0] for word in rest if _OPTION.match(word)]
    return [option for option in used if option not in known | _ALWAYS]
