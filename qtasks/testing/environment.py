"""What a test holds in its hand: verbs that let calls run, views of what became of them, and words about both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future
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
from qtasks.testing.brokers.base_broker import Mode, Stage, call_id_of
from qtasks.testing.brokers.real_time import Served
from qtasks.testing.brokers.virtual_time import Stepped
from qtasks.testing.fakes.faults import Answer, failing, losing, twice
from qtasks.testing.fakes.virtual_clock import TaskClock
from qtasks.testing.matching import Wanted, missing, unwanted
from qtasks.testing.sent_call import Call, DeadCall, moment

if TYPE_CHECKING:
    from typing import Self

    from fastapi import FastAPI

NamedTask = Task[..., Any] | str
"""A task, or its name."""

MODES: Final[Sequence[str]] = get_args(Mode)


class Parts(TypedDict, total=False):
    """A time in parts, as of `timedelta`."""

    weeks: float
    days: float
    hours: float
    minutes: float
    seconds: float
    milliseconds: float


class Environment:
    """A world of its own for the tasks of an application, as long as the ``with`` lasts; the fixture `qtasks` is one.

        with Environment(app) as qtasks:
            sign_up("ada@example.com")
            qtasks.assert_enqueued(welcome, "ada@example.com")
            qtasks.advance(days=3)

    Inside, the tasks have the broker of this environment and nothing of what they have outside: no setting, no
    service, no result of before. An application that is running or is started inside (a test client's ``with``) gets
    its deliveries on its own event loop; else they go to `app` as it stands, its `dependency_overrides` included.

    Args:
        app: The FastAPI application or the QTasks under test, or where to find it (``"package.module:object"``). None:
            it is looked for, as by `qtasks dev`.
        mode: ``"manual"``: calls wait until `drain`, `advance` or `run_next`; declared schedules are active.
            ``"capture"``: they are recorded, and none runs. ``"inline"``: `.delay()` returns when the call has run, and
            all that it has caused; waits are skipped. ``"full"``: broker and application serve on free ports, in real
            time, the lifespan of the application included.
        start: When it is, at first; now by default. Time stands still in all modes but ``"full"``.
        seed: Of ids and jitter.
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
            raise ConfigurationError(f"there is no mode {mode!r}", details={"expected": ", ".join(MODES)})
        self._given = app
        self._mode: Mode = mode
        self._start_ms = _start_ms(start)
        self._seed = seed
        self._stack = ExitStack()
        self._stage: Stage | None = None

    def __enter__(self) -> Self:
        found = app_under_test.of(self._given, Path.cwd())
        with ExitStack() as stack:
            stage = self._staged(found)
            stack.enter_context(
                found.tasks.housed(
                    stage,
                    results=stage.results,
                    workers=stage.threads.workers,
                    clock=TaskClock(stage.clock),
                    random=stage.random,
                )
            )
            stack.callback(stage.close)
            found.tasks.runtime.dispatcher()  # opened now, so that the stage knows what it delivers to
            if isinstance(stage, Served):
                stage.serve(found.app or found.tasks.asgi_app())
            elif self._mode == "manual" and len(found.tasks.schedules):
                found.tasks.schedules.sync()
            self._stage = stage
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage = None
        self._stack.close()

    # -- time

    @property
    def mode(self) -> Mode:
        """How calls run here."""
        return self._mode

    @property
    def now(self) -> datetime:
        """What time it is here, in UTC."""
        return moment(self._on.now_ms)

    def drain(self) -> int:
        """Let everything run that is due now, and what comes of it, one call after the other; the clock stands still.

        Returns how many attempts were made. An attempt that fails is not an error of the test: it is tried again when
        its time has come (`advance`), or found in `dlq`. Raises QTasksError after 10,000 attempts.
        """
        return len(self._waited(self._on.run()))

    async def adrain(self) -> int:
        """As `drain`, in async code: tasks run on the event loop of the test, unless an application has its own."""
        return len(await self._awaited(self._on.run(awaited=True)))

    def run_next(self) -> Call | None:
        """Let the one call run that is due first; None if nothing is due now."""
        return self._first(self._waited(self._on.run(most=1)))

    async def arun_next(self) -> Call | None:
        """As `run_next`, in async code."""
        return self._first(await self._awaited(self._on.run(most=1, awaited=True)))

    def advance(self, span: Span = 0, /, **parts: Unpack[Parts]) -> int:
        """Let time pass, ``advance(hours=3)`` or ``advance("3h")``: whatever falls due meanwhile runs in its turn.

        Retries, delayed calls, schedules, callbacks: each at its time, by a clock that jumps from one to the next.
        `parts` are those of `timedelta`, `span` is a duration, or seconds. Returns how many attempts were made.
        """
        return len(self._waited(self._on.run(span_ms=_span_ms(span, parts))))

    async def aadvance(self, span: Span = 0, /, **parts: Unpack[Parts]) -> int:
        """As `advance`, in async code."""
        return len(await self._awaited(self._on.run(span_ms=_span_ms(span, parts), awaited=True)))

    # -- views

    @property
    def sent(self) -> list[Call]:
        """Every call since the test began, in order, whether it has run or not; runs of schedules among them."""
        return self._on.ledger.calls

    @property
    def pending(self) -> list[Call]:
        """Of these, what has not ended: waiting, delayed, or about to be tried again."""
        stage = self._on
        off = stage.cancelled()
        return [call for call in self.sent if stage.ledger.due_ms(call, off) is not None]

    @property
    def dlq(self) -> list[DeadCall]:
        """What has failed for good, oldest first."""
        return self._on.dead_calls()

    @property
    def results(self) -> list[TaskResult[Any]]:
        """A handle on each call's result, in the order in which they were sent."""
        handles = {call.id: call.result for call in self.sent if call.declared is not None}
        return list(handles.values())

    @property
    def outside(self) -> list[DeliveryRequest]:
        """What would have gone to somebody else: webhooks, callbacks to other addresses, model providers."""
        return list(self._on.outside.requests)

    # -- assertions

    def all_enqueued(self, task: NamedTask | None = None, /, *args: Any, **kwargs: Any) -> list[Call]:
        """The calls that fit: of `task` (None: of any), with these arguments among others.

        What concerns the delivery is asked for by `using`: ``all_enqueued(charge.using(queue="bills"), 42)``.
        """
        return self.sent if task is None else self._fitting(self._wanted(task, args, kwargs))

    def assert_enqueued(self, task: NamedTask, /, *args: Any, **kwargs: Any) -> list[Call]:
        """Insist that `task` was called since the test began, and return the calls that fit; see `all_enqueued`.

        ``[call] = qtasks.assert_enqueued(charge.using(delay="10m"), 42)`` insists on exactly one. Raises AssertionError
        that shows the nearest call, and how it differs.
        """
        wanted = self._wanted(task, args, kwargs)
        if not (found := self._fitting(wanted)):
            raise AssertionError(missing(wanted, self.sent))
        return found

    def refute_enqueued(self, task: NamedTask, /, *args: Any, **kwargs: Any) -> None:
        """Insist that no call fits; see `all_enqueued`. Raises AssertionError that lists those that do."""
        wanted = self._wanted(task, args, kwargs)
        if found := self._fitting(wanted):
            raise AssertionError(unwanted(wanted, found))

    # -- faults

    def fail_next(self, task: NamedTask | None = None, /, *, times: int = 1, status: int = 500) -> None:
        """Have the next `times` deliveries (of `task`) answered `status` on the way: the task is not run."""
        self._on.faults.order(_name(task), failing(status), times)

    def drop_response_next(self, task: NamedTask | None = None, /) -> None:
        """Have the next answer lost: the task runs, but the broker hears nothing of it and tries again."""
        self._on.faults.order(_name(task), losing(lambda _: None))

    def duplicate_next(self, task: NamedTask | None = None, /) -> None:
        """Have the next delivery made twice. The second one finds the result of the first, and does not run again."""
        self._on.faults.order(_name(task), twice(self._on.resigned))

    def crash_next(self, task: NamedTask | None = None, /) -> None:
        """Have the process die at the next delivery, so to speak: the task's work is done, and nobody knows.

        The broker tries again, and the task runs a second time: what it does must bear that.
        """
        results = self._on.results

        def forget(request: DeliveryRequest) -> None:
            results.forget(call_id_of(request))

        self._on.faults.order(_name(task), losing(forget))

    def delay_next(self, task: NamedTask | None = None, /, span: Span = 0, **parts: Unpack[Parts]) -> None:
        """Have the next call (of `task`) come late: it is due that much later than it says.

        `span` is as of `advance`. Calls through a queue know no delay: theirs is refused.
        """
        self._stepped("delay_next").carrier.delay(_name(task), _span_ms(span, parts))

    def reorder(self) -> None:
        """Deliver from now on what is due at one time the other way round. A queue keeps its order all the same."""
        self._stepped("reorder").steps.reordered = True

    def answer(self, url: str, answer: Answer = 200, /) -> None:
        """Answer for somebody outside: what goes to a URL that begins with `url` gets `answer`.

        A status, a body (JSON where it is no text), or what a function of the request returns. Without it such a
        delivery ends at once in the dead letters.
        """
        self._on.outside.answer(url, answer)

    def use_model(self, model: ProviderFake) -> None:
        """Have `model` answer in place of every language model: ``qtasks.use_model(fake_llm("yes"))``.

        See `qtasks.testing.llm`. Without one the broker's own model is an echo, and providers are answered as `answer`
        says. No provider's key is needed.
        """
        self._on.outside.model = model

    # -- inside

    @property
    def _on(self) -> Stage:
        if self._stage is None:
            raise QTasksError(
                "this environment is not open",
                fix="with Environment(app) as qtasks: ...",
                code=ErrorCode.TEST_ENVIRONMENT_CLOSED,
            )
        return self._stage

    def _stepped(self, what: str) -> Stepped:
        stage = self._on
        if not isinstance(stage, Stepped):
            raise QTasksError(
                f'{what} changes the course of time, which is real in mode "full"', code=ErrorCode.TEST_MODE_WRONG
            )
        return stage

    def _staged(self, found: app_under_test.Application) -> Stage:
        if self._mode == "full":
            return Served(found)
        start_ms = int(time.time() * 1000) if self._start_ms is None else self._start_ms
        return Stepped(found, self._mode, start_ms=start_ms, seed=self._seed)

    def _waited(self, running: Future[list[str]]) -> list[str]:
        return running.result()

    async def _awaited(self, running: Future[list[str]]) -> list[str]:
        return await asyncio.wrap_future(running)

    def _first(self, messages: Sequence[str]) -> Call | None:
        return self._on.ledger.of_message(messages[0]) if messages else None

    def _wanted(self, task: NamedTask, args: Sequence[Any], kwargs: dict[str, Any]) -> Wanted:
        return Wanted.of(task if isinstance(task, Task) else self._known(task), args, kwargs)

    def _known(self, name: str) -> Task[..., Any]:
        tasks = self._on.application.tasks.tasks
        if name not in tasks:
            raise QTasksError(
                f"there is no task {name!r} here; known tasks: {', '.join(sorted(tasks))}", code=ErrorCode.TASK_UNKNOWN
            )
        return tasks[name]

    def _fitting(self, wanted: Wanted) -> list[Call]:
        return [call for call in self.sent if call.task == wanted.task.name and not wanted.differences(call)]


def _name(task: NamedTask | None) -> str | None:
    return task.name if isinstance(task, Task) else task


def _span_ms(span: Span, parts: Parts) -> int:
    """Milliseconds; a fraction of one is rounded up."""
    return durations.to_ms(span) + durations.to_ms(timedelta(**parts))


def _start_ms(start: datetime | str | None) -> int | None:
    if start is None:
        return None
    moment = datetime.fromisoformat(start) if isinstance(start, str) else start
    if moment.utcoffset() is None:
        raise ConfigurationError(
            f"start={start!r} does not say in which time zone",
            fix='such as "2030-03-31T01:30:00+01:00", or a datetime with a tzinfo',
        )
    return int(moment.timestamp() * 1000)
