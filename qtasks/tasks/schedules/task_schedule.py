"""The handle on one schedule: when it runs next, and running, pausing and deleting it at the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from zoneinfo import ZoneInfo

from qtasks.errors import ApiError, ConfigurationError
from qtasks.protocol.cron import Cron
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.schedules import diff
from qtasks.tasks.schedules.declaration import ScheduleDeclaration, identity
from qtasks.tasks.send.outgoing import Outgoing

if TYPE_CHECKING:
    from qtasks.qstash.conversation.operation import Operation
    from qtasks.qstash.schedule import Schedule
    from qtasks.tasks.send.runtime_port import Runtime
    from qtasks.tasks.task import Task

R = TypeVar("R")
T = TypeVar("T")


class TaskSchedule(Generic[R]):
    """One schedule of a task: what `Task.schedules`, `Task.schedule` and `tasks.schedules.get` hand out.

    `name` is ``task`` or ``task:name``. Whatever asks the service raises BrokerUnreachable and ApiError (404 while the
    schedule is not there), and ConfigurationError for a schedule that is not of this environment.
    """

    def __init__(
        self,
        bound: Callable[[], Runtime],
        task: Task[..., R] | None,
        *,
        name: str,
        timing: Cron,
        identify: Callable[[str], str],
        call: Callable[[str], Outgoing],
    ) -> None:
        self._bound = bound
        self._task = task
        self.name = name
        self.timing = timing
        self._identify = identify
        self._call = call

    @classmethod
    def of(cls, declared: ScheduleDeclaration) -> TaskSchedule[Any]:
        """The handle on what a task declares."""
        task = declared.task
        return cls(
            lambda: task.runtime,
            task,
            name=declared.title,
            timing=declared.cron,
            identify=lambda base_url: identity(base_url, task.name, declared.name),
            call=declared.call,
        )

    def __repr__(self) -> str:
        return f"<TaskSchedule {self.name} {self.cron}>"

    @property
    def cron(self) -> str:
        """The expression, with ``CRON_TZ=`` in front where its zone is not UTC."""
        return self.timing.text

    @property
    def id(self) -> str:
        """What the service knows it by; made of the environment, so it needs `QTASKS_BASE_URL`."""
        return self._identify(base_url_of(self._bound()))

    def next_runs(self, count: int = 5, *, after: datetime | None = None) -> list[datetime]:
        """When it runs next, in its own zone; paused or not. `after` is now unless it is given."""
        moment_ms: int | None = self._bound().now_ms() if after is None else int(after.timestamp() * 1000)
        runs: list[datetime] = []
        zone = ZoneInfo(self.timing.zone)
        while len(runs) < count and moment_ms is not None:
            if (moment_ms := self.timing.next_ms(moment_ms)) is not None:
                runs.append(datetime.fromtimestamp(moment_ms / 1000, UTC).astimezone(zone))
        return runs

    def trigger(self) -> TaskResult[R]:
        """Run it now, besides its times, as any other call: same arguments and options, an id of its own."""
        if self._task is None:
            raise ConfigurationError(f"the task of {self.name} is not in this code, so it cannot be triggered here")
        return self._task.send(self._call(base_url_of(self._bound())))

    async def atrigger(self) -> TaskResult[R]:
        """As `trigger`, without blocking the event loop."""
        return await asyncio.to_thread(self.trigger)

    def info(self) -> Schedule:
        """The schedule as the service has it: pause, last and next run, and what else it knows."""
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

    def pause(self) -> None:
        """Let its times pass until `resume`; they are not made up for. A sync leaves it paused."""
        from qtasks.qstash import schedule

        self._change(schedule.pause)

    async def apause(self) -> None:
        """As `pause`, without blocking the event loop."""
        await asyncio.to_thread(self.pause)

    def resume(self) -> None:
        """Go on with its next time."""
        from qtasks.qstash import schedule

        self._change(schedule.resume)

    async def aresume(self) -> None:
        """As `resume`, without blocking the event loop."""
        await asyncio.to_thread(self.resume)

    def delete(self) -> None:
        """Take it away; its runs that are under way go on. The next sync brings back one that the code declares."""
        from qtasks.qstash import schedule

        self._change(schedule.delete)

    async def adelete(self) -> None:
        """As `delete`, without blocking the event loop."""
        await asyncio.to_thread(self.delete)

    def _change(self, make: Callable[[str], Operation[None]]) -> None:
        found = self.info()
        diff.own(found, base_url_of(self._bound()))
        self._run(make(found.schedule_id))

    def _run(self, call: Operation[T]) -> T:
        return self._bound().publisher().call(call, f"schedule {self.name}: {call.method} {call.path}")


def base_url_of(runtime: Runtime) -> str:
    """The address of the dispatcher, which is the environment. Raises ConfigurationError."""
    settings = runtime.settings()
    return settings.base_url or settings.sender()[2]
