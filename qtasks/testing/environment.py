"""The environment of a test: methods that run calls, show what happened to them, and make assertions about them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack, get_args

from qtasks.broker.llm.provider_fake import ProviderFake
from qtasks.broker.ports import DeliveryRequest
from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, QTasksError
from qtasks.protocol import durations
from qtasks.tasks.app import QTasks
from qtasks.tasks.options import Span
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.task import Task
from qtasks.testing import app_under_test
from qtasks.testing.brokers.base_broker import EnvironmentBroker, Mode, call_id_of
from qtasks.testing.brokers.virtual_time import VirtualTimeBroker
from qtasks.testing.fakes.faults import Answer, failing, losing, twice
from qtasks.testing.fakes.virtual_clock import TaskClock
from qtasks.testing.matching import CallMatcher, missing, unexpected
from qtasks.testing.sent_call import Call, DeadCall, moment

if TYPE_CHECKING:
    from typing import Self

    from fastapi import FastAPI

NamedTask = Task[..., Any] | str
"""A task, or its name."""

MODES: Final[Sequence[str]] = get_args(Mode)


class TimeParts(TypedDict, total=False):
    """A span of time as keyword arguments, those of `timedelta`."""

    weeks: float
    days: float
    hours: float
    minutes: float
    seconds: float
    milliseconds: float


class Environment:
    """An isolated environment for the tasks of an application, inside its ``with`` block; the fixture `qtasks` is one.

        with Environment(app) as qtasks:
            sign_up("ada@example.com")
            qtasks.assert_enqueued(welcome, "ada@example.com")
            qtasks.advance(days=3)

    Inside, the tasks use the broker of this environment and nothing from outside: no setting, no service, no earlier
    result. A running application (for example inside the ``with`` of a test client) gets its deliveries on its own
    event loop; otherwise they go directly to `app`, with its `dependency_overrides`.

    Args:
        app: The FastAPI application or the QTasks under test, or where to find it (``"package.module:object"``). None
            searches for it as `qtasks dev` does.
        mode: ``"manual"``: calls wait until `drain`, `advance` or `run_next`; declared schedules are active.
            ``"capture"``: calls are recorded and never run. ``"inline"``: `.delay()` returns when the call and all
            calls that it caused have run; waits are skipped. ``"full"``: broker and application serve on free ports in
            real time, with the lifespan of the application.
        start: The time at the beginning; default now. Time stands still in every mode except ``"full"``.
        seed: Seed of ids and jitter.
    """

    def __init__(
        self,
        app: FastAPI | QTasks | str | None = None,
        *,
        mode: Mode = "manual",
        start: datetime | str | None = None,
        seed: int = 0,
    ) -> None:
        if mode not in MODES:
            raise ConfigurationError(f"unknown mode {mode!r}", details={"expected": ", ".join(MODES)})
        self._app = app
        self._mode: Mode = mode
        self._start_ms = _start_ms(start)
        self._seed = seed
        self._stack = ExitStack()
        self._broker: EnvironmentBroker | None = None

    def __enter__(self) -> Self:
        app = app_under_test.of(self._app, Path.cwd())
        with ExitStack() as stack:
            broker = self._new_broker(app)
            stack.enter_context(
                app.tasks.running_on(
                    broker,
                    results=broker.results,
                    workers=broker.threads.workers,
                    clock=TaskClock(broker.clock),
                    random=broker.random,
                )
            )
            stack.callback(broker.close)
            if self._mode != "inline":  # its clock skips waits, and the test reads the results after them
                broker.results.keep_for(app.tasks.runtime.settings().result_ttl_ms)
            app.tasks.runtime.dispatcher()  # opened now, so that the broker knows the dispatcher
            broker.serve()
            if self._mode == "manual" and len(app.tasks.schedules):
                app.tasks.schedules.sync()
            self._broker = broker
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._broker = None
        self._stack.close()

    # -- time

    @property
    def mode(self) -> Mode:
        """The mode of this environment."""
        return self._mode

    @property
    def now(self) -> datetime:
        """The current time of this environment, in UTC."""
        return moment(self._open_broker.now_ms)

    def drain(self) -> int:
        """Run every call that is due now, and the calls that these cause, one after the other; the clock stands still.

        Returns the number of attempts. A failed attempt is not an error of the test: it is retried when it is due
        (`advance`), or its call is in `dlq`. Raises QTasksError after 10,000 attempts.
        """
        return len(self._run())

    async def adrain(self) -> int:
        """As `drain`, in async code: tasks run on the event loop of the test, unless an application has its own."""
        return len(await self._arun())

    def run_next(self) -> Call | None:
        """Run the call that is due first, and return it; None if no call is due now."""
        return self._first(self._run(most=1))

    async def arun_next(self) -> Call | None:
        """As `run_next`, in async code."""
        return self._first(await self._arun(most=1))

    def advance(self, span: Span = 0, /, **parts: Unpack[TimeParts]) -> int:
        """Move the clock, ``advance(hours=3)`` or ``advance("3h")``, and run every call that becomes due meanwhile.

        Retries, delayed calls, schedules and callbacks run at their own time: the clock jumps from one to the next.
        `parts` are those of `timedelta`, `span` is a duration or a number of seconds. Returns the number of attempts.
        """
        return len(self._run(span_ms=_span_ms(span, parts)))

    async def aadvance(self, span: Span = 0, /, **parts: Unpack[TimeParts]) -> int:
        """As `advance`, in async code."""
        return len(await self._arun(span_ms=_span_ms(span, parts)))

    # -- views

    @property
    def sent(self) -> list[Call]:
        """Every call since the test began, in order, whether it has run or not; runs of schedules are included."""
        return self._open_broker.call_log.calls

    @property
    def pending(self) -> list[Call]:
        """The calls of `sent` that have not ended: waiting, delayed, or about to be retried."""
        broker = self._open_broker
        off = broker.cancelled()
        return [call for call in self.sent if broker.call_log.due_ms(call, off) is not None]

    @property
    def dlq(self) -> list[DeadCall]:
        """The calls that have failed for good, oldest first."""
        return self._open_broker.dead_calls()

    @property
    def results(self) -> list[TaskResult[Any]]:
        """A handle for each call, in the order in which they were sent."""
        handles = {call.id: call.result for call in self.sent if call.declared is not None}
        return list(handles.values())

    @property
    def outside(self) -> list[DeliveryRequest]:
        """Requests to other services that were not made: webhooks, callbacks to other addresses, model providers."""
        return list(self._open_broker.outside.requests)

    # -- assertions

    def all_enqueued(self, task: NamedTask | None = None, /, *args: Any, **kwargs: Any) -> list[Call]:
        """The calls of `task` (None: of any task) that have at least these arguments.

        Delivery options are matched through `using`: ``all_enqueued(charge.using(queue="bills"), 42)``.
        """
        return self.sent if task is None else self._matching(self._matcher(task, args, kwargs))

    def assert_enqueued(self, task: NamedTask, /, *args: Any, **kwargs: Any) -> list[Call]:
        """Assert that `task` was called since the test began, and return the matching calls; see `all_enqueued`.

        ``[call] = qtasks.assert_enqueued(charge.using(delay="10m"), 42)`` asserts exactly one. Raises AssertionError,
        which shows the nearest call and how it differs.
        """
        matcher = self._matcher(task, args, kwargs)
        if not (matches := self._matching(matcher)):
            raise AssertionError(missing(matcher, self.sent))
        return matches

    def refute_enqueued(self, task: NamedTask, /, *args: Any, **kwargs: Any) -> None:
        """Assert that no call matches; see `all_enqueued`. Raises AssertionError, which lists the matching calls."""
        matcher = self._matcher(task, args, kwargs)
        if matches := self._matching(matcher):
            raise AssertionError(unexpected(matcher, matches))

    # -- faults

    def fail_next(self, task: NamedTask | None = None, /, *, times: int = 1, status: int = 500) -> None:
        """Answer the next `times` deliveries (of `task`) with `status` on the way: the task does not run."""
        self._open_broker.faults.order(_name(task), failing(status), times)

    def drop_response_next(self, task: NamedTask | None = None, /) -> None:
        """Lose the next response: the task runs, but the broker gets no response and tries again."""
        self._open_broker.faults.order(_name(task), losing(lambda _: None))

    def duplicate_next(self, task: NamedTask | None = None, /) -> None:
        """Make the next delivery twice. The second one finds the result of the first and does not run the task."""
        self._open_broker.faults.order(_name(task), twice(self._open_broker.new_signature))

    def crash_next(self, task: NamedTask | None = None, /) -> None:
        """Simulate a crash at the next delivery: the task has done its work, but the result and the response are lost.

        The broker tries again and the task runs a second time, so its work must be safe to repeat.
        """
        results = self._open_broker.results

        def forget(request: DeliveryRequest) -> None:
            results.forget(call_id_of(request))

        self._open_broker.faults.order(_name(task), losing(forget))

    def delay_next(self, task: NamedTask | None = None, /, span: Span = 0, **parts: Unpack[TimeParts]) -> None:
        """Delay the next call (of `task`): it is due by this span later than the call asks for.

        `span` is as in `advance`. A call through a queue cannot be delayed and is refused.
        """
        self._virtual_time_broker("delay_next").client_transport.delay(_name(task), _span_ms(span, parts))

    def reorder(self) -> None:
        """From now on, deliver messages that are due at the same time in reverse order. A queue keeps its order."""
        self._virtual_time_broker("reorder").steps.reordered = True

    def answer(self, url: str, answer: Answer = 200, /) -> None:
        """Answer for another service: a request to a URL that begins with `url` gets `answer`.

        `answer` is a status, a body (JSON unless it is text or bytes), or a function of the request that returns one.
        Without an answer, a delivery to another service goes to the dead letters at once.
        """
        self._open_broker.outside.answer(url, answer)

    def use_model(self, model: ProviderFake) -> None:
        """Let `model` answer in place of every language model: ``qtasks.use_model(fake_llm("yes"))``.

        See `qtasks.testing.llm`. Without it, the broker's own model is an echo, and requests to providers get what
        `answer` defines. No provider's key is needed.
        """
        self._open_broker.outside.model = model

    # -- internal

    @property
    def _open_broker(self) -> EnvironmentBroker:
        if self._broker is None:
            raise QTasksError(
                "this environment is not open",
                fix="with Environment(app) as qtasks: ...",
                code=ErrorCode.TEST_ENVIRONMENT_CLOSED,
            )
        return self._broker

    def _run(self, *, span_ms: int = 0, most: int | None = None) -> list[str]:
        broker = self._open_broker
        return broker.runner.call(broker.run(span_ms=span_ms, most=most))

    async def _arun(self, *, span_ms: int = 0, most: int | None = None) -> list[str]:
        broker = self._open_broker
        return await asyncio.wrap_future(broker.runner.submit(broker.run(span_ms=span_ms, most=most, awaited=True)))

    def _virtual_time_broker(self, what: str) -> VirtualTimeBroker:
        broker = self._open_broker
        if not isinstance(broker, VirtualTimeBroker):
            raise QTasksError(f'{what} changes time, which is real in mode "full"', code=ErrorCode.TEST_MODE_WRONG)
        return broker

    def _new_broker(self, app: app_under_test.AppUnderTest) -> EnvironmentBroker:
        if self._mode == "full":
            from qtasks.testing.brokers.real_time import RealTimeBroker  # with a server, which no other mode needs

            return RealTimeBroker(app)
        start_ms = int(time.time() * 1000) if self._start_ms is None else self._start_ms
        return VirtualTimeBroker(app, self._mode, start_ms=start_ms, seed=self._seed)

    def _first(self, messages: Sequence[str]) -> Call | None:
        return self._open_broker.call_log.of_message(messages[0]) if messages else None

    def _matcher(self, task: NamedTask, args: Sequence[Any], kwargs: dict[str, Any]) -> CallMatcher:
        return CallMatcher.of(task if isinstance(task, Task) else self._task_named(task), args, kwargs)

    def _task_named(self, name: str) -> Task[..., Any]:
        tasks = self._open_broker.application.tasks.tasks
        if name not in tasks:
            raise QTasksError(
                f"unknown task {name!r}; known tasks: {', '.join(sorted(tasks))}", code=ErrorCode.TASK_UNKNOWN
            )
        return tasks[name]

    def _matching(self, matcher: CallMatcher) -> list[Call]:
        return [call for call in self.sent if call.task == matcher.task.name and not matcher.differences(call)]


def _name(task: NamedTask | None) -> str | None:
    return task.name if isinstance(task, Task) else task


def _span_ms(span: Span, parts: TimeParts) -> int:
    """The span in milliseconds, rounded up."""
    return durations.to_ms(span) + durations.to_ms(timedelta(**parts))


def _start_ms(start: datetime | str | None) -> int | None:
    if start is None:
        return None
    moment = datetime.fromisoformat(start) if isinstance(start, str) else start
    if moment.utcoffset() is None:
        raise ConfigurationError(
            f"start={start!r} has no time zone",
            fix='add one: "2030-03-31T01:30:00+01:00", or a datetime with tzinfo',
        )
    return int(moment.timestamp() * 1000)
