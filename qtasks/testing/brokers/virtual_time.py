"""The broker in virtual time: it works step by step, only when the test asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Literal

from qtasks.broker.broker import Broker
from qtasks.broker.transport.in_process import AsgiTransport
from qtasks.embedded_transport import API
from qtasks.error_codes import ErrorCode
from qtasks.errors import QTasksError, ResultTimeout
from qtasks.protocol import durations
from qtasks.tasks.ports import ASGIApp, Connection
from qtasks.tasks.results.backend import ResultRecord, ResultStatus
from qtasks.testing.app_under_test import ORIGIN, AppUnderTest
from qtasks.testing.brokers.base_broker import ACCOUNT, TOKEN, EnvironmentBroker, settings
from qtasks.testing.brokers.client_transport import AsyncClientTransport, ClientTransport
from qtasks.testing.brokers.reused_store import empty_store
from qtasks.testing.brokers.stepper import BrokerStepper
from qtasks.testing.call_log import CallLog
from qtasks.testing.fakes.faults import FaultyTransport
from qtasks.testing.fakes.stepped_results import SteppedResults
from qtasks.testing.fakes.virtual_clock import SeededRandom, VirtualClock

SteppedMode = Literal["manual", "capture", "inline"]


class VirtualTimeBroker(EnvironmentBroker):
    """A broker in virtual time. `start_ms` is its first time (Unix ms), `seed` the seed of ids and jitter."""

    def __init__(self, application: AppUnderTest, mode: SteppedMode, *, start_ms: int, seed: int) -> None:
        super().__init__(application)
        self.mode = mode
        self.runner = self.threads.virtual_time
        self.clock: VirtualClock = VirtualClock(start_ms)
        self.random = SeededRandom(seed)
        self.call_log = CallLog(application.base_url, application.tasks.runtime.tasks, self.kept)
        self.results: SteppedResults = SteppedResults(self._why_not)
        self._app: ASGIApp | None = application.gateway()
        self._alive: tuple[ASGIApp, asyncio.AbstractEventLoop] | None = None
        self._closed = False
        self.runner.call(self._open())
        self.client_transport = ClientTransport(self.broker, self.runner, application.base_url, self._follow)
        self._connection = Connection(
            url=API,
            token=TOKEN,
            keys=self.keys,
            base_url=application.base_url,
            results="memory://",
            model_keys=False,
            transport=self.client_transport,
            async_transport=AsyncClientTransport(self.client_transport),
        )

    def start(self, app: ASGIApp, loop: asyncio.AbstractEventLoop | None) -> Connection:
        """See `EmbeddedBroker.start`."""
        if loop is not None:
            self._alive = (app, loop)
        if self._app is None:
            self._app = app
        return self._connection

    def stop(self) -> None:
        """See `EmbeddedBroker.stop`."""
        self._alive = None

    def serve(self) -> None:
        """See `EnvironmentBroker.serve`: in virtual time nothing runs by itself."""

    def run(
        self, *, span_ms: int = 0, most: int | None = None, awaited: bool = False
    ) -> Coroutine[Any, Any, list[str]]:
        """See `EnvironmentBroker.run`."""
        if self.mode == "capture":
            raise QTasksError(
                'in mode "capture" calls are only recorded and never run',
                fix="leave out the mode: calls then wait until the test runs them",
                code=ErrorCode.TEST_MODE_WRONG,
            )
        if not self.results.waits.begin():
            raise QTasksError(
                "calls are running already: a task or a second thread cannot start them again",
                fix="wait for the result of the call that you need",
                code=ErrorCode.TEST_CALLS_ALREADY_RUNNING,
            )
        return self._begun(self.now_ms + span_ms, most, awaited)

    def close(self) -> None:
        """See `EnvironmentBroker.close`."""
        if not self._closed:
            self._closed = True
            self.runner.call(self.broker.stop())
            self.threads.tidy()

    async def _open(self) -> None:
        # The application is set before every step (`_begun`).
        self._transport = AsgiTransport(ORIGIN, _no_app, asyncio.get_running_loop(), self.outside)
        self.faults = FaultyTransport(self.application.base_url, self._transport, self.outside)
        # `reorder` may leave claimed attempts that never start: the end does not wait for them.
        how = replace(settings(), drain_s=0)
        self.broker = await Broker.open(
            how,
            transport=self.faults,
            clock=self.clock,
            random=self.random,
            store=empty_store(self.threads.shelf, self.clock),
        )
        self.broker.watchers.add(self.call_log)
        self.keys = await self.broker.keys.of(self.broker.accounts[ACCOUNT])
        self.steps = BrokerStepper(self.broker, self.clock, self.call_log, self.results)

    def _begun(self, until_ms: int | None, most: int | None, awaited: bool) -> Coroutine[Any, Any, list[str]]:
        """Run calls until `until_ms`; None moves the clock as far as calls are waiting."""
        self._transport.serve(*self._place(awaited))
        schedules = self.mode == "manual"
        return self.steps.run(until_ms=until_ms, most=most, schedules=schedules)

    def _place(self, awaited: bool) -> tuple[ASGIApp, asyncio.AbstractEventLoop]:
        """The application, and the loop that it is called on.

        The loop of a running application, unless the caller blocks it; else the caller's loop if the caller awaits, so
        that tasks share the objects of the test's loop; else the shared loop for tasks.
        """
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if self._alive is not None and (awaited or self._alive[1] is not here):
            return self._alive
        assert self._app is not None, "the runtime starts the broker before it sends anything"
        return self._app, here if awaited and here is not None else self.threads.tasks.loop

    def _follow(self, awaited: bool) -> Coroutine[Any, Any, Any] | None:
        """In mode inline, run what a request of the client caused; a run in progress includes it already."""
        if self.mode != "inline" or not self.results.waits.begin():
            return None
        return self._begun(None, None, awaited)

    def _why_not(self, key: str, record: ResultRecord | None) -> ResultTimeout:
        """The error for a wait for a call that will not run."""
        call = self.call_log.of_call(key)
        shown = key if call is None else f"{call} {call.id}"
        due_ms = None if call is None else self.call_log.due_ms(call)
        if call is None:
            return ResultTimeout(
                f"{shown} was not sent in this test, so its result cannot arrive",
                fix="qtasks.drain(), if it follows a waiting call; otherwise its batch is still open, or it "
                "was made before this test",
                code=ErrorCode.RESULT_TIMEOUT,
            )
        if record is not None and record.status is ResultStatus.RETRYING:
            facts = f"has failed on attempt {record.attempt} ({record.error}) and waits for the next"
        elif due_ms is None:
            facts = "was delivered and left no result, or the result was deleted after the application's result_ttl"
        else:
            facts = "has not run: calls wait until the test runs them"
        left_ms = 0 if due_ms is None else due_ms - self.now_ms
        fix = "qtasks.drain()" if left_ms <= 0 else f'qtasks.advance("{durations.format(left_ms)}")'
        if due_ms is None and record is None:
            fix = "read a result before the clock passes its end, or keep results for longer: QTasks(result_ttl=...)"
        if self.mode == "capture":
            facts, fix = 'has not run: in mode "capture" no call does', "another mode"
        return ResultTimeout(f"{shown} {facts}", fix=fix, code=ErrorCode.RESULT_TIMEOUT)


async def _no_app(_scope: Any, _receive: Any, _send: Any) -> None: ...
