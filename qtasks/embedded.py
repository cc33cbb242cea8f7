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
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from qtasks.broker.server.event_loop import new_event_loop
from qtasks.broker.store.file_watch import FileId, file_at
from qtasks.embedded_transport import API, AsyncInProcessTransport, InProcessTransport
from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, StoreError
from qtasks.protocol.messages import SigningKeys
from qtasks.tasks import settings as app_settings
from qtasks.tasks.ports import Connection
from qtasks.threads import DaemonThreadPool

if TYPE_CHECKING:
    from qtasks.broker.broker import Broker
    from qtasks.broker.events import EventWatcher
    from qtasks.broker.llm.provider_fake import ProviderFake
    from qtasks.broker.transport.asgi_exchange import AsgiApp
    from qtasks.broker.transport.in_process import AsgiTransport

T = TypeVar("T")

log = logging.getLogger("qtasks.embedded")

OnFailure = Literal["stop", "reopen"] | Callable[[StoreError], object]
"""What an embedded broker does when its storage has failed; see `Embedded`."""

ORIGIN: Final = "http://qtasks.internal"
"""Origin of the URLs of the application; requests to it never leave the process."""
_MEMORY: Final = ":memory:"
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

    `on_failure` says what happens when the storage fails: a sync or a write failed, a page cannot be read, or a file of
    the database was removed or replaced. In every case the reason is logged once, with level CRITICAL, nothing more is
    accepted, and calls raise StoreError.

    - "stop" sends SIGTERM to this process, so that its server ends as after a fatal error and a supervisor starts it
      again. The default if the lifespan of an application has started the broker, except in tests.
    - "reopen": the next use opens the file again, after a check, and raises StoreError if that is not possible. Another
      file at its path is not opened. The default in a script.
    - a function: it is called with the StoreError, on a thread of its own. Calls raise this error until
      the tasks are closed; the next use opens the file again.
    """

    def __init__(
        self,
        path: str | Path = "tasks.db",
        *,
        drain_s: float = 10.0,
        watch: EventWatcher | None = None,
        llm: ProviderFake | None = None,
        on_failure: OnFailure | None = None,
    ) -> None:
        self.path = str(path)
        self.drain_s = drain_s
        self.watch = watch
        self.llm = llm
        self.on_failure = on_failure
        self._guard = threading.Lock()
        self._running: _RunningBroker | None = None
        self.failure: str | None = None
        """The reason why the storage failed; None if it has not since the last start."""

    def __repr__(self) -> str:
        return f"Embedded({self.path!r})"

    def start(self, app: AsgiApp, loop: asyncio.AbstractEventLoop | None) -> Connection:
        """Start the broker or, if it runs already, let the newly started `app` serve its deliveries.

        `app` runs on `loop` or, if that is None, on a loop of its own thread.
        """
        with self._guard:
            if self._running is None:
                self.failure = None
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
        """Start `work` on the loop. Raises RuntimeError after `stop`, and in a forked process, which has no threads."""
        try:
            if not self._thread.is_alive():
                raise RuntimeError(f"the thread {self._thread.name} has ended")
            return asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError:
            work.close()
            raise

    def stop(self) -> None:
        """Cancel all remaining tasks, then end the thread.

        After `_CANCEL_S`, a thread whose loop is blocked by a task is left to the end of the process.
        """
        if not self._thread.is_alive():
            return

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
    """A started broker with its threads and its transport. It is opened again if its storage fails, or as chosen."""

    def __init__(self, embedded: Embedded, app: AsgiApp, loop: asyncio.AbstractEventLoop | None) -> None:
        self._embedded = embedded
        self._path = embedded.path if embedded.path == _MEMORY else str(Path(embedded.path).absolute())
        self._reopening = asyncio.Lock()
        self._broker_thread = LoopThread("qtasks-broker")
        self._app_thread = LoopThread("qtasks-tasks") if loop is None else None
        app_loop = loop or (self._app_thread.loop if self._app_thread else None)
        assert app_loop is not None
        self._served = app, app_loop
        self._serves_application = loop is not None
        self._token: str | None = None
        self._opened: OpenedBroker
        try:
            self._broker_thread.call(self._open(), _START_S)
        except BaseException:
            self._stop_threads()
            raise
        if loop is not None:
            _probe(app, loop)

    def serve(self, app: AsgiApp, loop: asyncio.AbstractEventLoop) -> None:
        self._served = app, loop
        self._serves_application = True
        self._opened.transport.serve(app, loop)
        _probe(app, loop)

    def connection(self) -> Connection:
        transport = InProcessTransport(self._opened.broker, self._broker_thread.submit, usable=self._usable)
        results = "memory://" if self._path == _MEMORY else f"sqlite:///{self._path}-results"
        return Connection(
            url=API,
            token=self._opened.token,
            keys=self._opened.keys,
            base_url=f"{ORIGIN}/tasks",
            results=results,
            transport=transport,
            async_transport=AsyncInProcessTransport(transport),
            model_keys=self._embedded.llm is None or self._embedded.llm.needs_key,
        )

    def stop(self) -> None:
        with contextlib.suppress(
            TimeoutError, RuntimeError
        ):  # RuntimeError: in a forked process, where it does not run
            self._broker_thread.call(self._stop_broker(), self._embedded.drain_s + _START_S)
        self._stop_threads()

    def _stop_threads(self) -> None:
        self._broker_thread.stop()
        if self._app_thread is not None:
            self._app_thread.stop()

    # -- on the loop of the broker

    async def _open(self) -> None:
        self._opened = await _open(self._embedded, self._path, self._served, self._token)
        self._token = self._opened.token  # the client keeps it
        self._watching = asyncio.create_task(self._watch_store(self._opened.broker))

    async def _watch_store(self, broker: Broker) -> None:
        """Wait for a failure of the storage; do what was chosen, and close the file."""
        await broker.store.broken.wait()
        self._embedded.failure = failure = broker.store.failure or "the storage failed"
        on_failure = self._on_failure()
        # On a thread, and not awaited: the function of a user may close the tasks.
        self._acting = asyncio.create_task(asyncio.to_thread(_act, on_failure, failure))
        # What runs may end, so that its result is stored. A call that waits for the file cannot wait for that.
        await broker.stop(0.0 if on_failure == "reopen" else None)

    async def _stop_broker(self) -> None:
        if self._opened.broker.store.failure is None:
            await self._opened.broker.stop()
        else:
            await self._watching  # stops it

    def _on_failure(self) -> OnFailure:
        if self._embedded.on_failure is not None:
            return self._embedded.on_failure
        return "stop" if self._serves_application and not app_settings.in_test(os.environ) else "reopen"

    async def _usable(self) -> Broker:
        """The broker; if its storage has failed, one on the file opened again, or StoreError."""
        if (failure := self._opened.broker.store.failure) is not None:
            if self._on_failure() != "reopen":
                raise StoreError(failure)
            async with self._reopening:  # several calls may need it
                if self._opened.broker.store.failure is not None:
                    await self._watching
                    await self._reopen(failure)
        return self._opened.broker

    async def _reopen(self, failure: str) -> None:
        """Open the file again. Raises StoreError if that is not possible, or another file is at its path."""
        if file_at(self._path) != self._opened.file:
            raise StoreError(failure)
        await self._open()
        self._embedded.failure = None
        log.warning("%s was opened again after a failure of its storage", self._path)


@dataclass(frozen=True, slots=True)
class OpenedBroker:
    """A broker that has started, and what is needed to reach it."""

    broker: Broker
    transport: AsgiTransport
    token: str
    keys: SigningKeys
    file: FileId | None
    """The identity of the database; None in memory."""


def _probe(app: AsgiApp, loop: asyncio.AbstractEventLoop) -> None:
    """Ask the application whether deliveries reach its dispatcher. It logs an error if not; nothing waits for it."""
    # Imported here: a process with an application has FastAPI already, a script may not have it.
    from qtasks.tasks.web.gateway import Gateway

    if isinstance(app, Gateway):
        asyncio.run_coroutine_threadsafe(app.probe(), loop)


def _act(on_failure: OnFailure, failure: str) -> None:
    """Report a failure of the storage, and do what was chosen."""
    if on_failure == "reopen":
        log.critical("%s. The next use of the tasks opens the file again", failure)
        return
    if on_failure != "stop":
        log.critical("%s", failure)
        try:
            on_failure(StoreError(failure))
        except Exception:
            log.exception("the function given as on_failure raised an exception")
        return
    log.critical("%s. This process ends now", failure)
    if sys.platform == "win32":  # pragma: no cover - there, `os.kill` would end it at once
        signal.raise_signal(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


async def _open(
    embedded: Embedded, path: str, served: tuple[AsgiApp, asyncio.AbstractEventLoop], token: str | None
) -> OpenedBroker:
    """Open and start the broker. `token` is that of its client; None: a new one."""
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
    token = token or ids.token_secret(random)
    settings = BrokerSettings(
        path=path,
        credentials=(AccountCredentials(_ACCOUNT, token),),
        llm_echo=True,
        drain_s=embedded.drain_s,
    ).with_model(os.environ.get(LLM_VARIABLE))
    if embedded.llm is not None and settings.llm_url is None:
        settings = settings.with_model(provider_fake.ORIGIN)
    network = HttpTransport(DestinationPolicy("local"))
    network_or_fake = network if embedded.llm is None else provider_fake.ProviderFakeTransport(embedded.llm, network)
    transport = AsgiTransport(ORIGIN, *served, network_or_fake)
    broker = await Broker.open(settings, transport=transport, random=random)
    if embedded.watch is not None:
        broker.watchers.add(embedded.watch)
    broker.start()
    keys = await broker.keys.of(broker.accounts[_ACCOUNT])
    return OpenedBroker(broker, transport, token, keys, None if path == _MEMORY else file_at(path))
