"""`qtasks schedules`: compare the schedules in the code with those at the service, and change them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from qtasks.cli.changes import as_json_option, confirmed, dry_run_option, yes_option
from qtasks.cli.loader import load, locate, locate_running, running_application, say_which
from qtasks.cli.operate.groups import OperatorGroup
from qtasks.cli.operate.pause_notes import note_option, pause_line
from qtasks.cli.option_types import app_argument
from qtasks.cli.printing import echo_json
from qtasks.errors import ConfigurationError

if TYPE_CHECKING:  # an application is loaded when a command runs, not for --help
    from qtasks.protocol import cron
    from qtasks.qstash.schedule import Schedule
    from qtasks.tasks.app import QTasks
    from qtasks.tasks.schedules.diff import SyncPlan
    from qtasks.tasks.schedules.task_schedule import TaskSchedule

_RUNS: Final = 5


@click.group("schedules", cls=OperatorGroup)
def command() -> None:
    """List, sync and change the schedules of an application.

    APP is a file, a module, or module:object; without it, it is that of the `qtasks dev` that runs in this folder, or
    qtasks looks for one. The service and the environment are those of QSTASH_TOKEN, QSTASH_URL and QTASKS_BASE_URL, or
    of that `qtasks dev`. NAME is the name of a task, or task:name if the task has several schedules.
    """


@command.command("list")
@app_argument
@as_json_option
def list_(app: str | None, as_json: bool) -> None:
    """List the schedules of this environment, with their states and their next runs."""
    tasks = _tasks(app)
    with tasks:
        plan = tasks.schedules.diff()
        rows = _rows(tasks, plan)
    if as_json:
        echo_json([row.facts() for row in rows])
        return
    _echo_columns(
        [(row.name, row.timing.fields, row.timing.zone, row.state, row.next_shown) for row in rows],
        ["; ".join(filter(None, (row.pause, row.past))) for row in rows],
    )
    _echo_elsewhere(plan)


@command.command("diff")
@app_argument
@as_json_option
def diff(app: str | None, as_json: bool) -> None:
    """Compare the code with the service; the exit code is 1 if they differ."""
    tasks = _tasks(app)
    with tasks:
        plan = tasks.schedules.diff()
    _echo_plan(plan, as_json=as_json)
    if not plan.in_sync:
        sys.exit(1)


@command.command("sync")
@app_argument
@click.option("--prune", is_flag=True, help="Remove schedules that the code no longer declares.")
@click.option("--yes", is_flag=True, help="Change production without asking.")
@as_json_option
def sync(app: str | None, prune: bool, yes: bool, as_json: bool) -> None:
    """Make the schedules at the service equal to those in the code.

    Paused schedules stay paused. Schedules of other environments, and schedules that were not declared in code, are
    never changed. Any credentials but the public development ones count as production.
    """
    if prune:
        _refuse_other_application(app)
    tasks = _tasks(app)
    with tasks:
        tasks.schedules.check_target()
        plan = tasks.schedules.diff()
        if plan.added or plan.changed or (prune and plan.removed):
            _confirm(tasks, plan, yes=yes)
        plan = tasks.schedules.sync(prune=prune)
    _echo_plan(plan, as_json=as_json)


@command.command("trigger")
@click.argument("name")
@app_argument
@as_json_option
def trigger(name: str, app: str | None, as_json: bool) -> None:
    """Run schedule NAME of APP now; its next times stay as they are."""
    tasks = _tasks(app)
    with tasks:
        result = tasks.schedules.get(name).trigger()
    if as_json:
        echo_json({"messageId": result.message_id, "callId": result.id})
    else:
        click.echo(f"{result.message_id}  {result.id}")


@command.command("pause")
@click.argument("name")
@app_argument
@note_option
@as_json_option
def pause(name: str, app: str | None, note: str | None, as_json: bool) -> None:
    """Pause schedule NAME of APP until `resume`; a sync does not resume it."""
    _change_schedule(name, app, "paused", lambda schedule: schedule.pause(note=note), as_json=as_json)


@command.command("resume")
@click.argument("name")
@app_argument
@as_json_option
def resume(name: str, app: str | None, as_json: bool) -> None:
    """Resume schedule NAME of APP; it runs at its next time."""
    _change_schedule(name, app, "resumed", lambda schedule: schedule.resume(), as_json=as_json)


@command.command("delete")
@click.argument("name")
@app_argument
@yes_option
@dry_run_option
@as_json_option
def delete(name: str, app: str | None, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Delete schedule NAME; the next sync creates it again if the code of APP declares it."""

    def act(schedule: TaskSchedule[Any]) -> bool:
        done = confirmed(f"delete the schedule {schedule.name}", [schedule.id], yes=yes, dry_run=dry_run)
        if done:
            schedule.delete()
        return done

    _change_schedule(name, app, "deleted", act, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _ScheduleRow:
    """One row of the list."""

    name: str
    id: str
    state: str
    handle: TaskSchedule[Any]
    existing: Schedule | None

    @property
    def timing(self) -> cron.Cron:
        return self.handle.timing

    @property
    def next_shown(self) -> str:
        if self.existing is None or self.existing.paused:
            return ""
        return "next " + "".join(_moment(run, run.tzinfo) for run in self.handle.next_runs(1))

    @property
    def pause(self) -> str:
        """Since when it is paused, by whom and why, as far as the service knows."""
        return "" if self.existing is None else pause_line(self._pause_facts)

    @property
    def _pause_facts(self) -> dict[str, object]:
        existing = self.existing
        if existing is None or existing.paused_at is None:
            return {}
        return {"pausedAt": existing.paused_at, "pausedBy": existing.paused_by, "pauseNote": existing.pause_note}

    @property
    def past(self) -> str:
        """The last run with the states of its messages, and the error if a run was missed."""
        if self.existing is None or self.existing.last_schedule_time is None:
            return ""
        states = ", ".join(
            sorted({state.value.lower() for state in (self.existing.last_schedule_states or {}).values()})
        )
        run = _moment(datetime.fromtimestamp(self.existing.last_schedule_time / 1000, UTC), self.zone)
        return (
            f"last {run}"
            + (f": {states}" if states else "")
            + (f"; {self.existing.error}" if self.existing.error else "")
        )

    @property
    def zone(self) -> tzinfo | None:
        return next((run.tzinfo for run in self.handle.next_runs(1)), UTC)

    def facts(self) -> dict[str, object]:
        existing = self.existing
        states = None if existing is None else existing.last_schedule_states
        return {
            "name": self.name,
            "id": self.id,
            "cron": self.handle.cron,
            "zone": self.timing.zone,
            "state": self.state,
            "paused": existing is not None and existing.paused,
            **self._pause_facts,
            "next": [run.isoformat() for run in self.handle.next_runs(_RUNS)],
            "last": None if existing is None else existing.last_schedule_time,
            "states": {message: state.value for message, state in (states or {}).items()},
            "error": None if existing is None else existing.error,
        }


def _tasks(app: str | None) -> QTasks:
    target = locate_running(app, Path.cwd())
    say_which(target)
    tasks = load(target).tasks
    if tasks.runtime.is_embedded:
        raise ConfigurationError(
            "this application has an embedded broker, which syncs its schedules when it starts",
            fix="change them in the application, with tasks.schedules.get(...)",
        )
    return tasks


def _refuse_other_application(app: str | None) -> None:
    """Refuse to prune the schedules of the application that a running `qtasks dev` serves by the code of another."""
    running = None if app is None else running_application(Path.cwd())
    if running is None:
        return
    target = locate(app, Path.cwd())
    if (target.folder.resolve(), target.module) != (running.folder.resolve(), running.module):
        raise ConfigurationError(
            f"qtasks dev serves {running} in {running.folder}, not {target}: --prune would remove its schedules",
            fix="leave out APP, or stop that qtasks dev",
        )


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


def _change_schedule(
    name: str, app: str | None, change: str, act: Callable[[TaskSchedule[Any]], bool | None], *, as_json: bool
) -> None:
    """Make a change by `act`, which returns False if it has not made it, and print what was done."""
    tasks = _tasks(app)
    with tasks:
        schedule = tasks.schedules.get(name)
        is_done = act(schedule) is not False
    if as_json:
        echo_json({"name": schedule.name, "id": schedule.id, change: is_done})
    elif is_done:
        click.echo(f"{schedule.name} {change}")


def _confirm(tasks: QTasks, plan: SyncPlan, *, yes: bool) -> None:
    """Ask before production is changed, unless `yes` is set."""
    if yes or not tasks.settings.is_production:
        return
    for line in _lines(plan):
        click.echo(line, err=True)
    service = f"{tasks.settings.url}, for {tasks.settings.base_url}"
    if not sys.stdin.isatty():
        raise click.UsageError(f"this changes production at {service}: confirm it with --yes")
    click.confirm(f"Change production at {service}?", abort=True, err=True)


def _echo_plan(plan: SyncPlan, *, as_json: bool) -> None:
    if as_json:
        facts = {
            "added": [step.title for step in plan.added],
            "changed": {step.title: list(step.reasons) for step in plan.changed},
            "removed" if plan.pruned else "left_over": [step.title for step in plan.removed],
            "unchanged": [step.title for step in plan.unchanged],
            "elsewhere": [existing.destination for existing in plan.elsewhere],
        }
        echo_json(facts)
        return
    for line in _lines(plan):
        click.echo(line)
    if not plan.added and not plan.changed and not plan.removed:
        count = len(plan.unchanged)
        click.echo(f"in sync: {count} schedule{'' if count == 1 else 's'}")
    _echo_elsewhere(plan)


def _lines(plan: SyncPlan) -> list[str]:
    outcome = "removed" if plan.pruned else "left over; sync --prune removes it"
    return [
        *(f"+ {step.title}" for step in plan.added),
        *(f"~ {step.title}  {'; '.join(step.reasons)}" for step in plan.changed),
        *(f"- {step.title}  {'; '.join(step.reasons)} ({outcome})" for step in plan.removed),
    ]


def _echo_columns(rows: list[tuple[str, ...]], below: list[str]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, detail in zip(rows, below, strict=True):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if detail:
            click.echo(f"    {detail}")


def _echo_elsewhere(plan: SyncPlan) -> None:
    places = sorted({existing.destination.rpartition("/")[0] for existing in plan.elsewhere})
    if places:
        click.echo(
            f"not changed, of other environments: {len(plan.elsewhere)} for {', '.join(places)}",
            err=True,
        )


def _moment(moment: datetime, zone: tzinfo | None) -> str:
    """A time in `zone` and, if that differs from UTC, also in UTC."""
    local, plain = moment.astimezone(zone), moment.astimezone(UTC)
    written = local.strftime("%a %Y-%m-%d %H:%M %Z")
    return written if local.utcoffset() == plain.utcoffset() else f"{written} ({plain.strftime('%H:%M')} UTC)"
