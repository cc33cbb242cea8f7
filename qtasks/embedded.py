"""The embedded broker: the whole broker inside the process, for development, tests and one small machine.

    tasks = QTasks(embedded=Embedded("tasks.db"))

The broker runs on a thread with its own event loop, so `.delay()` does not need an event loop of the caller. A
publish uses the same API as over a socket, and a delivery is the same signed request as over a socket; only the
socket itself is left out.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from qtasks.broker.server.event_loop import new_event_loop
from qtasks.error_codes import ErrorCode
from qtasks.errors import BrokerUnreachable, ConfigurationError
from qtasks.protocol.messages import SigningKeys
from qtasks.qstash.conversation.transport import Reply, Request
from qtasks.tasks.ports import Connection
from qtasks.threads import DaemonThreadPool

if TYPE_CHECKING:
    from qtasks.broker.broker import Broker
    from qtasks.broker.events import EventWatcher
    from qtasks.broker.llm.provider_fake import ProviderFake
    from qtasks.broker.transport.in_process import AsgiApp, AsgiTransport

T = TypeVar("T")

log = logging.getLogger("qtasks.embedded")

ORIGIN: Final = "http://qtasks.internal"
"""Origin of the URLs of the application; requests to it never leave the process."""
API: Final = "http://broker.qtasks.internal"
_ACCOUNT: Final = "embedded"
_START_S: Final = 30.0
_CANCEL_S: Final = 2.0
"""How long tasks may take to end after they were cancelled."""
_THREADS: Final = 32
"""Threads in which an event loop runs what would block it."""


class Embedded:
    """A broker in this process that stores its messages in the file `path`, or in memory only (``:memory:``).

    It starts on first use or with the application's lifespan, never on import. At a stop, or at the end of the process,
    it waits up to `drain_s` seconds for running tasks; those that have not finished run again at the next start, and
    their attempts do not count. `watch` is called after each
    committed step of each message. `llm` answers in place of all language models; see `qtasks.testing.llm`. If the
    application's lifespan starts it, it syncs the schedules that the code declares; otherwise call
    `tasks.schedules.sync()`.

    A second process that opens the same file gets StoreLocked, which names the first process.
    """

    def __init__(
        self,
        path: str | Path = "tasks.db",
        *,
        drain_s: float = 10.0,
        watch: EventWatcher | None = None,
        llm: ProviderFake | None = None,
    ) -> None:
        self.path = str(path)
        self.drain_s = drain_s
        self.watch = watch
        self.llm = llm
        self._guard = threading.Lock()
        self._running: _RunningBroker | None = None

    def __repr__(self) -> str:
        return f"Embedded({self.path!r})"

    def start(self, app: AsgiApp, loop: asyncio.AbstractEventLoop | None) -> Connection:
        """Start the broker or, if it runs already, let the newly started `app` serve its deliveries.

        `app` runs on `loop` or, if that is None, on a loop of its own thread.
        """
        with self._guard:
            if self._running is None:
                self._running = _RunningBroker(self, app, loop)
                atexit.register(self._stop_at_exit)
            elif loop is not None:
                self._running.serve(app, loop)
            return self._running.connection()

    def stop(self) -> None:
        """Drain and stop the broker. Idempotent; the next use starts it again."""
        with self._guard:
            running, self._running = self._running, None
        if running is not None:
            atexit.unregister(self._stop_at_exit)
            running.stop()

    def _stop_at_exit(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # a user who does not want to wait need not see where it waited
            self.stop()


class LoopThread:
    """An event loop on a daemon thread."""

    def __init__(self, name: str) -> None:
        self.loop = new_event_loop()
        self.loop.set_default_executor(DaemonThreadPool(_THREADS, f"{name}-threads"))
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """Run the loop until it is stopped. asyncio also ends it when one of these two leaves an asyncio task."""
        while True:
            try:
                self.loop.run_forever()
            except (KeyboardInterrupt, SystemExit):
                log.exception("the event loop of %s goes on after an exception", self._thread.name)
            else:
                return

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run `work` on the loop and wait for it."""
        return self.submit(work).result(timeout_s)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work` on the loop. Raises RuntimeError after `stop`."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError:
            work.close()
            raise

    def stop(self) -> None:
        """Cancel all remaining tasks, then end the thread.

        After `_CANCEL_S`, a thread whose loop is blocked by a task is left to the end of the process.
        """

        async def finish() -> None:
            if remaining := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in remaining:
                    task.cancel()
                await asyncio.wait(remaining, timeout=_CANCEL_S / 2)
            await asyncio.get_running_loop().shutdown_asyncgens()

        try:
            self.call(finish(), _CANCEL_S)
        except TimeoutError:
            log.warning("the thread %s still runs a task, which blocks its event loop", self._thread.name)
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class _RunningBroker:
    """A started broker with its threads and its transport."""

    def __init__(self, embedded: Embedded, app: AsgiApp, loop: asyncio.AbstractEventLoop | None) -> None:
        self._broker_thread = LoopThread("qtasks-broker")
        self._app_thread = LoopThread("qtasks-tasks") if loop is None else None
        app_loop = loop or (self._app_thread.loop if self._app_thread else None)
        assert app_loop is not None
        self._path = embedded.path
        self._model_keys = embedded.llm is None or embedded.llm.needs_key
        try:
            self._broker, self._transport, self._token, self._keys = self._broker_thread.call(
                _open(embedded, app, app_loop), _START_S
            )
        except BaseException:
            self._stop_threads()
            raise

    def serve(self, app: AsgiApp, loop: asyncio.AbstractEventLoop) -> None:
        self._transport.serve(app, loop)

    def connection(self) -> Connection:
        transport = InProcessTransport(self._broker, self._broker_thread)
        results = "memory://" if self.path_is_memory else f"sqlite:///{Path(self._path).absolute()}-results"
        return Connection(
            url=API,
            token=self._token,
            keys=self._keys,
            base_url=f"{ORIGIN}/tasks",
            results=results,
            transport=transport,
            async_transport=AsyncInProcessTransport(transport),
            model_keys=self._model_keys,
        )

    @property
    def path_is_memory(self) -> bool:
        return self._path == ":memory:"

    def stop(self) -> None:
        with contextlib.suppress(TimeoutError):
            self._broker_thread.call(self._broker.stop(), self._broker.settings.drain_s + _START_S)
        self._stop_threads()

    def _stop_threads(self) -> None:
        self._broker_thread.stop()
        if self._app_thread is not None:
            self._app_thread.stop()


async def _open(
    embedded: Embedded, app: AsgiApp, loop: asyncio.AbstractEventLoop
) -> tuple[Broker, AsgiTransport, str, SigningKeys]:
    try:
        from qtasks.broker import ids
        from qtasks.broker.broker import Broker
        from qtasks.broker.core.values import AccountCredentials
        from qtasks.broker.llm import provider_fake
        from qtasks.broker.settings import LLM_VARIABLE, BrokerSettings
        from qtasks.broker.transport.destination_policy import DestinationPolicy
        from qtasks.broker.transport.http_transport import HttpTransport
        from qtasks.broker.transport.in_process import AsgiTransport
        from qtasks.randomness import SystemRandom
    except ImportError as error:
        raise ConfigurationError(
            f"the embedded broker needs {error.name}, which is not installed",
            fix='pip install "qstash-tasks[broker]"',
            code=ErrorCode.PACKAGE_MISSING,
        ) from error
    random = SystemRandom()
    token = ids.token_secret(random)
    settings = BrokerSettings(
        path=embedded.path,
        credentials=(AccountCredentials(_ACCOUNT, token),),
        llm_echo=True,
        drain_s=embedded.drain_s,
    ).with_model(os.environ.get(LLM_VARIABLE))
    if embedded.llm is not None and settings.llm_url is None:
        settings = settings.with_model(provider_fake.ORIGIN)
    network = HttpTransport(DestinationPolicy("local"))
    network_or_fake = network if embedded.llm is None else provider_fake.ProviderFakeTransport(embedded.llm, network)
    transport = AsgiTransport(ORIGIN, app, loop, network_or_fake)
    broker = await Broker.open(settings, transport=transport, random=random)
    if embedded.watch is not None:
        broker.watchers.add(embedded.watch)
    broker.start()
    return broker, transport, token, await broker.keys.of(broker.accounts[_ACCOUNT])


def _unanswered(timeout_s: float) -> BrokerUnreachable:
    return BrokerUnreachable(f"the embedded broker did not answer within {timeout_s:g} s")


class InProcessTransport:
    """A client transport that calls the API of the embedded broker directly."""

    def __init__(self, broker: Broker, thread: LoopThread) -> None:
        self._broker = broker
        self._thread = thread

    def submit(self, request: Request) -> Future[Reply]:
        """Start the request on the loop of the broker."""
        try:
            return self._thread.submit(self.handle(request))
        except RuntimeError:
            raise BrokerUnreachable("the embedded broker has stopped") from None

    async def handle(self, request: Request) -> Reply:
        """Return the response of the broker. Runs on the loop of the broker."""
        from qtasks.broker.api.api_request import ApiRequest, HttpError

        async def body(limit: int) -> bytes:
            if len(request.body) > limit:
                raise HttpError(413, f"message too large: {len(request.body)} > {limit}")
            return request.body

        path, _, query = request.url.removeprefix(API).partition("?")
        api_request = ApiRequest(request.method, path, query, request.headers, "127.0.0.1", body)
        reply = await (await self._broker.api.handle(api_request)).whole()
        return Reply(reply.status, reply.headers, reply.body)

    def send(self, request: Request, timeout_s: float) -> Reply:
        """See `SyncTransport.send`."""
        try:
            return self.submit(request).result(timeout_s)
        except TimeoutError:
            raise _unanswered(timeout_s) from None

    def close(self) -> None:
        """Does nothing: `Embedded` owns the broker."""


class AsyncInProcessTransport:
    """As `InProcessTransport`, but does not block the event loop of the caller."""

    def __init__(self, transport: InProcessTransport) -> None:
        self._transport = transport

    async def send(self, request: Request, timeout_s: float) -> Reply:
        """See `AsyncTransport.send`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(self._transport.submit(request))
        except TimeoutError:
            raise _unanswered(timeout_s) from None

    async def close(self) -> None:
        """Does nothing: `Embedded` owns the broker."""
