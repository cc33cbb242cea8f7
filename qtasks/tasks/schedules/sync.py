"""Sync: make the service have the schedules that the code declares. Also finds and creates schedules at the service.

`qtasks dev` syncs at every start and reload, and an embedded broker when the lifespan of its application starts. With
every other service, sync in the deployment: `qtasks schedules sync`, or `tasks.schedules.sync()`.

An embedded broker that starts without an application, at the first `.delay()` of a script, does not sync: at that
moment it is not known whether all modules are imported, nor whether the script should run schedules at all. Schedules
that are in its file continue, and `tasks.schedules.sync()` adds the others.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from qtasks.api_names import ApiNames
from qtasks.error_codes import ErrorCode
from qtasks.errors import ApiError, ArgumentsError, ConfigurationError, DefinitionError, ResultsDisabled, did_you_mean
from qtasks.protocol import cron
from qtasks.protocol.labels.schedule_labels import DYNAMIC
from qtasks.protocol.loopback import is_loopback_url
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.options import Span
from qtasks.tasks.schedules import recurrence
from qtasks.tasks.schedules.declaration import (
    DesiredSchedule,
    ScheduleDeclaration,
    declaration_error,
    declare,
)
from qtasks.tasks.schedules.diff import SyncPlan, differences, plan_sync
from qtasks.tasks.schedules.existing_schedule import call_of, check_owner, title_of
from qtasks.tasks.schedules.task_schedule import TaskSchedule, base_url_of
from qtasks.tasks.settings import DEFAULT, Settings

if TYPE_CHECKING:
    from qtasks.qstash.conversation.operation import Operation
    from qtasks.qstash.schedule import Schedule
    from qtasks.tasks.send.runtime_port import Runtime

R = TypeVar("R")

log = logging.getLogger("qtasks.schedules")


class Schedules(ApiNames):
    """The schedules that the tasks of an application declare: `QTasks.schedules`. Iterating yields their handles."""

    _internal = frozenset({"check", "check_target", "handle"})

    def __init__(
        self,
        runtime: Runtime,
        tasks: Mapping[str, BaseTask[..., Any]],
        declarations: Callable[[], Sequence[ScheduleDeclaration]],
    ) -> None:
        self._runtime = runtime
        self._tasks = tasks
        self._declarations = declarations

    def __iter__(self) -> Iterator[TaskSchedule[Any]]:
        return iter([TaskSchedule.of(declaration) for declaration in self._declarations()])

    def __len__(self) -> int:
        """The number of declared schedules."""
        return len(self._declarations())

    def check(self) -> list[DesiredSchedule]:
        """Validate every declaration and return the schedules that the service should have.

        Raises DefinitionError for a declaration that cannot work, and ResultsDisabled if ``overlap="skip"`` is used
        without a result store.
        """
        base_url = base_url_of(self._runtime)
        desired: list[DesiredSchedule] = []
        for declaration in self._declarations():
            try:
                desired.append(desired_schedule(self._runtime, declaration, base_url))
            except ArgumentsError as error:
                raise declaration_error(error, declaration.title) from None
        return desired

    def check_target(self) -> None:
        """Refuse to write schedules to production by mistake. Raises ConfigurationError (QT311)."""
        check_target(self._runtime)

    def diff(self) -> SyncPlan:
        """What a sync would do. Raises as `check`.

        Also raises ConfigurationError if a schedule of another environment has the id of a declared one.
        """
        return plan_sync(self.check(), self._existing(), base_url_of(self._runtime))

    def sync(self, *, prune: bool = False) -> SyncPlan:
        """Make the service have the declared schedules, and return what was done.

        Schedules that agree already are not written; paused ones stay paused. `prune` also removes the schedules whose
        declaration no longer exists. Idempotent: it can be repeated after an error. Raises as `diff`; also
        ConfigurationError for a development program with production credentials, see `check_target`.
        """
        from qtasks.qstash import schedule

        check_target(self._runtime)
        plan = self.diff()
        for difference in (*plan.added, *plan.changed):
            assert difference.desired is not None
            existing = difference.existing
            put(self._runtime, difference.desired, paused=existing is not None and existing.paused)
        for difference in plan.removed if prune else ():
            assert difference.existing is not None
            self._run(schedule.delete(difference.existing.schedule_id), f"the removal of schedule {difference.title}")
        done = replace(plan, pruned=prune)
        if not done.in_sync:
            log.info("schedules: %s", done, extra={"action": "schedules_synced"})
        return done

    def get(self, name: str) -> TaskSchedule[Any]:
        """The handle on a schedule, declared or not, by its name (``task`` or ``task:name``) or its id.

        Raises ConfigurationError if there is no such schedule, or if it belongs to another environment.
        """
        declarations = self._declarations()
        for declaration in declarations:
            if declaration.title == name:
                return TaskSchedule.of(declaration)
        base_url = base_url_of(self._runtime)
        titles = [declaration.title for declaration in declarations]
        for existing in self._existing():
            title = check_owner(existing, base_url) if existing.schedule_id == name else title_of(existing, base_url)
            if title is None:
                continue
            if name in (title, existing.schedule_id):
                return self.handle(existing, title)
            titles.append(title)
        raise ConfigurationError(
            f"there is no schedule {name!r} in {base_url}{did_you_mean(name, titles)}",
            details={"known": ", ".join(sorted(set(titles))) or "none"},
            code=ErrorCode.SCHEDULE_UNKNOWN,
        )

    def handle(self, existing: Schedule, title: str) -> TaskSchedule[Any]:
        """The handle on a schedule of this environment that the service has."""
        task = existing.destination.removeprefix(f"{base_url_of(self._runtime)}/")
        return TaskSchedule(
            lambda: self._runtime,
            self._tasks.get(task),
            name=title,
            timing=cron.parse(existing.cron),
            identify=lambda _: existing.schedule_id,
            call=lambda base_url: call_of(existing, base_url),
        )

    def _existing(self) -> Sequence[Schedule]:
        from qtasks.qstash import schedule

        return self._run(schedule.list_all(), "the list of schedules")

    def _run(self, operation: Operation[R], description: str) -> R:
        return self._runtime.publisher().call(operation, description)


def create_dynamic(
    task: BaseTask[..., R],
    expression: str | None,
    every: Span | None,
    name: str | None,
    options: Mapping[str, Any],
    *,
    declared: Sequence[ScheduleDeclaration],
) -> TaskSchedule[R]:
    """Create or replace a schedule that no code declares; see `Task.schedule`. `declared` are those of the task."""
    zone = options.get("tz")
    if expression is not None and every is None:
        timing = recurrence.at(expression, zone)
    elif every is not None and expression is None:
        timing = recurrence.every(every, zone)
    else:
        raise DefinitionError(
            f"{task.name}: expected either a cron expression or an interval",
            fix='.schedule("0 9 * * *") or .schedule(every="10m")',
            code=ErrorCode.CRON_INVALID,
        )
    if name is None:
        name = _name_of_arguments(task, options.get("args", ()), options.get("kwargs") or {})
    declaration = declare(task, timing, name, options, label=DYNAMIC)
    if any(declaration.name == other.name for other in declared):
        raise DefinitionError(
            f"schedule {declaration.title}: the code declares a schedule with this name",
            fix='choose another name: .schedule(..., name="...")',
        )
    return _put_dynamic(declaration)


def _put_dynamic(declaration: ScheduleDeclaration) -> TaskSchedule[Any]:
    """Create or replace a dynamic schedule at the service, unless it has the same one already."""
    runtime = declaration.task.runtime
    check_target(runtime)
    base_url = base_url_of(runtime)
    desired = desired_schedule(runtime, declaration, base_url)
    handle = TaskSchedule.of(declaration)
    try:
        existing: Schedule | None = handle.info()
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        existing = None
    if existing is not None:
        check_owner(existing, base_url)
    if existing is None or differences(desired, existing):
        put(runtime, desired, paused=existing is not None and existing.paused)
    return handle


def _name_of_arguments(task: BaseTask[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The default name of a dynamic schedule: a hash of its arguments, so that the same call replaces the schedule."""
    if not args and not kwargs:
        return ""
    if task.encoding.form.encrypts:
        raise DefinitionError(
            f"{task.name}: the name of a schedule is made of its arguments, which could be guessed from it",
            fix='give it a name: .schedule(..., name="...")',
            code=ErrorCode.OPTION_INVALID,
        )
    plain = task.parameters.lasting_json(task.parameters.check(task.parameters.bind(args, kwargs)))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def desired_schedule(runtime: Runtime, declaration: ScheduleDeclaration, base_url: str) -> DesiredSchedule:
    """The schedule that the service should have for a declaration.

    Raises as `ScheduleDeclaration.desired`; also ResultsDisabled for ``overlap="skip"`` without a result store.
    """
    if declaration.overlap == "skip" and runtime.results_or_none() is None:
        raise ResultsDisabled(
            f'schedule {declaration.title}: overlap="skip" needs a result store to see which runs are under way, '
            "and none is configured",
            fix="set QTASKS_RESULTS, or QTasks(results=...), to sqlite:///results.db, postgresql://... "
            'or redis://...; overlap="wait" needs no result store',
        )
    return declaration.desired(base_url)


