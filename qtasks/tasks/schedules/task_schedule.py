"""The handle on one schedule: its next runs, and how to trigger, pause, resume and delete it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote
from zoneinfo import ZoneInfo

from qtasks.errors import ApiError, ConfigurationError
from qtasks.protocol.cron import Cron
from qtasks.protocol.headers import NOTE_HEADER
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.schedules.declaration import ScheduleDeclaration, identity
from qtasks.tasks.schedules.existing_schedule import check_owner
from qtasks.tasks.send.outgoing import Outgoing

if TYPE_CHECKING:
    from qtasks.qstash.conversation.operation import Operation
    from qtasks.qstash.schedule import Schedule
    from qtasks.tasks.send.runtime_port import Runtime

R = TypeVar("R")
T = TypeVar("T")


class TaskSchedule(Generic[R]):
    """The handle on one schedule: `Task.schedules`, `Task.schedule` and `tasks.schedules.get` return it.

    `name` is ``task`` or ``task:name``. Every method that asks the service raises BrokerUnreachable, ApiError (404 if
    the service has no such schedule), and ConfigurationError for a schedule of another environment.
    """

    def __init__(
        self,
        get_runtime: Callable[[], Runtime],
        task: BaseTask[..., R] | None,
        *,
        name: str,
        timing: Cron,
        identify: Callable[[str], str],
        call: Callable[[str], Outgoing],
    ) -> None:
        self._get_runtime = get_runtime
        self._task = task
        self.name = name
        self.timing = timing
        self._identify = identify
        self._call = call

    @classmethod
    def of(cls, declaration: ScheduleDeclaration) -> TaskSchedule[Any]:
        """The handle on a schedule that a task declares."""
        task = declaration.task
        return cls(
            lambda: task.runtime,
            task,
            name=declaration.title,
            timing=declaration.cron,
            identify=lambda base_url: identity(base_url, task.name, declaration.name),
            call=declaration.call,
        )

    def __repr__(self) -> str:
        return f"<TaskSchedule {self.name} {self.cron}>"

    @property
    def cron(self) -> str:
        """The cron expression, with ``CRON_TZ=`` in front if its zone is not UTC."""
        return self.timing.text

    @property
    def id(self) -> str:
        """The schedule id at the service. It depends on the environment, so it needs `QTASKS_BASE_URL`."""
        return self._identify(base_url_of(self._get_runtime()))

    def next_runs(self, count: int = 5, *, after: datetime | None = None) -> list[datetime]:
        """The next runs after `after` (now by default), in the zone of the schedule; a pause is ignored."""
        moment_ms: int | None = self._get_runtime().now_ms() if after is None else int(after.timestamp() * 1000)
        runs: list[datetime] = []
        zone = ZoneInfo(self.timing.zone)
        while len(runs) < count and moment_ms is not None:
            if (moment_ms := self.timing.next_ms(moment_ms)) is not None:
                runs.append(datetime.fromtimestamp(moment_ms / 1000, UTC).astimezone(zone))
        return runs

    def trigger(self) -> TaskResult[R]:
        """Send one more run now, as an ordinary call with the same arguments and options and a new call id."""
        if self._task is None:
            raise ConfigurationError(
                f"the task of {self.name} is not in this program, so it cannot be triggered here",
                fix=f"import the module with the task; in a terminal: qtasks schedules trigger {self.name} main:app",
            )
        return self._task.send_message(self._call(base_url_of(self._get_runtime())))

    async def atrigger(self) -> TaskResult[R]:
        """As `trigger`, without blocking the event loop."""
        return await asyncio.to_thread(self.trigger)

    def info(self) -> Schedule:
        """The schedule as the service has it, with its pause, last run and next run."""
        from qtasks.qstash import schedule

        try:
            return self._run(schedule.get(self.id))
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            raise ApiError(
                f"the service has no schedule {self.name} ({self.id})",
                status=error.status,
                detail=error.detail,
                fix="qtasks schedules sync, if the code declares it",
            ) from None

    async def ainfo(self) -> Schedule:
        """As `info`, without blocking the event loop."""
        return await asyncio.to_thread(self.info)

    def pause(self, *, note: str | None = None) -> None:
        """Skip all runs until `resume`; skipped runs do not run later. A sync leaves the schedule paused.

        A broker of ours shows `note`, of at most 200 characters, beside the pause.
        """
        from qtasks.qstash import schedule

        headers = () if note is None else ((NOTE_HEADER, quote(note)),)
        self._change(lambda schedule_id: replace(schedule.pause(schedule_id), headers=headers))

    async def apause(self, *, note: str | None = None) -> None:
        """As `pause`, without blocking the event loop."""
        await asyncio.to_thread(self.pause, note=note)

    def resume(self) -> None:
        """Continue with the next run."""
        from qtasks.qstash import schedule

        self._change(schedule.resume)

    async def aresume(self) -> None:
        """As `resume`, without blocking the event loop."""
        await asyncio.to_thread(self.resume)

    def delete(self) -> None:
        """Delete the schedule; runs that have started continue. A sync creates it again if the code declares it."""
        from qtasks.qstash import schedule

        self._change(schedule.delete)

    async def adelete(self) -> None:
        """As `delete`, without blocking the event loop."""
        await asyncio.to_thread(self.delete)

    def _change(self, operation_for: Callable[[str], Operation[None]]) -> None:
        existing = self.info()
        check_owner(existing, base_url_of(self._get_runtime()))
        self._run(operation_for(existing.schedule_id))

    def _run(self, call: Operation[T]) -> T:
        return self._get_runtime().publisher().call(call, f"schedule {self.name}: {call.method} {call.path}")


def base_url_of(runtime: Runtime) -> str:
    """The address of the dispatcher, which identifies the environment. Raises ConfigurationError."""
    settings = runtime.settings()
    return settings.base_url or settings.sender()[2]
