"""The `qtasks` command. Each subcommand is imported when it is called, so `--help` stays quick."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Final

import click
from click.shell_completion import CompletionItem

from qtasks.errors import QTasksError, did_you_mean, missing_extra

_COMMANDS: Final = {
    "new": ("qtasks.cli.start.new_command", "Create a project that runs, with a test that passes."),
    "dev": ("qtasks.cli.dev.dev_options", "Run a broker and your application for development, in one terminal."),
    "broker": ("qtasks.cli.broker.serve", "Run the QStash-compatible server, or manage its tokens."),
    "run": ("qtasks.cli.serving.run", "Run your tasks as a production server."),
    "send": ("qtasks.cli.send", "Send a call of a task by its name."),
    "tasks": ("qtasks.cli.tasks", "List the tasks of an application."),
    "schedules": ("qtasks.cli.schedules", "List, sync and change the schedules of an application."),
    "messages": ("qtasks.cli.operate.messages_command", "Search, look at, cancel and retry messages."),
    "failures": ("qtasks.cli.operate.failures_command", "Look at what fails, grouped by error."),
    "dlq": ("qtasks.cli.operate.dlq_command", "Search, look at, retry and delete dead letters."),
    "pull": ("qtasks.cli.pull", "Run a message of any QStash service here, to step through it."),
    "logs": ("qtasks.cli.operate.logs_command", "Print the log of the service."),
    "queues": ("qtasks.cli.operate.queues_command", "Look at queues, pause them, set their parallelism."),
    "flow": ("qtasks.cli.operate.flow_command", "Look at flow-control keys, pause them, fix their limits."),
    "audit": ("qtasks.cli.operate.audit_command", "Show what operators changed, and who it was."),
    "keys": ("qtasks.cli.operate.keys_command", "Show and rotate the signing keys."),
    "store": ("qtasks.cli.operate.store_command", "Check, back up, restore and shrink the database of a broker."),
    "console": ("qtasks.cli.console.console_command", "Open the console of any QStash service in the browser."),
    "mcp": ("qtasks.cli.assistant.mcp_command", "Let an assistant look at a broker, read-only."),
    "config": ("qtasks.cli.config", "Show the settings of an application, and where each comes from."),
    "doctor": ("qtasks.cli.operate.doctor.doctor_command", "Check machine, application, settings, service and store."),
    "completion": ("qtasks.cli.operate.completion_command", "Print the completion for bash, zsh or fish."),
    "explain": ("qtasks.cli.explain", "Explain an error code."),
    "version": ("qtasks.cli.version", "Print the version; --verbose prints what a report of a defect needs."),
}


class _LazyGroup(click.Group):
    """A group that knows the name and the help line of each command, and imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        try:
            command: click.Command = importlib.import_module(module).command
        except ModuleNotFoundError as error:
            raise missing_extra(error, f"`qtasks {cmd_name}`") or error from None
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:  # a command loads what it runs when it runs
            raise missing_extra(error, f"`qtasks {ctx.invoked_subcommand}`") or error from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            all_commands = f"; known: {', '.join(_COMMANDS)}"
            ctx.fail(f"there is no command {name!r}{did_you_mean(name, _COMMANDS) or all_commands}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=text) for name, (_, text) in _COMMANDS.items() if name.startswith(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qstash-tasks", prog_name="qtasks")
def cli() -> None:
    """Background tasks for web applications, pushed over HTTP."""


def main() -> None:
    """Run the command line. An error of qtasks prints its code and text and sets the exit status; no traceback."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # not open: a socket would get its number, and libuv aborts on such a socket
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # printing must not fail on a terminal that cannot show a character
    try:
        cli(prog_name="qtasks", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except QTasksError as error:
        click.echo(f"{error.code} {error}", err=True)
        from qtasks.cli.exit_codes import exit_code_of

        sys.exit(exit_code_of(error))
