"""What an application opens: settings, client, dispatcher, result backend, embedded broker."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtasks.clock import Clock, SystemClock
from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, ConfigurationError, ResultsDisabled
from qtasks.forks import per_process
from qtasks.randomness import Random, SystemRandom
from qtasks.tasks import settings as app_settings
from qtasks.tasks.closing import close_all, raise_error
from qtasks.tasks.codec import AS_JSON, WireForm
from qtasks.tasks.context import current_context
from qtasks.tasks.dev_server import find_dev_server
from qtasks.tasks.encode.keyring import Keyring
from qtasks.tasks.hooks import Hooks
from qtasks.tasks.ports import ASGIApp, Connection, EmbeddedBroker
from qtasks.tasks.results.backend import ResultBackend
from qtasks.tasks.results.flow_plan import flow_id_of
from qtasks.tasks.results.inquiry import Inquiries
from qtasks.tasks.results.open_backend import open_results
from qtasks.tasks.send.service_state import QStashService
from qtasks.tasks.settings import Settings, SettingsOverrides
from qtasks.threads import on_event_loop

if TYPE_CHECKING:
    from qtasks.tasks.results.task_result import CallToCancel
    from qtasks.tasks.run.dispatcher import CallbackHandler, Dispatcher
    from qtasks.tasks.run.flows.flow_sweep import FlowSweeper
    from qtasks.tasks.run.run_middleware import RunMiddleware
    from qtasks.tasks.run.thread_pool import ThreadPool
    from qtasks.tasks.send.outgoing import Outgoing
    from qtasks.tasks.send.publisher import Publisher
    from qtasks.tasks.send.send_middleware import SendMiddleware
    from qtasks.tasks.task import Task

DRAIN_S = 30.0
"""How long the application waits for running tasks when it stops."""

_TEST_SECRET = "public-and-for-tests-only-and-long-enough"  # noqa: S105 - it says so


class ApplicationRuntime:
    """The runtime of one application: opens each part once, on first use, from any thread; again after `close`."""

    def __init__(
        self,
        tasks: Mapping[str, Task[..., Any]],
        *,
        embedded: EmbeddedBroker | None,
        overrides: SettingsOverrides,
        bare_app: Callable[[], ASGIApp],
        results: ResultBackend | None = None,
        workers: ThreadPool | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        form: WireForm = AS_JSON,
    ) -> None:
        self.tasks = tasks
        """The tasks by name, aliases included."""
        self.form = form
        """How arguments and results travel where a task does not say it."""
        self._embedded = embedded
        self._overrides = overrides
        self._bare_app = bare_app
        self._given_results = results
        self._workers = workers
        self._connection: Connection | None = None
        self._settings: Settings | None = None
        self._publisher: Publisher | None = None
        self._results: ResultBackend | None = None
        self.keyring = Keyring(self.settings)
        self.send_middleware: list[SendMiddleware] = []
        """The generators around each call that is sent; the first one is the outermost."""
        self.run_middleware: list[RunMiddleware] = []
        """The coroutine functions around each run; the first one is the outermost."""
        self.hooks = Hooks()
        self.clock: Clock = clock or SystemClock()
        self.random: Random = random or SystemRandom()
        per_process(self._begin)

    def _begin(self) -> None:
        """Start without runs, threads and lifespans. The other parts make what belongs to a process anew themselves."""
        # Reentrant: opening one part opens others. Reading an open part needs no lock.
        self._lock = threading.RLock()
        self._dispatcher: Dispatcher | None = None
        self._inquiries: Inquiries | None = None
        self._sweeper: FlowSweeper | None = None
        self._served: list[tuple[ASGIApp, asyncio.AbstractEventLoop]] = []
        """The applications in whose lifespans it is, also twice, and their loops; the last one gets the deliveries."""
        self._loop_thread: int | None = None

    @property
    def is_embedded(self) -> bool:
        """True if the broker runs inside this process."""
        return self._embedded is not None

    @property
    def broker_failure(self) -> str | None:
        """The reason why the storage of the embedded broker failed; None if it has not."""
        return getattr(self._embedded, "failure", None)  # brokers without a disk have no such attribute

    def embed(self, broker: EmbeddedBroker) -> None:
        """Use `broker`. Raises ConfigurationError if there is an embedded broker already, or the tasks are in use."""
        with self._lock:
            if self._embedded is not None:
                raise ConfigurationError(f"the tasks have an embedded broker already: {self._embedded!r}")
            if self._settings is not None:
                raise ConfigurationError("the tasks are in use already: embed a broker before their first use")
            self._embedded = broker

    def settings(self) -> Settings:
        """The settings, read on first use. Raises ConfigurationError for a malformed value."""
        with self._lock:
            if self._settings is None:
                self._settings = self._resolved()
            return self._settings

    def publisher(self) -> Publisher:
        """The connection to the broker. Raises ConfigurationError if no broker is configured."""
        return self._publisher or self._opened_publisher()

    async def apublisher(self) -> Publisher:
        """As `publisher`, without blocking the event loop."""
        ready = self._publisher
        return ready if ready is not None else await asyncio.to_thread(self._opened_publisher)

    def dispatcher(self) -> Dispatcher:
        """Answers deliveries. Raises ConfigurationError if the signing keys or the base URL are missing."""
        return self._dispatcher or self._opened_dispatcher()

    async def adispatcher(self) -> Dispatcher:
        """As `dispatcher`, without blocking the event loop."""
        ready = self._dispatcher
        return ready if ready is not None else await asyncio.to_thread(self._opened_dispatcher)

    def results(self) -> ResultBackend:
        """The result backend. Raises ResultsDisabled if none is configured."""
        if (ready := self._results or self.results_or_none()) is None:
            raise ResultsDisabled(
                "results were requested, but no result backend is configured",
                fix="set QTASKS_RESULTS, or QTasks(results=...), to sqlite:///results.db or, for one "
                "process, memory://",
            )
        return ready

    async def aresults(self) -> ResultBackend:
        """As `results`, without blocking the event loop."""
        ready = self._results
        return ready if ready is not None else await asyncio.to_thread(self.results)

    def check_results(self) -> None:
        """Raise ResultsDisabled if no result backend is configured. An embedded broker has one."""
        if self._embedded is None and not self.is_idle:
            self.results()

    def runs_on_this_thread(self) -> bool:
        """True if the caller is on an event loop that runs the tasks: waiting there would block them."""
        return self._loop_thread == threading.get_ident() or (current_context() is not None and on_event_loop())

    @property
    def is_idle(self) -> bool:
        """True in a test without a broker for these tasks: the application starts, but no call can be sent."""
        return self._embedded is None and app_settings.in_test(os.environ)

    @property
    def is_serving(self) -> bool:
        """True in the lifespan of an application."""
        return bool(self._served)

    async def enter(self, app: ASGIApp) -> None:
        """Begin the lifespan of an application: start its embedded broker, and check its configuration.

        Raises ConfigurationError, DefinitionError.
        """
        try:
            await asyncio.to_thread(self._start, app, asyncio.get_running_loop())
        except BaseException:
            with self._lock:
                self._served = [each for each in self._served if each[0] is not app]
            await asyncio.to_thread(self.close)
            raise
        self._loop_thread = threading.get_ident()

    @property
    def running(self) -> int:
        """How many deliveries run in this process."""
        return 0 if self._dispatcher is None else self._dispatcher.running

    async def hand_back(self) -> None:
        """Take no more deliveries, and have the broker repeat those that run: the process ends. See `Dispatcher`."""
        with self._lock:
            dispatcher = self._dispatcher
        if dispatcher is not None:
            await dispatcher.hand_back()

    async def leave(self, app: ASGIApp) -> None:
        """End the lifespan of `app`. At the end of the last one: stop sending, wait for tasks, close everything."""
        if await asyncio.to_thread(self._serve_others, app):
            return
        with self._lock:
            dispatcher = self._dispatcher
        (stopped,) = await asyncio.gather(asyncio.to_thread(self._stop_broker), return_exceptions=True)
        try:
            if dispatcher is not None:
                # An embedded broker has waited for them already.
                await dispatcher.drain(0 if self.is_embedded else DRAIN_S)
        finally:
            await asyncio.to_thread(close_all, lambda: raise_error(stopped), self.close)

    def close(self) -> None:
        """Close every open part, even if another one cannot be closed. Idempotent; the next use opens again."""
        # An embedded broker first: what it delivers until its end needs the other parts.
        close_all(self._stop_broker, self._close_parts)

    def _close_parts(self) -> None:
        with self._lock:
            publisher, self._publisher = self._publisher, None
            dispatcher, self._dispatcher = self._dispatcher, None
            results, self._results = self._results, None
            sweeper, self._sweeper = self._sweeper, None
            self._settings = None
            self.keyring.forget()
            self._loop_thread = None
        close_all(*(part.close for part in (sweeper, publisher, dispatcher, results) if part is not None))

    def on_broker(
        self,
        broker: EmbeddedBroker,
        *,
        bare_app: Callable[[], ASGIApp],
        results: ResultBackend,
        workers: ThreadPool,
        clock: Clock,
        random: Random,
    ) -> ApplicationRuntime:
        """A second runtime for the same tasks, with the same middleware and hooks, on another broker.

        An application whose lifespan is open here is served there as well.
        """
        overrides: SettingsOverrides = {**self._overrides, "results": "memory://"}  # shown only; `results` is used
        if not os.environ.get(app_settings.VARIABLES["secret_key"]):
            overrides.setdefault("secret_key", _TEST_SECRET)
        other = ApplicationRuntime(
            self.tasks,
            embedded=broker,
            overrides=overrides,
            bare_app=bare_app,
            results=results,
            workers=workers,
            clock=clock,
            random=random,
            form=self.form,
        )
        other.send_middleware, other.run_middleware = self.send_middleware, self.run_middleware
        other.hooks = self.hooks
        if self._served:
            other._connection = broker.start(*self._served[-1])
            other._loop_thread = self._loop_thread
        return other

    def _start(self, app: ASGIApp, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._served.append((app, loop))
            if self._embedded is not None:
                self._connection = self._embedded.start(app, loop)
            if not self.is_idle:
                self.dispatcher()
                self._start_sweeper()
            for task in self.tasks.values():
                task.ready()  # an invalid declaration stops the start

    def _serve_others(self, app: ASGIApp) -> bool:
        """Forget `app`. True if another application is alive: from now on that one gets the deliveries."""
        with self._lock:
            self._served = [each for each in self._served if each[0] is not app]
            if self._served and self._embedded is not None:
                self._embedded.start(*self._served[-1])
            return bool(self._served)

    def _start_sweeper(self) -> None:
        """Look at open flows from now on, where there are results and time passes by itself."""
        if self._sweeper is None and isinstance(self.clock, SystemClock) and (results := self.results_or_none()):
            from qtasks.tasks.run.flows.flow_sweep import FlowSweep, FlowSweeper

            self._sweeper = FlowSweeper(FlowSweep(results, self._service, self.clock), self.random)

    def _stop_broker(self) -> None:
        try:
            if self._connection is not None and self._embedded is not None:
                self._embedded.stop()
        finally:
            with self._lock:
                self._connection = None

    def _resolved(self) -> Settings:
        if self._embedded is None:
            return app_settings.resolve(os.environ, self._overrides, lambda url: find_dev_server(url, start=Path.cwd()))
        if self._connection is None:
            self._connection = self._embedded.start(self._bare_app(), None)
        return app_settings.embedded(self._connection, os.environ, self._overrides)

    def _opened_publisher(self) -> Publisher:
        with self._lock:
            if self._publisher is None:
                from qtasks.tasks.send.publisher import Publisher

                settings = self.settings()
                connection = self._connection
                self._publisher = Publisher(
                    settings,
                    transport=connection.transport if connection is not None else None,
                    async_transport=connection.async_transport if connection is not None else None,
                )
            return self._publisher

    def _opened_dispatcher(self) -> Dispatcher:
        # Imported here: a program that only sends calls runs none.
        from qtasks.tasks.results.writer import ResultWriter
        from qtasks.tasks.run import dispatcher, end_handler, executor, runner, thread_pool
        from qtasks.tasks.run.flows.continuation import Continuation

        with self._lock:
            if self._dispatcher is None:
                settings = self.settings()
                keys, base_url = settings.receiver()
                writer = ResultWriter(self.results_or_none())
                workers = self._workers or thread_pool.ThreadPool(settings.threads)
                attempts = executor.AttemptExecutor(
                    runner.Runner(workers, self.run_middleware),
                    writer,
                    Continuation(self.tasks, writer, self._republish, self.clock),
                    hooks=self.hooks,
                    secrets=(settings.token or "", keys.current, keys.next, *(settings.secret_key or "").split(",")),
                    clock=self.clock,
                    random=self.random,
                )
                self._dispatcher = dispatcher.Dispatcher(
                    self.tasks,
                    attempts,
                    keys=keys,
                    base_url=base_url,
                    clock=self.clock,
                    callback_handler=self._callback_handler,
                    end_handler=end_handler.EndHandler(self.tasks, writer, self._is_open, self.clock),
                )
            return self._dispatcher

    def _callback_handler(self) -> CallbackHandler:
        # Imported here: few applications use language models.
        from qtasks.tasks.llm.callback_handler import LlmCallbackHandler

        return LlmCallbackHandler(self.results_or_none(), self.clock)

    async def _republish(self, message: Outgoing) -> object:
        if message.stored_call is not None:
            await asyncio.to_thread(self.store_call, message)
        return await (await self.apublisher()).apublish(message)

    def _service(self) -> QStashService:
        url, _, base_url = self.settings().sender()
        return QStashService(self.publisher(), url=url, base_url=base_url)

    async def _is_open(self, call_id: str, ended: str, message_id: str | None) -> bool:
        try:
            service = await asyncio.to_thread(self._service)
        except ConfigurationError:  # this process runs tasks, and cannot ask the service
            return False
        return await asyncio.to_thread(service.is_open, call_id, ended, message_id)

    @property
    def inquiries(self) -> Inquiries:
        """Asks the service about calls whose records say nothing for some time."""
        with self._lock:
            if self._inquiries is None:
                self._inquiries = Inquiries(self._service, self.results, self.clock)
            return self._inquiries

    def now_ms(self) -> int:
        """The current Unix time in milliseconds."""
        return self.clock.now_ms()

    def cancel_call(self, call: CallToCancel) -> bool:
        """See `ResultAccess.cancel_call`. The end of an open flow stands for all of it."""
        from qtasks.tasks.run.cancellation import cancel_flow

        if (results := self.results_or_none()) is not None:
            flow = results.read(flow_id_of(call.id))
            if flow is not None and not flow.status.is_final:
                return cancel_flow(results, flow, self._cancel_one, now_ms=self.now_ms())
        return self._cancel_one(call)

    def _cancel_one(self, call: CallToCancel) -> bool:
        from qtasks.tasks.run.cancellation import Canceller

        task = self.tasks.get(call.task)
        # The hosted service knows only messages. The answer of a model waits in one of which only the broker knows.
        is_llm = task is not None and task.is_llm
        finds_all = not is_llm and (call.message_id is not None or not self.settings().is_hosted)
        canceller = Canceller(
            results=self.results_or_none(),
            clock=self.clock,
            cancel_message=self.publisher().cancel,
            stop_here=self._cancel_run,
            finds_all=finds_all,
        )
        return canceller.cancel(call)

    def is_deadlocked(self) -> bool:
        """See `DeadlockCheck`."""
        dispatcher = self._dispatcher
        return dispatcher is not None and dispatcher.is_deadlocked()

    def _cancel_run(self, call_id: str) -> bool:
        dispatcher = self._dispatcher
        return dispatcher is not None and dispatcher.cancel_run(call_id)

    def store_call(self, message: Outgoing) -> None:
        """Store a call that is too large for a header of its message, if it is.

        Raises ArgumentsError if no result backend is configured, and ResultError.
        """
        if (stored := message.stored_call) is None:
            return
        if (results := self.results_or_none()) is None:
            raise ArgumentsError(
                f"{message.task}: the arguments do not fit into a header, and no result backend is configured",
                fix="set QTASKS_RESULTS, or store the data and pass its key",
                code=ErrorCode.CALL_NOT_STORABLE,
            )
        results.write([stored.record(message.task, self.now_ms())])

    @property
    def model_keys(self) -> bool:
        """True if a request to a language model needs the provider's key."""
        self.settings()  # starts the embedded broker
        return self._connection is None or self._connection.model_keys

    def configured_base_url(self) -> str | None:
        """The base URL given from outside; an embedded broker has one of its own, and takes none from there."""
        outside = "" if app_settings.in_test(os.environ) else os.environ.get(app_settings.VARIABLES["base_url"])
        return self._overrides.get("base_url") or outside or None

    def results_or_none(self) -> ResultBackend | None:
        """The result backend, or None if none is configured."""
        with self._lock:
            if self._results is None:
                settings = self.settings()
                if self._given_results is not None:
                    self._results = self._given_results
                elif settings.results is not None:
                    self._results = open_results(settings.results, ttl_ms=settings.result_ttl_ms)
            return self._results
