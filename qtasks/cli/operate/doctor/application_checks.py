"""Checks of the application: its import, its tasks, its schedules."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from qtasks.cli.loader import AppError
from qtasks.cli.operate.doctor.findings import CheckResult, Patient, fail, note, ok
from qtasks.cli.operate.running_tasks import names_of_tasks
from qtasks.cli.operate.service import now_ms
from qtasks.cli.printing import counted
from qtasks.error_codes import ErrorCode
from qtasks.errors import QTasksError
from qtasks.protocol import cron

if TYPE_CHECKING:
    from qtasks.tasks.app import QTasks

_SLOW_S: Final = 3.0
_YEAR: Final = timedelta(days=366)
_HOUR: Final = timedelta(hours=1)
_FREQUENT_MS: Final = 3_600_000


def _tasks(patient: Patient) -> QTasks | None:
    """The tasks of the application; None if there is no application here, or it cannot be imported."""
    try:
        return patient.application.tasks
    except AppError:
        return None


def application(patient: Patient) -> CheckResult:
    """The application can be found and imported."""
    try:
        loaded = patient.application
    except AppError as error:
        if error.code == ErrorCode.APPLICATION_NOT_FOUND and patient.app is None:
            return note("no application in this folder", fix="name it: qtasks doctor tasks.py")
        raise
    text = f"{loaded.target}, imported in {patient.load_s:.1f} s"
    if patient.load_s > _SLOW_S:
        return note(
            text, cause="every start and every reload waits for it", fix="import large modules where they are used"
        )
    return ok(text)


def tasks(patient: Patient) -> CheckResult | None:
    """Every task can be called: its parameters and its result can travel as JSON, its options fit."""
    if (application := _tasks(patient)) is None:
        return None
    for task in application.tasks.values():
        try:
            task.ready()
        except QTasksError as error:
            return fail(
                error.message,
                cause=f"{error.code}: the declaration of {task.name} cannot work",
                fix=error.fix or f"see `qtasks explain {error.code}`",
            )
    count = len(application.tasks)
    return ok(f"{counted(count, 'task')}, all can be called") if count else note("the application has no tasks")


def schedules(patient: Patient) -> CheckResult | None:
    """No task has two schedules with the same times."""
    application = _tasks(patient)
    if application is None or not len(application.schedules):
        return None
    handles = list(application.schedules)
    times = Counter((handle.name.partition(":")[0], handle.timing.zone, handle.timing.fields) for handle in handles)
    twice = sorted({name for (name, _, _), count in times.items() if count > 1})
    if twice:
        return note(f"two schedules with the same times: {', '.join(twice)}", fix="remove one of them")
    return ok(f"{counted(len(handles), 'schedule')}, no two alike")


def clock_changes(patient: Patient) -> CheckResult | None:
    """Runs inside a clock change of the next twelve months, which are moved or made once."""
    application = _tasks(patient)
    if application is None or not len(application.schedules):
        return None
    affected = []
    now = datetime.fromtimestamp(now_ms() / 1000, UTC)
    for handle in application.schedules:
        timing = handle.timing
        if timing.every_ms or _is_frequent(timing, now):
            continue
        affected += [
            f"{handle.name} on {moment.astimezone(ZoneInfo(timing.zone)):%Y-%m-%d}"
            for moment in _changes(ZoneInfo(timing.zone), now)
            if _runs_at(timing, moment)
        ]
    if affected:
        return note(
            f"runs while the clock changes: {', '.join(affected[:3])}",
            cause="a time that does not exist runs after the change, one that exists twice runs once",
            fix="choose another hour if that matters",
        )
    return ok("no run inside a clock change in the next 12 months")


def _is_frequent(timing: cron.Cron, now: datetime) -> bool:
    start = int(now.timestamp() * 1000)
    first = timing.next_ms(start)
    second = None if first is None else timing.next_ms(first)
    return first is None or (second is not None and second - first <= _FREQUENT_MS)


def _changes(zone: ZoneInfo, now: datetime) -> list[datetime]:
    """The hours, UTC, in which the offset of a zone changes within a year."""
    changes = []
    moment = now.replace(minute=0, second=0, microsecond=0)
    day = timedelta(days=1)
    until = moment + _YEAR
    while moment < until:
        if moment.astimezone(zone).utcoffset() != (moment + day).astimezone(zone).utcoffset():
            hour = moment
            while hour.astimezone(zone).utcoffset() == (hour + _HOUR).astimezone(zone).utcoffset():
                hour += _HOUR
            changes.append(hour + _HOUR)
        moment += day
    return changes


def _runs_at(timing: cron.Cron, change: datetime) -> bool:
    """True if there is a run in the hour before or after a change."""
    begin = int((change - _HOUR).timestamp() * 1000) - 1
    run = timing.next_ms(begin)
    return run is not None and run < int((change + _HOUR).timestamp() * 1000)


def drift(patient: Patient) -> CheckResult | None:
    """The service has the schedules that the code declares."""
    application = _tasks(patient)
    if application is None or application.runtime.is_embedded or application.settings.url is None:
        return None
    with application:
        plan = application.schedules.diff()
    if plan.in_sync:
        return ok(f"the service has {counted(len(plan.unchanged), 'schedule')} of the code")
    names = [step.title for step in (*plan.added, *plan.changed, *plan.removed)]
    return fail(
        f"schedules differ from the code: {', '.join(names[:5])}",
        cause="the code was deployed without a sync, or the schedules were changed by hand",
        fix="qtasks schedules diff; qtasks schedules sync",
    )


def served_tasks(patient: Patient) -> CheckResult | None:
    """The running application serves the tasks of this code."""
    application = _tasks(patient)
    if application is None or application.runtime.is_embedded or patient.settings.base_url is None:
        return None
    names = names_of_tasks(patient.settings)
    if names is None:
        return note(
            f"no application answers at {patient.settings.base_url} from here",
            cause="it does not run, is not reachable from this machine, or has other signing keys",
            fix="start it with `qtasks dev` or `qtasks run`",
        )
    here = set(application.tasks)
    if absent := sorted(here - set(names)):
        return fail(
            f"the running application does not have {', '.join(absent[:5])}",
            cause="it runs an older version of the code: calls of these tasks fail there",
            fix="deploy the application",
        )
    return ok(f"the running application has {counted(len(here), 'task')} of this code")
