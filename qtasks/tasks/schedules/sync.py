"""Schedules at the service: what is declared is brought there, and what is there is found.

Who syncs: `qtasks dev` at every start and reload; an embedded home when the lifespan of its application starts; for
every other engine `qtasks schedules sync` in the deployment, or `tasks.schedules.sync()`. An embedded home that starts
without an application, on the first `.delay()` of a script, syncs nothing: that moment knows neither whether all
modules are imported nor whether the script is meant to keep time. Schedules that its file has go on, and
`tasks.schedules.sync()` brings in the others.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from qtasks.error_codes import ErrorCode
from qtasks.errors import ApiError, ArgumentsError, ConfigurationError, DefinitionError, ResultsDisabled, did_you_mean
from qtasks.protocol import cron
from qtasks.tasks.dev_server import is_loopback
from qtasks.tasks.options import Span
from qtasks.tasks.schedules import diff, recurrence
from qtasks.tasks.schedules.declaration import DYNAMIC, DesiredSchedule, ScheduleDeclaration, as_declared, declaration
from qtasks.tasks.schedules.diff import SyncPlan
from qtasks.tasks.schedules.task_schedule import TaskSchedule, base_url_of
from qtasks.tasks.settings import DEFAULT, Settings

if TYPE_CHECKING:
    from qtasks.qstash.conversation.operation import Operation
    from qtasks.qstash.schedule import Schedule
    from qtasks.tasks.send.runtime_port import Runtime
    from qtasks.tasks.task import Task

R = TypeVar("R")

log = logging.getLogger("qtasks.schedules")


class Schedules:
    """The schedules that an application's tasks declare; `QTasks.schedules`. Iterating gives a handle on each."""

    def __init__(self, runtime: Runtime, tasks: Mapping[str, Task[..., Any]]) -> None:
        self._runtime = runtime
        self._tasks = tasks

    def __iter__(self) -> Iterator[TaskSchedule[Any]]:
        return iter([TaskSchedule.of(declared) for declared in self._declared()])

    def __len__(self) -> int:
        """How many there are."""
        return len(self._declared())

    def check(self) -> list[DesiredSchedule]:
        """What the service is to have. Raises DefinitionError for a declaration that cannot work.

        And ResultsDisabled where one wants its runs skipped and there is no place for results.
        """
        base_url = base_url_of(self._runtime)
        desired: list[DesiredSchedule] = []
        for declared in self._declared():
            try:
                desired.append(desired_schedule(self._runtime, declared, base_url))
            except ArgumentsError as error:
                raise as_declared(error, declared.title) from None
        return desired

    def check_reach(self) -> None:
        """Refuse to write from where nobody would mean to. Raises ConfigurationError (QT311)."""
        check_reach(self._runtime)

    def diff(self) -> SyncPlan:
        """How code and service differ. Raises ConfigurationError where another's schedule stands in our place."""
        return diff.plan(self.check(), self._found(), base_url_of(self._runtime))

    def sync(self, *, prune: bool = False) -> SyncPlan:
        """Have the service keep what the code declares, and return what was done.

        What agrees already is not written; what was paused stays paused. `prune` removes what was declared once and
        is no more. Idempotent: after an error it can be called again. Raises as `diff`, and ConfigurationError for a
        program that is one for development and has credentials that are not; see `check_reach`.
        """
        from qtasks.qstash import schedule

        check_reach(self._runtime)
        todo = self.diff()
        for step in (*todo.added, *todo.changed):
            assert step.desired is not None
            put(self._runtime, step.desired, paused=step.found is not None and step.found.paused)
        for step in todo.removed if prune else ():
            assert step.found is not None
            self._run(schedule.delete(step.found.schedule_id), f"the removal of schedule {step.title}")
        done = replace(todo, pruned=prune)
        if not done.in_sync:
            log.info("schedules: %s", done, extra={"action": "schedules_synced"})
        return done

    def get(self, name: str) -> TaskSchedule[Any]:
        """The handle on a schedule by its name (``task`` or ``task:name``) or its id, whether the code declares it.

        Raises ConfigurationError for one that there is not, and for one of another environment.
        """
        for declared in self._declared():
            if declared.title == name:
                return TaskSchedule.of(declared)
        base_url = base_url_of(self._runtime)
        known: list[str] = []
        for found in self._found():
            title = diff.own(found, base_url) if found.schedule_id == name else diff.title_of(found, base_url)
            if title is not None and name in (title, found.schedule_id):
                return self.handle(found, title)
            known += [title] if title is not None else []
        known += [declared.title for declared in self._declared()]
        raise ConfigurationError(
            f"there is no schedule {name!r} in {base_url}{did_you_mean(name, known)}",
            details={"known": ", ".join(sorted(set(known))) or "none"},
        )

    def handle(self, found: Schedule, name: str) -> TaskSchedule[Any]:
        """The handle on a schedule of this environment that the service has."""
        task = found.destination.removeprefix(f"{base_url_of(self._runtime)}/")
        return TaskSchedule(
            lambda: self._runtime,
            self._tasks.get(task),
            name=name,
            timing=cron.parse(found.cron),
            identify=lambda _: found.schedule_id,
            call=lambda base_url: diff.call_of(found, base_url),
        )

    def _declared(self) -> list[ScheduleDeclaration]:
        tasks = {id(task): task for task in self._tasks.values()}  # a task stands there under each of its names
        return [declared for task in tasks.values() for declared in task.declared]

    def _found(self) -> Sequence[Schedule]:
        from qtasks.qstash import schedule

        return self._run(schedule.list_all(), "the list of schedules")

    def _run(self, call: Operation[R], what: str) -> R:
        return self._runtime.publisher().call(call, what)