def put(runtime: Runtime, desired: DesiredSchedule, *, paused: bool) -> None:
    """Create or replace a schedule. Pauses it again if `paused`: a service may resume a schedule that is replaced."""
    from qtasks.qstash import schedule

    run, description = runtime.publisher().call, f"schedule {desired.title}"
    options = desired.sent(runtime.settings().interrupted_for_ms)
    run(schedule.create_raw(desired.destination, desired.body, options), description)
    if paused:
        run(schedule.pause(desired.id), description)


def check_target(runtime: Runtime) -> None:
    """Refuse to write schedules to production by mistake. Raises ConfigurationError (QT311).

    Every service counts as production, except an embedded broker and one with the public development credentials.
    Refused are a program that runs for development (`QTASKS_DEV`, as under `qtasks dev`), and a dispatcher with a
    loopback address, which a service on another machine cannot reach.
    """
    settings = runtime.settings()
    url, _, base_url = settings.sender()
    if not settings.is_production:
        return
    if settings.allow_dev_keys and settings.origin("allow_dev_keys") != DEFAULT:
        reason = "this program runs for development (QTASKS_DEV), and the token is not the public development one"
    elif is_loopback_url(base_url) and not is_loopback_url(url):
        reason = "the tasks have a loopback address, and the service is on another machine"
    else:
        return
    raise ConfigurationError(
        f"no schedule was changed: {reason}",
        details={"service": f"{url} ({_origins(settings)})", "tasks": base_url},
        fix="use the credentials of `qtasks dev` here; sync production from its deployment",
        code=ErrorCode.SYNC_TARGET_UNSAFE,
    )


def _origins(settings: Settings) -> str:
    return f"QSTASH_URL from {settings.origin('url')}, QSTASH_TOKEN from {settings.origin('token')}"
