"""`Task`: what a decorated function becomes. Calling it runs the function; its methods send calls of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.celery import celery_names
from qtasks.tasks.celery.celery_options import positional
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.shown_values import cut
from qtasks.tasks.hooks import H
from qtasks.tasks.options import ApplyOptions, Span
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.runtime_port import Runtime

if TYPE_CHECKING:
    from typing import Self

    from qtasks.tasks.flow.canvas import Signature
    from qtasks.tasks.schedules.declaration import ScheduleDeclaration, ScheduleOptions
    from qtasks.tasks.schedules.task_schedule import TaskSchedule

P = ParamSpec("P")
R = TypeVar("R")


class Task(BaseTask[P, R]):
    """A function that can be called later, in another process. `@tasks.task` makes one.

    ``add(2, 3)`` runs the function here; ``add.delay(2, 3)`` queues a call and returns a `TaskResult`.
    """

    def __init__(
        self,
        get_runtime: Callable[[], Runtime],
        function: Callable[P, Any],
        *,
        name: str,
        options: Mapping[str, Any],
        inherit: Task[P, R] | None = None,
    ) -> None:
        super().__init__(get_runtime, function, name=name, options=options, inherit=inherit)
        if not self.is_async and options.get("soft_time_limit") is not None:
            raise DefinitionError(
                f"{name}: a def has no soft_time_limit: a thread cannot be interrupted at a safe moment",
                fix="check ctx.should_stop or ctx.time_left_s in its loop, with ctx: TaskContext = injected; "
                "or make it an async def",
                code=ErrorCode.OPTION_INVALID,
            )
        self.declared: list[ScheduleDeclaration] = inherit.declared if inherit is not None else []
        """The schedules that the code declares, in order."""

    def on_success(self, hook: H) -> H:
        """Call `hook` after each call of this task that succeeded; see `Hooks`."""
        return self.hooks.on_success(hook)

    def on_retry(self, hook: H) -> H:
        """Call `hook` after each failed attempt of this task that will be retried; see `Hooks`."""
        return self.hooks.on_retry(hook)

    def on_failure(self, hook: H) -> H:
        """Call `hook` once for each call of this task that has failed for good; see `Hooks`."""
        return self.hooks.on_failure(hook)

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R]:
        """Django's name for `delay`."""
        return self.delay(*args, **kwargs)

    async def aenqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R]:
        """Django's name for `adelay`."""
        return await self.adelay(*args, **kwargs)

    def apply_async(
        self, args: Sequence[Any] | None = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[ApplyOptions]
    ) -> TaskResult[R]:
        """`delay` with Celery's signature: the arguments as a sequence and a mapping, the options as keywords.

        ``resize.apply_async((42,), countdown=10, expires=60)``. The arguments are checked as by `delay`, but type
        checkers do not see them. ``link=publish.s()`` calls `publish` with the result once the call has succeeded;
        ``link_error=report.s()`` calls `report` with the id of the call and its error once it has failed for good.
        """
        task, message = self._applied(args, kwargs, options)
        handle = task.send_message(message)
        return handle if options.get("task_id") is None else handle.of_task(task.names)

    async def aapply_async(
        self, args: Sequence[Any] | None = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[ApplyOptions]
    ) -> TaskResult[R]:
        """As `apply_async`, without blocking the event loop."""
        task, message = self._applied(args, kwargs, options)
        handle = await task.asend_message(message)
        return handle if options.get("task_id") is None else handle.of_task(task.names)

    def s(self, /, *args: Any, **kwargs: Any) -> Signature[R]:
        """A call as a part of a flow. The result of the call before it is put before `args`."""
        # Imported here: few programs use flows; the same is true of schedules below.
        from qtasks.tasks.flow.canvas import Signature

        return Signature(self, args, kwargs)

    def si(self, /, *args: Any, **kwargs: Any) -> Signature[R]:
        """As `s`, immutable: the call gets these arguments alone, without the result of the call before it."""
        from qtasks.tasks.flow.canvas import Signature

        return Signature(self, args, kwargs, immutable=True)

    def AsyncResult(self, id: str) -> TaskResult[R]:  # noqa: N802, A002 - Celery's words
        """Celery's name for `result`."""
        return self.result(id)

    @property
    def schedules(self) -> tuple[TaskSchedule[R], ...]:
        """The handles on the schedules that `@tasks.cron` and `@tasks.every` declare."""
        from qtasks.tasks.schedules.task_schedule import TaskSchedule

        return tuple(TaskSchedule.of(declaration) for declaration in self.declared)

    def schedule(
        self,
        cron: str | None = None,
        *,
        every: Span | None = None,
        name: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> TaskSchedule[R]:
        """Create a schedule now: ``digest.schedule("0 9 * * *", tz="Europe/Berlin", args=[user_id])``.

        Use it for schedules that depend on data; those that the code knows are declared with `@tasks.cron`. `name`
        distinguishes the schedules of a task; the default is derived from the arguments. A schedule of the same name is
        replaced. `tasks.schedules.sync()` does not touch these schedules. Raises DefinitionError, ArgumentsError,
        BrokerUnreachable, ApiError, and ConfigurationError as `Schedules.sync`.
        """
        from qtasks.tasks.schedules import sync

        return sync.create_dynamic(self, cron, every, name, options, declared=self.declared)

    async def aschedule(
        self,
        cron: str | None = None,
        *,
        every: Span | None = None,
        name: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> TaskSchedule[R]:
        """As `schedule`, without blocking the event loop."""
        from qtasks.tasks.schedules import sync

        return await asyncio.to_thread(sync.create_dynamic, self, cron, every, name, options, declared=self.declared)

    def declare(self, schedule: ScheduleDeclaration) -> None:
        """Add a declared schedule. Raises DefinitionError if another schedule of the task has the same name."""
        if any(schedule.name == other.name for other in self.declared):
            raise DefinitionError(
                f"there are two schedules {schedule.title!r}",
                fix='tell them apart: @tasks.cron(..., schedule="...")',
            )
        self.declared.append(schedule)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return celery_names.attribute(self, name, celery_names.TASK)

    def _applied(
        self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, options: ApplyOptions
    ) -> tuple[Self, Outgoing]:
        """The task with Celery's options translated, and the call."""
        from qtasks.tasks.flow.flow_times import in_our_words
        from qtasks.tasks.flow.links import linked

        translated = in_our_words(self.name, options)
        call_id, link, link_error = (translated.pop(name, None) for name in ("task_id", "link", "link_error"))
        if call_id is not None and (not isinstance(call_id, str) or envelopes.ID.fullmatch(call_id) is None):
            raise DefinitionError(
                f"{self.name}: task_id={cut(repr(call_id))} is not a valid id: 1 to 128 visible ASCII characters",
                fix=None if isinstance(call_id, str) else "task_id=str(...)",
                code=ErrorCode.CALL_ID_INVALID,
            )
        task = self.using(**translated) if translated else self
        return task, linked(task, task.message(positional(self.name, args), kwargs or {}, call_id), link, link_error)


class SyncTask(Task[P, R]):
    """A task made of a ``def``. It runs in a thread of the dispatcher's pool."""

    if TYPE_CHECKING:

        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:  # noqa: D102 - see Task
            ...


class AsyncTask(Task[P, R]):
    """A task made of an ``async def``. It runs on the application's event loop."""

    is_async = True

    if TYPE_CHECKING:

        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # noqa: D102 - see Task
            ...
