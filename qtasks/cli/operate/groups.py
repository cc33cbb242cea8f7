"""A group of commands that suggests the nearest name, and lists if no command is named."""

from __future__ import annotations

import click

from qtasks.errors import did_you_mean


class OperatorGroup(click.Group):
    """Without a command it runs ``list``, also if only options of it or filters (``task:charge``) are given."""

    default = "list"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in front of filters and options, behind the options of the group itself."""
        at = self._own_options(args)
        rest = args[at:]
        first = next(iter(rest), "")
        is_filter = ":" in first or (first.startswith("-") and first not in ("-h", "--help"))
        is_default = is_filter or (not rest and not ctx.resilient_parsing)  # a shell may be completing a command
        if self.default in self.commands and is_default:
            args = [*args[:at], self.default, *rest]
        return super().parse_args(ctx, args)

    def _own_options(self, args: list[str]) -> int:
        """How many arguments at the beginning are options of the group, all of which take a value."""
        own = {name for parameter in self.params for name in parameter.opts}
        at = 0
        while at < len(args) and args[at].partition("=")[0] in own:
            at += 1 if "=" in args[at] else 2
        return at

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. A name that no command has ends with the nearest one."""
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            hint = did_you_mean(name, self.commands) or f"; known: {', '.join(self.commands)}"
            ctx.fail(f"`{ctx.command_path}` has no command {name!r}{hint}")
        return super().resolve_command(ctx, args)