def make(
    task: Task[..., R], expression: str | None, every: Span | None, name: str | None, options: Mapping[str, Any]
) -> TaskSchedule[R]:
    """Create or replace a schedule that no code declares; see `Task.schedule`."""
    zone = options.get("tz")
    if expression is not None and every is None:
        when = recurrence.at(expression, zone)
    elif every is not None and expression is None:
        when = recurrence.every(every, zone)
    else:
        raise DefinitionError(
            f"{task.name}: a schedule runs by a cron expression or by an interval, so one of the two is wanted",
            fix='.schedule("0 9 * * *") or .schedule(every="10m")',
            code=ErrorCode.CRON_INVALID,
        )
    if name is None:
        name = _name_of(task, options.get("args", ()), options.get("kwargs") or {})
    return _stand(declaration(task, when, name, options, label=DYNAMIC))


def _stand(declared: ScheduleDeclaration) -> TaskSchedule[Any]:
    """Have the service keep a dynamic schedule."""
    runtime = declared.task.runtime
    if any(declared.name == one.name for one in declared.task.declared):
        raise DefinitionError(
            f"schedule {declared.title}: the code declares one of this name",
            fix='another one: .schedule(..., name="...")',
        )
    check_reach(runtime)
    base_url = base_url_of(runtime)
    desired = desired_schedule(runtime, declared, base_url)
    handle = TaskSchedule.of(declared)
    try:
        found: Schedule | None = handle.info()
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        found = None
    if found is not None:
        diff.own(found, base_url)
    if found is None or diff.differences(desired, found):
        put(runtime, desired, paused=found is not None and found.paused)
    return handle


def _name_of(task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The name of a dynamic schedule that was given none: its arguments', so that the same call replaces it."""
    if not args and not kwargs:
        return ""
    plain = task.parameters.to_json(task.parameters.check(task.parameters.bind(args, kwargs)))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def desired_schedule(runtime: Runtime, declared: ScheduleDeclaration, base_url: str) -> DesiredSchedule:
    """What the service is to have of a declaration. Raises as `ScheduleDeclaration.desired`, ResultsDisabled."""
    if declared.overlap == "skip" and runtime.results_or_none() is None:
        raise ResultsDisabled(
            f'schedule {declared.title}: overlap="skip" has to know which runs are under way, '
            "and no place for results is configured",
            fix="set QTASKS_RESULTS, or QTasks(results=...), to sqlite:///results.db, postgresql://... "
            'or redis://...; overlap="wait" needs none',
        )
    return declared.desired(base_url)


def put(runtime: Runtime, desired: DesiredSchedule, *, paused: bool) -> None:
    """Create or replace a schedule; services do not promise that one stays paused that is replaced."""
    from qtasks.qstash import schedule

    run, what = runtime.publisher().call, f"schedule {desired.title}"
    run(schedule.create_raw(desired.destination, desired.body, desired.options), what)
    if paused:
        run(schedule.pause(desired.id), what)


def check_reach(runtime: Runtime) -> None:
    """Refuse to write schedules to production from where nobody would mean to. Raises ConfigurationError (QT311).

    Everything but an embedded home and the public development credentials counts as production. Not meant: a program
    that says of itself that it is one for development (`QTASKS_DEV`, as under `qtasks dev`), and a dispatcher that only
    its own machine reaches, for a broker on another one.
    """
    settings = runtime.settings()
    url, _, base_url = settings.sender()
    if not settings.is_production:
        return
    if settings.allow_dev_keys and settings.origin("allow_dev_keys") != DEFAULT:
        why = "this program runs for development (QTASKS_DEV), and the token is not the public development one"
    elif is_loopback(base_url) and not is_loopback(url):
        why = "only this machine reaches the tasks, and the service is on another one"
    else:
        return
    raise ConfigurationError(
        f"schedules are left alone: {why}",
        details={"service": f"{url} ({_origins(settings)})", "tasks": base_url},
        fix="use the credentials of `qtasks dev` here; sync production from its deployment",
        code=ErrorCode.SYNC_TARGET_UNSAFE,
    )


def _origins(settings: Settings) -> str:
    return f"QSTASH_URL from {settings.origin('url')}, QSTASH_TOKEN from {settings.origin('token')}"
