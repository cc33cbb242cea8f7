"""The stage on which time stands still: the broker takes a step when the test says so."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Literal

from qtasks.broker.broker import Broker
from qtasks.broker.transport.in_process import AsgiTransport
from qtasks.embedded import API
from qtasks.error_codes import ErrorCode
from qtasks.errors import QTasksError, ResultTimeout
from qtasks.protocol import durations
from qtasks.tasks.ports import ASGIApp, Connection
from qtasks.tasks.results.backend import Record, ResultStatus
from qtasks.testing.app_under_test import ORIGIN, Application
from qtasks.testing.brokers.base_broker import ACCOUNT, TOKEN, Stage, settings
from qtasks.testing.brokers.client_transport import AsyncCarrier, Carrier
from qtasks.testing.brokers.reused_store import EmptyStore
from qtasks.testing.brokers.stepper import Steps
from qtasks.testing.call_log import Ledger
from qtasks.testing.fakes.faults import Faults
from qtasks.testing.fakes.stepped_results import SteppedResults
from qtasks.testing.fakes.virtual_clock import SeededRandom, VirtualClock

SteppedMode = Literal["manual", "capture", "inline"]


class Stepped(Stage):
    """`start_ms` is the time at which its clock stands at first, `seed` what its chance comes from."""

    def __init__(self, application: Application, mode: SteppedMode, *, start_ms: int, seed: int) -> None:
        super().__init__(application)
        self.mode = mode
        self.clock: VirtualClock = VirtualClock(start_ms)
        self.random = SeededRandom(seed)
        self.ledger = Ledger(application.base_url, application.tasks.runtime.tasks, self.kept)
        self.results: SteppedResults = SteppedResults(self._why_not)
        self._app: ASGIApp | None = application.app
        self._alive: tuple[ASGIApp, asyncio.AbstractEventLoop] | None = None
        self._closed = False
        self.threads.broker.call(self._open())
        self.carrier = Carrier(self.broker, self.threads.broker, application.base_url, self._follow)
        self._connection = Connection(
            url=API,
            token=TOKEN,
            keys=self.keys,
            base_url=application.base_url,
            results="memory://",
            model_keys=False,
            transport=self.carrier,
            async_transport=AsyncCarrier(self.carrier),
        )

    def start(self, app: ASGIApp, loop: asyncio.AbstractEventLoop | None) -> Connection:
        """See `Home.start`."""
        if loop is not None:
            self._alive = (app, loop)
        if self._app is None:
            self._app = app
        return self._connection

    def stop(self) -> None:
        """See `Home.stop`."""
        self._alive = None

    def run(self, *, span_ms: int = 0, most: int | None = None, awaited: bool = False) -> Future[list[str]]:
        """See `Stage.run`."""
        if self.mode == "capture":
            raise QTasksError(
                'in mode "capture" calls are only recorded: nothing runs',
                fix="leave out the mode, and calls wait until the test lets them run",
                code=ErrorCode.TEST_MODE_WRONG,
            )
        if not self.results.waits.begin():
            raise QTasksError(
                "calls are running already: a task, or a second thread, cannot let them run once more",
                fix="wait for the result of the one call that is wanted",
                code=ErrorCode.TEST_CALLS_ALREADY_RUNNING,
            )
        return self._begun(self.now_ms + span_ms, most, awaited)

    def close(self) -> None:
        """See `Stage.close`."""
        if not self._closed:
            self._closed = True
            self.threads.broker.call(self.broker.stop())
            self.threads.tidy()

    async def _open(self) -> None:
        # What it serves is said before every step.
        self._transport = AsgiTransport(ORIGIN, _nobody, asyncio.get_running_loop(), self.outside)
        self.faults = Faults(self.application.base_url, self._transport, self.outside)
        # Attempts that were taken and never started (`reorder`) are nothing to wait for at the end.
        how = replace(settings(), drain_s=0)
        self.broker = await Broker.open(
            how,
            transport=self.faults,
            clock=self.clock,
            random=self.random,
            store=EmptyStore(self.threads.shelf),
        )
        self.broker.watchers.add(self.ledger)
        self.keys = await self.broker.keys.of(self.broker.accounts[ACCOUNT])
        self.steps = Steps(self.broker, self.clock, self.ledger, self.results)

    def _begun(self, until_ms: int | None, most: int | None, awaited: bool) -> Future[list[str]]:
        """Let calls run; without an end (None) the clock goes along with what waits."""
        self._transport.serve(*self._place(awaited))
        schedules = self.mode == "manual"
        return self.threads.broker.submit(self.steps.run(until_ms=until_ms, most=most, schedules=schedules))

    def _place(self, awaited: bool) -> tuple[ASGIApp, asyncio.AbstractEventLoop]:
        """The application, and the loop that it is called on.

        That of an application that lives, unless the caller blocks it; else the caller's, where it is awaited, so that
        tasks share what belongs to the loop of the test; else one of our own.
        """
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if self._alive is not None and (awaited or self._alive[1] is not here):
            return self._alive
        assert self._app is not None, "the engine has said it before anything could be sent"
        return self._app, here if awaited and here is not None else self.threads.tasks.loop

    def _follow(self, awaited: bool) -> Future[Any] | None:
        """After each request of the client: in mode inline, what it has caused. What runs already takes it along."""
        if self.mode != "inline" or not self.results.waits.begin():
            return None
        return self._begun(None, None, awaited)

    def _why_not(self, key: str, record: Record | None) -> ResultTimeout:
        """The error for whoever would wait for a call that nothing lets run."""
        call = self.ledger.of_call(key)
        shown = key if call is None else f"{call} {call.id}"
        due_ms = None if call is None else self.ledger.due_ms(call)
        if call is None:
            return ResultTimeout(
                f"{shown} was not sent in this test, so there is nothing to wait for",
                fix="qtasks.drain(), if it follows a call that waits; else its batch is open still, or it "
                "was made before this test",
                code=ErrorCode.RESULT_TIMEOUT,
            )
        if record is not None and record.status is ResultStatus.RETRYING:
            facts = f"has failed on attempt {record.attempt} ({record.error}) and waits for the next"
        elif due_ms is None:
            facts = "was delivered and left no result"
        else:
            facts = "has not run: calls wait until the test lets them run"
        left_ms = 0 if due_ms is None else due_ms - self.now_ms
        fix = "qtasks.drain()" if left_ms <= 0 else f'qtasks.advance("{durations.format(left_ms)}")'
        if self.mode == "capture":
            facts, fix = 'has not run: in mode "capture" no call does', "another mode"
        return ResultTimeout(f"{shown} {facts}", fix=fix, code=ErrorCode.RESULT_TIMEOUT)


async def _nobody(_scope: Any, _receive: Any, _send: Any) -> None: ...
