"""`qtasks flow`: look at flow-control keys, pause them, and fix their limits."""

from __future__ import annotations

from typing import Any, Final

import click

from qtasks.cli.changes import as_json_option
from qtasks.cli.operate.completing import key_names
from qtasks.cli.operate.groups import OperatorGroup
from qtasks.cli.operate.pause_notes import note_option, pause_line, with_note
from qtasks.cli.operate.service import ServiceConnection, connected, missing
from qtasks.cli.option_types import Duration
from qtasks.cli.printing import TableColumn, echo_json, echo_table, talk
from qtasks.qstash import flow_control_api
from qtasks.qstash.conversation.operation import Operation
from qtasks.qstash.flow_control_api import PinFlowControlOptions

_COLUMNS: Final = (
    TableColumn("KEY", is_flexible=True),
    TableColumn("STATE"),
    TableColumn("WAITING", is_number=True),
    TableColumn("RUNNING", is_number=True),
    TableColumn("STARTED", is_number=True),
    TableColumn("FIXED"),
)
_key = click.argument("key", shell_complete=key_names)
_create = click.option("--create", is_flag=True, help="Also for a key that no message has had yet.")


@click.group("flow", cls=OperatorGroup)
def command() -> None:
    """Look at flow-control keys, pause and resume them, and fix their limits.

    The service is that of QSTASH_TOKEN and QSTASH_URL, or the `qtasks dev` that runs in this folder.
    """


@command.command("list")
@click.option("--search", metavar="TEXT", help="Only keys that contain this text.")
@as_json_option
def list_(search: str | None, as_json: bool) -> None:
    """List all flow-control keys."""
    with connected() as service:
        keys = service.read("/v2/flowControl", *([("search", search)] if search else []))
    if as_json:
        echo_json({"keys": keys})
    elif keys:
        _echo(keys)
    else:
        talk("there are no flow-control keys")


@command.command("show")
@_key
@as_json_option
def show(key: str, as_json: bool) -> None:
    """Show one key."""
    with connected() as service:
        info = _existing(service, key)
    if as_json:
        echo_json(info)
    else:
        _echo([info])


@command.command("pause")
@_key
@_create
@note_option
@as_json_option
def pause(key: str, create: bool, note: str | None, as_json: bool) -> None:
    """Pause a key: none of its messages starts."""
    _act(key, with_note(flow_control_api.pause(key), note), "paused", create=create, as_json=as_json)


@command.command("resume")
@_key
@as_json_option
def resume(key: str, as_json: bool) -> None:
    """Resume a paused key."""
    _act(key, flow_control_api.resume(key), "resumed", as_json=as_json)


@command.command("set")
@_key
@click.option("--parallelism", type=click.IntRange(1), help="How many attempts run at the same time.")
@click.option("--rate", type=click.IntRange(1), help="How many attempts start within one period.")
@click.option("--period", type=Duration(), help="The period, such as 1s or 1m.")
@_create
@as_json_option
def set_(key: str, parallelism: int | None, rate: int | None, period: int | None, create: bool, as_json: bool) -> None:
    """Fix limits of a key, also against those of later messages, until `unset`."""
    options: PinFlowControlOptions = {}
    if parallelism is not None:
        options["parallelism"] = parallelism
    if rate is not None:
        options["rate"] = rate
    if period is not None:
        options["period"] = max(1, period // 1000)
    if not options:
        raise click.UsageError("name a limit: --parallelism, --rate or --period")
    limits = ", ".join(f"{name} {value}{' s' if name == 'period' else ''}" for name, value in options.items())
    _act(key, flow_control_api.pin(key, options), f"fixed at {limits}", create=create, as_json=as_json)


@command.command("unset")
@_key
@as_json_option
def unset(key: str, as_json: bool) -> None:
    """Let messages set the limits of a key again."""
    operation = flow_control_api.unpin(key, {"parallelism": True, "rate": True})
    _act(key, operation, "is set by its messages again", as_json=as_json)


@command.command("reset")
@_key
@as_json_option
def reset(key: str, as_json: bool) -> None:
    """Start a new rate period now, so that waiting messages start."""
    _act(key, flow_control_api.reset(key), "reset", as_json=as_json)


def _existing(service: ServiceConnection, key: str) -> dict[str, Any]:
    """The key as the API shows it. Raises ApiError (404) with the nearest name."""
    keys = service.read("/v2/flowControl")
    info = next((info for info in keys if info["flowControlKey"] == key), None)
    if info is None:
        raise missing("flow-control key", key, [info["flowControlKey"] for info in keys])
    return dict(info)


def _act(key: str, operation: Operation[None], done: str, *, as_json: bool, create: bool = False) -> None:
    with connected() as service:
        if not create:
            _existing(service, key)
        service.run(operation)
        if as_json:
            echo_json(_existing(service, key))
        else:
            click.echo(f"{key}  {done}")


def _echo(keys: list[dict[str, Any]]) -> None:
    rows = []
    for info in keys:
        pinned = [
            name
            for name, is_pinned in (("parallelism", "isPinnedParallelism"), ("rate", "isPinnedRate"))
            if info.get(is_pinned)
        ]
        period = info.get("ratePeriod") or 1
        rate = f"/{info['rateMax']:,} in {period} s" if info.get("rateMax") else ""
        most = f"/{info['parallelismMax']:,}" if info.get("parallelismMax") else ""
        rows.append(
            (
                info["flowControlKey"],
                "paused" if info.get("isPaused") else "running",
                f"{info.get('waitListSize', 0):,}",
                f"{info.get('parallelismCount', 0):,}{most}",
                f"{info.get('rateCount', 0):,}{rate}",
                ", ".join(pinned),
            )
        )
    echo_table(_COLUMNS, rows, [pause_line(info) for info in keys])
