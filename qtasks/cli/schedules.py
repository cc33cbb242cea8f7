"""`qtasks schedules`: what the code declares and what the service has, brought together."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from qtasks.cli.loader import load, locate
from qtasks.errors import ConfigurationError
from qtasks.protocol import cron
from qtasks.tasks.app import QTasks
from qtasks.tasks.schedules.diff import SyncPlan
from qtasks.tasks.schedules.recurrence import shown
from qtasks.tasks.schedules.task_schedule import TaskSchedule

if TYPE_CHECKING:
    from qtasks.qstash.schedule import Schedule

_RUNS: Final = 5
_app = click.argument("app", required=False)
_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


@click.group("schedules")
def command() -> None:
    """See, sync and steer the schedules of an application.

    APP is a file, a module, or module:object; without it, it is looked for. The service and the environment are those
    of QSTASH_TOKEN, QSTASH_URL and QTASKS_BASE_URL, or of the `qtasks dev` that runs in this folder. NAME is task, or
    task:name where a task has several.
    """


@command.command("list")
@_app
@_as_json
def list_(app: str | None, as_json: bool) -> None:
    """List the schedules of this environment: when they run next, and how they stand."""
    tasks = _tasks(app)
    with tasks:
        plan = tasks.schedules.diff()
        rows = _rows(tasks, plan)
    if as_json:
        click.echo(json.dumps([row.facts() for row in rows], indent=2))
        return
    _echo_columns(
        [(row.name, shown(row.timing), row.state, row.next_shown) for row in rows], [row.past for row in rows]
    )
    _echo_elsewhere(plan)


@command.command("diff")
@_app
@_as_json
def diff(app: str | None, as_json: bool) -> None:
    """Compare code and service; exit code 1 where they differ."""
    tasks = _tasks(app)
    with tasks:
        plan = tasks.schedules.diff()
    _echo_plan(plan, as_json=as_json)
    if not plan.in_sync:
        sys.exit(1)


@command.command("sync")
@_app
@click.option("--prune", is_flag=True, help="Remove what was declared once and is no more.")
@click.option("--yes", is_flag=True, help="Do not ask before production is changed.")
@_as_json
def sync(app: str | None, prune: bool, yes: bool, as_json: bool) -> None:
    """Have the service keep what the code declares.

    What was paused stays paused, and what is not of this environment, or not of the code, is never touched. Everything
    but the public development credentials is production.
    """
    tasks = _tasks(app)
    with tasks:
        tasks.schedules.check_reach()
        plan = tasks.schedules.diff()
        if plan.added or plan.changed or (prune and plan.removed):
            _confirm(tasks, plan, yes=yes)
        plan = tasks.schedules.sync(prune=prune)
    _echo_plan(plan, as_json=as_json)


@command.command("trigger")
@click.argument("name")
@_app
def trigger(name: str, app: str | None) -> None:
    """Run schedule NAME of APP now, besides its times."""
    tasks = _tasks(app)
    with tasks:
        result = tasks.schedules.get(name).trigger()
    click.echo(f"{result.message_id}  {result.id}")


@command.command("pause")
@click.argument("name")
@_app
def pause(name: str, app: str | None) -> None:
    """Let the times of schedule NAME of APP pass; no sync wakes it."""
    _steer(name, app, "paused", lambda schedule: schedule.pause())


@command.command("resume")
@click.argument("name")
@_app
def resume(name: str, app: str | None) -> None:
    """Have schedule NAME of APP go on with its next time."""
    _steer(name, app, "resumed", lambda schedule: schedule.resume())


@command.command("delete")
@click.argument("name")
@_app
def delete(name: str, app: str | None) -> None:
    """Take schedule NAME away; one that the code of APP declares comes back with the next sync."""
    _steer(name, app, "deleted", lambda schedule: schedule.delete())


@dataclass(frozen=True, slots=True)
class _ScheduleRow:
    """One schedule of the list."""

    name: str
    id: str
    state: str
    handle: TaskSchedule[Any]
    found: Schedule | None

    @property
    def timing(self) -> cron.Cron:
        return self.handle.timing

    @property
    def next_shown(self) -> str:
        if self.found is None or self.found.paused:
            return ""
        return "next " + "".join(_moment(run, run.tzinfo) for run in self.handle.next_runs(1))

    @property
    def past(self) -> str:
        """What came of the last run, and which ones were missed."""
        if self.found is None or self.found.last_schedule_time is None:
            return ""
        states = ", ".join(sorted({state.value.lower() for state in (self.found.last_schedule_states or {}).values()}))
        run = _moment(datetime.fromtimestamp(self.found.last_schedule_time / 1000, UTC), self.zone)
        return f"last {run}" + (f": {states}" if states else "") + (f"; {self.found.error}" if self.found.error else "")

    @property
    def zone(self) -> tzinfo | None:
        return next((run.tzinfo for run in self.handle.next_runs(1)), UTC)

    def facts(self) -> dict[str, object]:
        found = self.found
        states = None if found is None else found.last_schedule_states
        return {
            "name": self.name,
            "id": self.id,
            "cron": self.handle.cron,
            "zone": self.timing.zone,
            "state": self.state,
            "paused": found is not None and found.paused,
            "next": [run.isoformat() for run in self.handle.next_runs(_RUNS)],
            "last": None if found is None else found.last_schedule_time,
            "states": {message: state.value for message, state in (states or {}).items()},
            "error": None if found is None else found.error,
        }


def _tasks(app: str | None) -> QTasks:
    tasks = load(locate(app, Path.cwd())).tasks
    if tasks.runtime.is_embedded:
        raise ConfigurationError(
            "this application has its broker inside: its schedules are synced when it starts",
            fix="steer them in the application, by tasks.schedules.get(...)",
        )
    return tasks


def _rows(tasks: QTasks, plan: SyncPlan) -> list[_ScheduleRow]:
    handles = {handle.name: handle for handle in tasks.schedules}
    rows: list[_ScheduleRow] = []
    for state, steps in (
        ("not synced", plan.added),
        ("differs", plan.changed),
        ("left over", plan.removed),
        ("dynamic", plan.dynamic),
        ("", plan.unchanged),
    ):
        for step in steps:
            words = [state] if state else []
            if step.existing is not None:
                words += ["paused"] if step.existing.paused else []
                handles.setdefault(step.title, tasks.schedules.handle(step.existing, step.title))
            handle = handles[step.title]
            rows.append(_ScheduleRow(step.title, handle.id, ", ".join(words) or "active", handle, step.existing))
    return sorted(rows, key=lambda row: row.name)


def _steer(name: str, app: str | None, done: str, how: Callable[[TaskSchedule[Any]], None]) -> None:
    tasks = _tasks(app)
    with tasks:
        schedule = tasks.schedules.get(name)
        how(schedule)
    click.echo(f"{schedule.name} {done}")


def _confirm(tasks: QTasks, plan: SyncPlan, *, yes: bool) -> None:
    """Have a person, or a flag, say that production is meant."""
    if yes or not tasks.settings.is_production:
        return
    for line in _lines(plan):
        click.echo(line, err=True)
    service = f"{tasks.settings.url}, for {tasks.settings.base_url}"
    if not sys.stdin.isatty():
        raise click.UsageError(f"this changes production at {service}: say so with --yes")
    click.confirm(f"Change production at {service}?", abort=True, err=True)


def _echo_plan(plan: SyncPlan, *, as_json: bool) -> None:
    if as_json:
        facts = {
            "added": [step.title for step in plan.added],
            "changed": {step.title: list(step.reasons) for step in plan.changed},
            "removed" if plan.pruned else "left_over": [step.title for step in plan.removed],
            "unchanged": [step.title for step in plan.unchanged],
            "elsewhere": [one.destination for one in plan.elsewhere],
        }
        click.echo(json.dumps(facts, indent=2))
        return
    for line in _lines(plan):
        click.echo(line)
    if not plan.added and not plan.changed and not plan.removed:
        count = len(plan.unchanged)
        click.echo(f"in sync: {count} schedule{'' if count == 1 else 's'}")
    _echo_elsewhere(plan)


def _lines(plan: SyncPlan) -> list[str]:
    gone = "removed" if plan.pruned else "left over; sync --prune removes it"
    return [
        *(f"+ {step.title}" for step in plan.added),
        *(f"~ {step.title}  {'; '.join(step.reasons)}" for step in plan.changed),
        *(f"- {step.title}  {'; '.join(step.reasons)} ({gone})" for step in plan.removed),
    ]


def _echo_columns(rows: list[tuple[str, ...]], below: list[str]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, more in zip(rows, below, strict=True):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if more:
            click.echo(f"    {more}")


def _echo_elsewhere(plan: SyncPlan) -> None:
    places = sorted({one.destination.rpartition("/")[0] for one in plan.elsewhere})
    if places:
        click.echo(f"left alone, of other environments: {len(plan.elsewhere)} for {', '.join(places)}", err=True)


def _moment(moment: datetime, zone: tzinfo | None) -> str:
    """A time in its zone and, if that is another one, in UTC."""
    local, plain = moment.astimezone(zone), moment.astimezone(UTC)
    written = local.strftime("%a %Y-%m-%d %H:%M %Z")
    return written if local.utcoffset() == plain.utcoffset() else f"{written} ({plain.strftime('%H:%M')} UTC)"
