"""`qtasks config`: the settings of an application, and where each value comes from."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import click

from qtasks.cli.changes import as_json_option
from qtasks.cli.loader import load, locate_running, say_which
from qtasks.cli.option_types import app_argument
from qtasks.cli.printing import TableColumn, echo_json, echo_table
from qtasks.masking import MASK, mask_pairs
from qtasks.protocol import durations
from qtasks.tasks.dev_server import find_dev_server
from qtasks.tasks.settings import VARIABLES, Settings, resolve

_COLUMNS: Final = (
    TableColumn("SETTING"),
    TableColumn("VALUE", is_flexible=True),
    TableColumn("FROM"),
    TableColumn("VARIABLE"),
)
_SECRET: Final = frozenset({"token", "current_signing_key", "next_signing_key", "secret_key"})


@click.command("config")
@app_argument
@as_json_option
def command(app: str | None, as_json: bool) -> None:
    """Show each setting of APP with its value and where that comes from; without APP, those of this environment.

    Secrets are masked. A setting comes from an argument of QTasks(...), an environment variable, the `qtasks dev` that
    runs in this folder, or it is the default.
    """
    rows = [_row(settings, name) for settings in [_settings(app)] for name in VARIABLES]
    if as_json:
        echo_json({"settings": rows})
        return
    echo_table(_COLUMNS, [(row["name"], _shown(row["value"]), row["source"], row["variable"]) for row in rows])


def _settings(app: str | None) -> Settings:
    if app is None:
        return resolve(os.environ, {}, lambda url: find_dev_server(url, start=Path.cwd()))
    target = locate_running(app, Path.cwd())
    say_which(target)
    return load(target).tasks.settings


def _row(settings: Settings, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "value": _value(settings, name),
        "source": settings.origin(name),
        "variable": VARIABLES[name],
    }


def _value(settings: Settings, name: str) -> Any:
    """The value without secrets; durations as texts."""
    if f"{name}_ms" in {field.name for field in fields(settings)}:
        return durations.format(getattr(settings, f"{name}_ms"))
    value = getattr(settings, name)
    if value is None:
        return None
    if name in _SECRET:
        return MASK
    return mask_pairs(value) if isinstance(value, str) else value


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
