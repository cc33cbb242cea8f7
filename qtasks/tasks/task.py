"""A task: still a function, and one that can also be called later."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar, Unpack

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.protocol import wire
from qtasks.protocol.messages import MAX_BODY, PublishOptions
from qtasks.tasks import options as call_options
from qtasks.tasks.encode import argument_codec
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.parameters import TaskParameters, Values, read_parameters
from qtasks.tasks.hooks import H, Hooks
from qtasks.tasks.options import ApplyOptions, CallOptions, DeliveryOptions, Span
from qtasks.tasks.results.backend import Lock
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.results.unique import Unique, key_of, lock_owner, unlock
from qtasks.tasks.retries import RetryPolicy
from qtasks.tasks.send import tracing
from qtasks.tasks.send.batch import Batch
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.send_middleware import Passage

if TYPE_CHECKING:
    from typing import Self

    from qtasks.tasks.flow.canvas import Signature
    from qtasks.tasks.schedules.declaration import ScheduleDeclaration, ScheduleOptions
    from qtasks.tasks.schedules.task_schedule import TaskSchedule
    from qtasks.tasks.send.runtime_port import Runtime

P = ParamSpec("P")
R = TypeVar("R")


class Task(Generic[P, R]):
    """A function with a name under which it can be delayed. Made by `@tasks.task`; calling it runs the function."""

    asks: ClassVar[bool] = False
    """Whether its function only makes the request that its work is."""

    def __init__(
        self,
        bound: Callable[[], Runtime],
        function: Callable[P, Any],
        *,
        name: str,
        options: Mapping[str, Any],
        inherit: Task[P, R] | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self._bound = bound
        self.name = name
        self.aliases: tuple[str, ...] = ()
        """Names it had before, under which calls of it may still come."""
        self.function = function
        self._options = dict(options)
        self._origin = inherit
        self.said: Mapping[str, Any] = {}
        """What `using` has said besides the declaration."""
        self.hooks: Hooks = inherit.hooks if inherit is not None else Hooks()
        self.declared: list[ScheduleDeclaration] = inherit.declared if inherit is not None else []
        """The schedules that the code declares, in their order."""

    def on_success(self, hook: H) -> H:
        """Have `hook` told of every result of this task; see `Hooks`."""
        return self.hooks.on_success(hook)

    def on_retry(self, hook: H) -> H:
        """Have `hook` told of every failed attempt of this task that another one follows; see `Hooks`."""
        return self.hooks.on_retry(hook)

    def on_failure(self, hook: H) -> H:
        """Have `hook` told once of a call of this task that has failed for good; see `Hooks`."""
        return self.hooks.on_failure(hook)

    @property
    def runtime(self) -> Runtime:
        """What its calls go through. Raises ConfigurationError for a task of a router that no application includes."""
        return self._bound()

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run the function here and now, as if it were no task."""
        return self.function(*args, **kwargs)

    @property
    def is_async(self) -> bool:
        """Whether the function is an ``async def``."""
        return isinstance(self, AsyncTask)

    @functools.cached_property
    def parameters(self) -> TaskParameters:
        """How the function is called. Made on first use, when every name in its annotations exists.

        Raises DefinitionError.
        """
        if self._origin is not None:
            return self._origin.parameters
        return read_parameters(self.name, self.function, pickled=self.delivery_options.pickled)

    @functools.cached_property
    def delivery_options(self) -> DeliveryOptions:
        """The options of this task in the protocol's form."""
        return call_options.delivery_options(self.name, self._options)

    @property
    def retry_policy(self) -> RetryPolicy | None:
        """After which errors to try again, as the declaration says it."""
        if self._origin is not None:
            return self._origin.retry_policy
        given = self._options.get("retries")
        return given if isinstance(given, RetryPolicy) else None

    def using(self, **options: Unpack[CallOptions]) -> Self:
        """The same task with other options for its calls; this one stays as it is.

        ``resize.using(delay="10s", retries=5).delay(photo_id)``. Raises DefinitionError for an option that does not
        fit.
        """
        return self._using(options)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R]:
        """Have the task run later, elsewhere: returns once the broker has stored the call.

        Raises ArgumentsError when the arguments do not fit, ConfigurationError when there is no engine,
        BrokerUnreachable within about two seconds when nothing answers, ApiError when the broker refuses.
        """
        return self.send(self.message(args, kwargs))

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> TaskResult[R]:
        """As `delay`, without blocking the event loop."""
        return await self.asend(self.message(args, kwargs))

    enqueue = delay
    """`delay`, by the name that Django has for it."""
    aenqueue = adelay
    """`adelay` likewise."""

    def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[ApplyOptions]
    ) -> TaskResult[R]:
        """`delay` in Celery's form: arguments as one sequence and one mapping, options beside them.

        ``resize.apply_async((42,), countdown=10, expires=60)``. Arguments are checked as those of `delay`, though not
        by type checkers.
        """
        task, call_id = self._applied(options)
        return task.send(task.message(tuple(args), kwargs or {}, call_id))

    async def aapply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[ApplyOptions]
    ) -> TaskResult[R]:
        """As `apply_async`, without blocking the event loop."""
        task, call_id = self._applied(options)
        return await task.asend(task.message(tuple(args), kwargs or {}, call_id))

    def map(self, values: Iterable[Any]) -> list[TaskResult[R]]:
        """One call for each value, its first argument, sent together: none of them if one does not fit.

        Raises as `delay`, and PartlyRefused.
        """
        return self.starmap((value,) for value in values)

    async def amap(self, values: Iterable[Any]) -> list[TaskResult[R]]:
        """As `map`, without blocking the event loop."""
        return await self.astarmap((value,) for value in values)

    def starmap(self, calls: Iterable[Sequence[Any]]) -> list[TaskResult[R]]:
        """One call for each sequence of arguments, sent together: none of them if one does not fit."""
        messages = [self.message(tuple(args), {}) for args in calls]
        with Batch(self.runtime):
            return [self.send(message) for message in messages]

    async def astarmap(self, calls: Iterable[Sequence[Any]]) -> list[TaskResult[R]]:
        """As `starmap`, without blocking the event loop."""
        messages = [self.message(tuple(args), {}) for args in calls]
        async with Batch(self.runtime):
            return [self.send(message) for message in messages]

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """The call as a part of a flow; behind another call, that one's result comes before `args`."""
        from qtasks.tasks.flow.canvas import Signature

        return Signature(self, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """As `s`, with nothing but these arguments."""
        from qtasks.tasks.flow.canvas import Signature

        return Signature(self, args, kwargs, fixed=True)

    def result(self, id: str) -> TaskResult[R]:  # noqa: A002 - the name it has on a TaskResult
        """The handle on an earlier call, by its call id or its message id."""
        return TaskResult(self.runtime, lambda: self.parameters.result, task=self.name, id=id, message_id=None)

    def option(self, name: str) -> Any:
        """What the declaration, or `using`, says about `name`; None where nothing is said."""
        return self._options.get(name)

    def for_flow(self) -> DeliveryOptions:
        """Its options, for a call that another one leads to. Raises DefinitionError."""
        if self.delivery_options.unique:
            raise DefinitionError(f"{self.name}: a call in a flow cannot be unique", code=ErrorCode.FLOW_INVALID)
        return self.delivery_options

    def follow_up(self, envelope: envelopes.Envelope, call_id: str, value: Any) -> Outgoing | None:  # noqa: ARG002
        """The follow-up message if the call continues after its function returned; None if `value` is the result."""
        return None

    def ready(self) -> None:
        """Read the declaration, so that one that cannot work shows. Raises DefinitionError, ConfigurationError."""
        _ = self.parameters
        if self.delivery_options.pickled:
            self.runtime.pickles()

    def _using(self, options: Mapping[str, Any]) -> Self:
        merged = {**self._options, **options}
        # What was said last replaces what was said before, of the waits and of the moment.
        if isinstance(options.get("retries"), RetryPolicy) and "retry_delay" not in options:
            merged.pop("retry_delay", None)
        elif "retry_delay" in options and "retries" not in options and isinstance(merged.get("retries"), RetryPolicy):
            merged["retries"] = merged["retries"].max
        for name, other in (("delay", "eta"), ("eta", "delay")):
            if name in options and other not in options:
                merged.pop(other, None)
        self._check(options, merged)
        copy = type(self)(self._bound, self.function, name=self.name, options=merged, inherit=self._origin or self)
        copy.said = {name: merged[name] for name in (*self.said, *options) if name in merged}
        return copy

    def _check(self, options: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
        call_options.check(self.name, options, merged=merged)

    def declare(self, schedule: ScheduleDeclaration) -> None:
        """Take in a schedule. Raises DefinitionError for one of a name that another has."""
        if any(schedule.name == one.name for one in self.declared):
            raise DefinitionError(
                f"there are two schedules {schedule.title!r}",
                fix='tell them apart: @tasks.cron(..., schedule="...")',
            )
        self.declared.append(schedule)

    @property
    def schedules(self) -> tuple[TaskSchedule[R], ...]:
        """Handles on the schedules that `@tasks.cron` and `@tasks.every` declare."""
        from qtasks.tasks.schedules.task_schedule import TaskSchedule

        return tuple(TaskSchedule.of(one) for one in self.declared)

    def schedule(
        self,
        cron: str | None = None,
        *,
        every: Span | None = None,
        name: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> TaskSchedule[R]:
        """Have it run by the clock from now on: ``digest.schedule("0 9 * * *", tz="Europe/Berlin", args=[user_id])``.

        For what comes and goes with data; what the code knows is declared by `@tasks.cron`. `name` tells the schedules
        of a task apart, the arguments do without one; the same name again replaces it. Syncing leaves it alone. Raises
        DefinitionError, ArgumentsError, BrokerUnreachable, ApiError, and ConfigurationError as `Schedules.sync`.
        """
        from qtasks.tasks.schedules import sync

        return sync.create_dynamic(self, cron, every, name, options)

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

        return await asyncio.to_thread(sync.create_dynamic, self, cron, every, name, options)

    def _applied(self, options: ApplyOptions) -> tuple[Self, str | None]:
        """The task with options of Celery's names, and the id of the call."""
        said: dict[str, Any] = dict(options)
        call_id = said.pop("task_id", None)
        if call_id is not None and envelopes.ID.fullmatch(call_id) is None:
            raise DefinitionError(
                f"{self.name}: task_id={call_id!r} is no id: 1 to 128 visible ASCII characters",
                code=ErrorCode.CALL_ID_INVALID,
            )
        if "countdown" in said:
            said["delay"] = said.pop("countdown")
        return (self.using(**said) if said else self), call_id

    def send(self, message: Outgoing) -> TaskResult[R]:
        """Send a call, or hand it to the batch that is open; not if it is unique and another one stands for it."""
        runtime = self.runtime
        if (lock := self._lock(runtime, message)) is None:
            return self._send(runtime, message)
        if (other := lock_owner(runtime.results(), lock, runtime.now_ms())) is not None:
            return self._standing(runtime, other)
        try:
            return self._send(runtime, message).with_lock(lock)
        except BaseException:
            unlock(runtime.results(), lock)
            raise

    async def asend(self, message: Outgoing) -> TaskResult[R]:
        """As `send`, without blocking the event loop."""
        runtime = self.runtime
        if (lock := self._lock(runtime, message)) is None:
            return await self._asend(runtime, message)
        results = await asyncio.to_thread(runtime.results)
        if (other := await asyncio.to_thread(lock_owner, results, lock, runtime.now_ms())) is not None:
            return self._standing(runtime, other)
        try:
            return (await self._asend(runtime, message)).with_lock(lock)
        except BaseException:
            await asyncio.to_thread(unlock, results, lock)
            raise

    def _send(self, runtime: Runtime, message: Outgoing) -> TaskResult[R]:
        passage, result = self._leaving(runtime, message)
        try:
            runtime.keep(passage.message)
            if (batch := Batch.of(runtime)) is not None:
                batch.hold(passage, result)
                return result
            answer = runtime.publisher().publish(passage.message)
        except BaseException as error:
            passage.fail(error)
            raise
        result.accepted(answer.message_id, deduplicated=answer.deduplicated)
        passage.leave(result)
        return result

    async def _asend(self, runtime: Runtime, message: Outgoing) -> TaskResult[R]:
        passage, result = self._leaving(runtime, message)
        try:
            if passage.message.kept is not None:
                await asyncio.to_thread(runtime.keep, passage.message)
            if (batch := Batch.of(runtime)) is not None:
                batch.hold(passage, result)
                return result
            publisher = await runtime.apublisher()
            answer = await publisher.apublish(passage.message)
        except BaseException as error:
            passage.fail(error)
            raise
        result.accepted(answer.message_id, deduplicated=answer.deduplicated)
        passage.leave(result)
        return result

    def _unique(self, checked: Values) -> Unique:
        """The key of a call with these arguments; a default that is left out is as good as given."""
        defaults = {
            parameter.name: parameter.default
            for parameter in inspect.signature(self.function).parameters.values()
            if parameter.name in self.parameters.annotations and parameter.default is not inspect.Parameter.empty
        }
        values, choice = self.parameters.check({**defaults, **checked}), self.delivery_options.unique
        if self.delivery_options.pickled and not isinstance(choice, bool):
            plain = self.parameters.some_to_json(values, (choice,) if isinstance(choice, str) else choice)
        else:
            plain = self.parameters.to_json(values)
        return Unique(key_of(self.name, choice, plain), self.delivery_options.unique_ms)

    def _lock(self, runtime: Runtime, message: Outgoing) -> Lock | None:
        if message.unique is None:
            return None
        now_ms, options = runtime.now_ms(), message.options
        moment_ms = (options.not_before_s or 0) * 1000
        delay_ms = max(options.delay_ms or 0, moment_ms - now_ms)
        return message.unique.lock(message.call_id, now_ms, max(0, delay_ms))

    def _standing(self, runtime: Runtime, call_id: str) -> TaskResult[R]:
        """The handle on an earlier call that stands for this one."""
        return TaskResult(
            runtime, lambda: self.parameters.result, task=self.name, id=call_id, message_id=None, deduplicated=True
        )

    def message(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], call_id: str | None = None) -> Outgoing:
        """The message that carries a call: its arguments checked, its id new unless it is given."""
        return self.carrying(self.parameters.check(self.parameters.bind(args, kwargs)), len(args), call_id)

    def carrying(self, checked: Values, positional: int, call_id: str | None = None) -> Outgoing:
        """The message of a call with these arguments, `positional` of them by position."""
        call_id = call_id or envelopes.new_call_id()
        how = self.delivery_options
        unique = self._unique(checked) if how.unique else None
        envelope = envelopes.Envelope(
            call_id,
            retries=how.retries,
            timeout_ms=how.publish.timeout_ms,
            expires_ms=how.expires_ms(self.runtime.now_ms()),
            retry_delay=how.publish.retry_delay if how.jitter else None,
            jitter=how.jitter,
            options=self._carried,
            unique=unique.key if unique is not None and unique.window_ms is None else None,
            **argument_codec.packed(self, checked, positional, call_id),
        )
        try:
            body = envelopes.encode(envelope)
        except ValueError as error:
            path, reason = envelopes.culprit(self.parameters.to_json(checked)) or ("", str(error))
            raise self.parameters.not_json(path, reason) from None
        if len(body) > MAX_BODY:
            raise self.parameters.too_large(len(body), MAX_BODY)
        return Outgoing(
            task=self.name,
            call_id=call_id,
            body=body,
            options=how.publish,
            queue=how.queue,
            envelope=envelope,
            unique=unique,
        )

    @functools.cached_property
    def _carried(self) -> Mapping[str, str]:
        """Header lines that the dispatcher needs to publish a call again: those that are not the declaration's."""
        if self._origin is None or (mine := _lasting(self.delivery_options.publish)) == _lasting(
            self._origin.delivery_options.publish
        ):
            return {}
        return dict(wire.write(mine))

    def _leaving(self, runtime: Runtime, message: Outgoing) -> tuple[Passage, TaskResult[R]]:
        """The message after all middleware, and the handle on the call."""
        passage = Passage(runtime.send_middleware, tracing.carry(message))
        call_id = passage.message.call_id
        return passage, TaskResult(runtime, lambda: self.parameters.result, task=self.name, id=call_id, message_id=None)


def _lasting(options: PublishOptions) -> PublishOptions:
    """Options without those that concern one publish alone."""
    return replace(options, delay_ms=None, not_before_s=None, deduplication_id=None, retries=None)


class SyncTask(Task[P, R]):
    """A task made of a ``def``: runs in a thread of the dispatcher's pool."""

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:  # noqa: D102 - as of Task
            ...


class AsyncTask(Task[P, R]):
    """A task made of an ``async def``: runs on the application's event loop."""

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # noqa: D102 - as of Task
            ...
