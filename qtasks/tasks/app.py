"""The application object `QTasks`: its tasks, and everything that they run with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Never, Unpack

from qtasks.clock import Clock
from qtasks.errors import DefinitionError
from qtasks.lazy import lazy_property
from qtasks.randomness import Random
from qtasks.tasks.celery import celery_names, celery_settings
from qtasks.tasks.codec import Codec, wire_form
from qtasks.tasks.definition import put
from qtasks.tasks.hooks import H
from qtasks.tasks.options import ApplyOptions
from qtasks.tasks.ports import ASGIApp, EmbeddedBroker
from qtasks.tasks.registry import Registry
from qtasks.tasks.results.backend import ResultBackend
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.runtime import ApplicationRuntime
from qtasks.tasks.send.batch import Batch
from qtasks.tasks.send.send_middleware import S
from qtasks.tasks.settings import EMBEDDED, Settings, SettingsOverrides
from qtasks.tasks.task import Task

if TYPE_CHECKING:
    from typing import Self

    from fastapi import APIRouter, FastAPI

    from qtasks.tasks.admin.dead_letters import DeadLetters
    from qtasks.tasks.admin.messages import Messages
    from qtasks.tasks.run.run_middleware import M
    from qtasks.tasks.run.thread_pool import ThreadPool
    from qtasks.tasks.schedules.declaration import ScheduleDeclaration
    from qtasks.tasks.schedules.sync import Schedules
    from qtasks.tasks.web.router import TaskRoutes

log = logging.getLogger("qtasks.app")

DEFAULT_PREFIX = "/qtasks"


class QTasks(Registry):
    """An application: its tasks, and the connection to the broker that stores and delivers their calls.

    Creating an application reads, opens and starts nothing: the first use does that, or the lifespan of the FastAPI
    application that includes `router`. The broker is the first of these that is configured: the embedded broker given
    as `embedded`; the service that `QSTASH_TOKEN` and `QSTASH_URL` name; a running `qtasks dev`, found through
    ``.qtasks/dev.json``; with `QSTASH_DEV`, a development server on port 8080.

    Args:
        embedded: A broker inside this process, such as ``Embedded("tasks.db")``.
        codec: How arguments and results become bytes, for tasks that do not say it; JSON by default.
        encrypt: Encrypt arguments and results of tasks that do not say it; False by default.
        accepts: What is read beside that; see `TaskOptions`.
        overrides: Settings that replace those of the environment; see `SettingsOverrides`.
    """

    def __init__(
        self,
        *celery: Never,
        embedded: EmbeddedBroker | None = None,
        codec: Codec | None = None,
        encrypt: bool = False,
        accepts: Sequence[Codec | Literal["json", "encrypted", "unencrypted"]] = (),
        **overrides: Unpack[SettingsOverrides],
    ) -> None:
        super().__init__()
        if (error := celery_settings.not_celery(celery, overrides)) is not None:
            raise error
        self.runtime = ApplicationRuntime(
            MappingProxyType(self._names),
            embedded=embedded,
            overrides=overrides,
            bare_app=lambda: self._web.without_lifespan(),
            form=wire_form("QTasks", codec=codec, encrypt=encrypt, accepts=accepts),
        )

    @property
    def settings(self) -> Settings:
        """The settings of the environment and of the arguments, read on first use. Raises ConfigurationError."""
        return self.runtime.settings()

    def get_runtime(self) -> ApplicationRuntime:
        """See `Registry.get_runtime`."""
        return self.runtime

    @property
    def schedules(self) -> Schedules:
        """The schedules that the tasks declare. ``tasks.schedules.sync()`` creates them at the service."""
        from qtasks.tasks.schedules.sync import Schedules

        return Schedules(self.runtime, MappingProxyType(self._names), self._declared_schedules)

    @property
    def messages(self) -> Messages:
        """The messages of the service, as the console shows them: ``tasks.messages.list("status:failed")``."""
        from qtasks.tasks.admin.messages import Messages

        return Messages(self.get_runtime())

    @property
    def dlq(self) -> DeadLetters:
        """The messages that failed for good: ``for letter in tasks.dlq.iterate(task="charge"): ...``."""
        from qtasks.tasks.admin.dead_letters import DeadLetters

        return DeadLetters(self.get_runtime())

    def embed(self, broker: EmbeddedBroker) -> None:
        """Use an embedded broker, as if it had been given to the constructor: ``tasks.embed(Embedded("tasks.db"))``.

        Raises ConfigurationError if there is an embedded broker already, or if the tasks were used before.
        """
        self.runtime.embed(broker)

    def batch(self) -> Batch:
        """Send the calls made inside the block together: ``with tasks.batch(): ...`` (or ``async with``)."""
        return Batch(self.runtime)

    def result(self, id: str) -> TaskResult[Any]:  # noqa: A002 - the name it has on a TaskResult
        """The handle on a call of any task, by its call id or its message id, also without the task's code.

        Its result has the type that the task declares if this application has the task; otherwise it is plain JSON.
        """
        if not isinstance(id, str):
            raise DefinitionError(f"{id!r} is not the id of a call", fix="the text that the id of its handle was")
        from qtasks.tasks.remote_task import UntypedResult

        return UntypedResult(self.runtime, self._names, id)

    def AsyncResult(self, id: str, **celery: Any) -> TaskResult[Any]:  # noqa: N802, A002 - Celery's words
        """Celery's name for `result`."""
        celery_names.refuse("AsyncResult", celery, 'tasks.AsyncResult("call_...")')
        return self.result(id)

    def send_task(
        self,
        name: str,
        /,
        args: Sequence[Any] | None = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        search: str | Sequence[str] | None = None,
        **options: Unpack[ApplyOptions],
    ) -> TaskResult[Any]:
        """Queue a call of a task by its name, without its code: ``tasks.send_task("mail.greet", args=("Ada",))``.

        If this application has the task, the call is checked as by `Task.apply_async`. If not, the arguments must be
        plain JSON values, and nothing tells a wrong name from one that only another application has: the broker tries
        again for as long as the call has retries, then the call fails with UnknownTask. `search` names arguments by
        which the call is found, those of `kwargs` only; a task of this application declares them itself.

        Raises as `Task.delay`, and
        DefinitionError for a text that cannot be the name of a task.
        """
        return self._named(name, search).apply_async(args, kwargs, **options)

    async def asend_task(
        self,
        name: str,
        /,
        args: Sequence[Any] | None = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        search: str | Sequence[str] | None = None,
        **options: Unpack[ApplyOptions],
    ) -> TaskResult[Any]:
        """As `send_task`, without blocking the event loop."""
        return await self._named(name, search).aapply_async(args, kwargs, **options)

    def _named(self, name: str, search: str | Sequence[str] | None) -> Task[..., Any]:
        from qtasks.tasks.remote_task import remote_task

        task = self._names.get(name)
        return remote_task(self.get_runtime, name, search) if task is None else task

    def on_success(self, hook: H) -> H:
        """Call `hook` after each call of any task that succeeded; see `Hooks`."""
        return self.runtime.hooks.on_success(hook)

    def on_retry(self, hook: H) -> H:
        """Call `hook` after each failed attempt of any task that will be retried; see `Hooks`."""
        return self.runtime.hooks.on_retry(hook)

    def on_failure(self, hook: H) -> H:
        """Call `hook` once for each call of any task that has failed for good; see `Hooks`."""
        return self.runtime.hooks.on_failure(hook)

    def send_middleware(self, middleware: S) -> S:
        """Add a generator function that runs around each call that is sent.

        ``def tenant(message): result = yield message.carrying({"tenant": current_tenant()})``. What a message carries
        is signed; the task finds it in `TaskContext.carried`.
        """
        put(self.runtime.send_middleware, middleware)
        return middleware

    def run_middleware(self, middleware: M) -> M:
        """Add a coroutine function around each run: ``async def timed(run, call_next): return await call_next(run)``.

        It runs outside the task's dependencies and inside its time limit. An exception that it raises counts as raised
        by the task.
        """
        put(self.runtime.run_middleware, middleware)
        return middleware

    @lazy_property
    def router(self) -> APIRouter:
        """The route ``POST /{task}``. Include it in a FastAPI application, before or after the tasks are declared.

        Its lifespan becomes a part of the application's. At the start it refuses to run without signing keys, starts an
        embedded broker on the application's event loop and creates the declared schedules in it; at the end it waits
        for running tasks.
        """
        return self._web.router

    def results_router(self, *, show_errors: bool = False, max_streams: int = 100) -> APIRouter:
        """State, progress and result of calls over HTTP: ``GET /{call_id}``; the changes: ``GET /{call_id}/events``.

        ``app.include_router(tasks.results_router(), prefix="/jobs", dependencies=[Depends(logged_in)])``. The prefix
        must differ from that of `router`. Everyone who knows the id of a call may read it; an id has 80 random bits.
        For stricter rules, use `call_id` in a dependency of your own. Without a result backend the application does not
        start.

        Args:
            show_errors: Include the type and message of the exceptions that tasks raise; they may contain internals.
            max_streams: Largest number of open event streams in a process; the request for one more is answered 503.
        """
        from qtasks.tasks.web.results_router import ResultsView, results_router

        view = ResultsView(
            lambda: self.runtime.aresults(),
            lambda: self.runtime.inquiries,
            show_errors=show_errors,
            max_streams=max_streams,
        )
        return results_router(view, lifespan=self._lifespan_of_results)

    def asgi_app(self, prefix: str = DEFAULT_PREFIX) -> FastAPI:
        """A FastAPI application that contains only these tasks, under `prefix`."""
        return self._web.app(prefix)

    @contextmanager
    def running_on(
        self,
        broker: EmbeddedBroker,
        *,
        results: ResultBackend,
        workers: ThreadPool,
        clock: Clock,
        random: Random,
    ) -> Iterator[None]:
        """For tests: run the tasks on another broker inside the block, with this clock, randomness and thread pool.

        What the application has opened is not used inside the block, and is used again after it.
        """
        own = self.runtime
        self.runtime = runtime = own.on_broker(
            broker, bare_app=self._web.alone, results=results, workers=workers, clock=clock, random=random
        )
        try:
            yield
        finally:
            self.runtime = own
            runtime.close()

    def close(self) -> None:
        """Close what was opened outside a lifespan: client, result backend, embedded broker. Idempotent."""
        self.runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<QTasks of {len(self._tasks)} tasks>"

    if not TYPE_CHECKING:

        @property
        def conf(self) -> celery_settings.CeleryNamespace:
            """Celery's settings: each says what to write instead."""
            return celery_settings.conf()

        @property
        def control(self) -> celery_settings.CeleryNamespace:
            """Celery's remote control: each method says what to write instead."""
            return celery_settings.control()

        def __getattr__(self, name: str) -> Any:
            return celery_names.attribute(self, name, celery_names.APPLICATION)

    @lazy_property
    def _web(self) -> TaskRoutes:
        # Imported here: a program that only sends calls does not need FastAPI.
        from qtasks.tasks.web.router import TaskRoutes

        return TaskRoutes(
            lambda: self.runtime.adispatcher(),
            owner=self,
            lifespan=self._lifespan,
            base_url=lambda: self.runtime.configured_base_url(),
        )

    @asynccontextmanager
    async def _lifespan(self, app: ASGIApp) -> AsyncIterator[None]:
        runtime = self.runtime  # a test may replace it before the end
        gateway = self._web.starting(app)
        await runtime.enter(gateway)
        try:
            if not runtime.is_idle:
                await asyncio.to_thread(self._start_schedules)
                self._compare_prefixes(app)
            # Not before the application has started: usually nothing waits between here and that moment.
            asyncio.get_running_loop().call_soon(gateway.open)
            yield
        finally:
            gateway.close()
            await runtime.leave(gateway)

    @asynccontextmanager
    async def lifespan_if_missing(self, app: ASGIApp) -> AsyncIterator[None]:
        """For a server around `app`: the lifespan of `router`, unless the application has entered it already."""
        if self.runtime.is_serving:
            yield
        else:
            async with self._lifespan(app):
                yield

    def _declared_schedules(self) -> list[ScheduleDeclaration]:
        return [declaration for task in self._tasks.values() for declaration in task.declared]

    def _start_schedules(self) -> None:
        """Refuse a declaration that cannot work; with an embedded broker, also sync and prune its schedules."""
        if self.runtime.is_embedded:
            self.schedules.sync(prune=True)
        else:
            self.schedules.check()

    @asynccontextmanager
    async def _lifespan_of_results(self, _app: ASGIApp) -> AsyncIterator[None]:
        await asyncio.to_thread(self.runtime.check_results)
        yield

    def _compare_prefixes(self, app: ASGIApp) -> None:
        """Log a warning if the base URL does not end with the prefix: an error unless a proxy changes paths."""
        prefix, base_url = self._web.prefix_of(app), self.settings.base_url or ""
        if self.settings.origin("base_url") != EMBEDDED and prefix and not base_url.endswith(prefix):
            log.warning(
                "tasks are served under %s, but QTASKS_BASE_URL is %s: deliveries may not arrive", prefix, base_url
            )


def served_by(app: object) -> QTasks | None:
    """The application object whose tasks `app` serves, or None if it does not serve any."""
    from qtasks.tasks.web.applications import owner_of

    owner = owner_of(app)
    return owner if isinstance(owner, QTasks) else None
