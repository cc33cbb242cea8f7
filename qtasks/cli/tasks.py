"""`qtasks tasks`: the tasks of an application."""

from __future__ import annotations

import inspect
from pathlib import Path

import click

from qtasks.cli.changes import as_json_option
from qtasks.cli.loader import load, locate_running, say_which
from qtasks.cli.option_types import app_argument
from qtasks.cli.printing import echo_json
from qtasks.tasks.schedules.recurrence import shown


@click.command("tasks")
@app_argument
@as_json_option
def command(app: str | None, as_json: bool) -> None:
    """List the tasks of APP: name, parameters, what it does, searchable arguments, times of its schedules."""
    target = locate_running(app, Path.cwd())
    say_which(target)
    loaded = load(target)
    facts = [
        {
            "name": name,
            "signature": task.parameters.signature.removeprefix(name),
            "summary": (inspect.getdoc(task.__wrapped__) or "").partition("\n")[0],
            "searchable": list(task.searchable),
            "schedules": [shown(declared.cron) for declared in task.declared],
        }
        for name, task in sorted(loaded.tasks.tasks.items())
    ]
    if as_json:
        echo_json(facts)
        return
    for task in facts:
        click.echo(f"{task['name']}{task['signature']}")
        found_by = ", ".join(f"arg.{name}:" for name in task["searchable"])
        times = (f"at {when}" for when in task["schedules"])
        for line in (task["summary"], f"found by {found_by}" if found_by else "", *times):
            if line:
                click.echo(f"    {line}")
