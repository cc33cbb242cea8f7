"""`qtasks tasks`: what an application offers."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import click

from qtasks.cli.loader import load, locate


@click.command("tasks")
@click.argument("app", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(app: str | None, as_json: bool) -> None:
    """List the tasks of APP: name, parameters, and the first line of the docstring."""
    loaded = load(locate(app, Path.cwd()))
    rows = [
        (name, task.plan.signature.removeprefix(name), (inspect.getdoc(task.function) or "").partition("\n")[0])
        for name, task in sorted(loaded.tasks.tasks.items())
    ]
    if as_json:
        facts = [{"name": name, "signature": signature, "summary": summary} for name, signature, summary in rows]
        click.echo(json.dumps(facts, indent=2))
        return
    for name, signature, summary in rows:
        click.echo(f"{name}{signature}" + (f"\n    {summary}" if summary else ""))
