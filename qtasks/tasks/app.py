"""The application object: the registry of tasks, and the face of everything behind it."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Unpack

from qtasks.clock import Clock
from qtasks.randomness import Random
from qtasks.tasks.hooks import H
from qtasks.tasks.ports import ASGIApp, Home
from qtasks.tasks.registry import Registry
from qtasks.tasks.results.backend import ResultBackend
from qtasks.tasks.run.run_middleware import M
from qtasks.tasks.run.thread_pool import ThreadPool
from qtasks.tasks.runtime import ApplicationRuntime
from qtasks.tasks.send.batch import Batch
from qtasks.tasks.send.send_middleware import S
from qtasks.tasks.settings import EMBEDDED, Settings, SettingsOverrides

if TYPE_CHECKING:
    from typing import Self

    from fastapi import APIRouter, FastAPI

    from qtasks.tasks.schedules.declaration import ScheduleDeclaration
    from qtasks.tasks.schedules.sync import Schedules
    from qtasks.tasks.web.router import Endpoint

log = logging.getLogger("qtasks.app")

DEFAULT_PREFIX = "/qtasks"


class QTasks(Registry):
    """Tasks, and the engine they run on.

    Nothing is read, opened or started here: that happens on first use, or with the lifespan of the application that
    includes `router`. Which engine is chosen: the home given as `embedded`; else the service of `QSTASH_TOKEN` (and
    `QSTASH_URL`); else a running `qtasks dev` found through `.qtasks/dev.json`; else, with `QSTASH_DEV`, a development
    server on port 8080.

    Args:
        embedded: A home inside this process, such as ``Embedded("tasks.db")``.
        overrides: Settings in place of the environment's; see `SettingsOverrides`.
    """

    def __init__(self, *, embedded: Home | None = None, **overrides: Unpack[SettingsOverrides]) -> None:
        super().__init__()
        self.runtime = ApplicationRuntime(
            MappingProxyType(self._names),
            home=embedded,
            overrides=overrides,
            bare_app=lambda: self._reached(self._lifeless_app),
        )

    @property
    def settings(self) -> Settings:
        """What the environment and the arguments came to; read on first use. Raises ConfigurationError."""
        return self.runtime.settings()

    def bound(self) -> ApplicationRuntime:
        """See `Registry.bound`."""
        return self.runtime

    @property
    def schedules(self) -> Schedules:
        """The schedules that the tasks declare: ``tasks.schedules.sync()`` makes them active; see `Schedules`."""
        from qtasks.tasks.schedules.sync import Schedules

        return Schedules(self.runtime, MappingProxyType(self._names), self._declared_schedules)

    def embed(self, home: Home) -> None:
        """Have the tasks run in `home`, as if it had been given at the start: ``tasks.embed(Embedded("tasks.db"))``.

        Raises ConfigurationError where they have one already, or were used before.
        """
        self.runtime.embed(home)

    def batch(self) -> Batch:
        """Send the calls made inside together: ``with tasks.batch(): ...`` (or ``async with``)."""
        return Batch(self.runtime)

    def on_success(self, hook: H) -> H:
        """Have `hook` told of every result of every task; see `Hooks`."""
        return self.runtime.hooks.on_success(hook)

    def on_retry(self, hook: H) -> H:
        """Have `hook` told of every failed attempt that another one follows; see `Hooks`."""
        return self.runtime.hooks.on_retry(hook)

    def on_failure(self, hook: H) -> H:
        """Have `hook` told once of every call that has failed for good; see `Hooks`."""
        return self.runtime.hooks.on_failure(hook)

    def send_middleware(self, middleware: S) -> S:
        """Put a generator around every call where it is sent.

        ``def tenant(message): result = yield message.carrying({"tenant": current_tenant()})``. What is carried is
        signed, and is found in `TaskContext.carried`.
        """
        self.runtime.send_middleware.append(middleware)
        return middleware

    def run_middleware(self, middleware: M) -> M:
        """Put a coroutine function around every run: ``async def timed(run, call_next): return await call_next(run)``.

        It stands outside of the task's dependencies and inside its time limit; what it raises, the task has raised.
        """
        self.runtime.run_middleware.append(middleware)
        return middleware

    @functools.cached_property
    def router(self) -> APIRouter:
        """``POST /{task}`` for every task, to be included in a FastAPI application before or after they are declared.

        Its lifespan joins the application's: a start without signing keys is refused, an embedded home is started with
        the application's loop and gets the schedules that are declared, and at the end running tasks are waited for.
        """
        from qtasks.tasks.web import router

        return router.router(self._endpoint, lifespan=self._lifespan)

    def results_router(self, *, show_errors: bool = False, max_streams: int = 100) -> APIRouter:
        """State, progress and result of any call, for pages: ``GET /{call_id}``, and as they change ``.../events``.

        ``app.include_router(tasks.results_router(), prefix="/jobs", dependencies=[Depends(logged_in)])``. The prefix
        must not be that of `router`. A call's id is 128 random bits, and whoever knows it may ask; an application that
        wants more asks for `call_id` in a dependency of its own. With a place for results missing, it does not start.

        Args:
            show_errors: Give the type and the message of what a task raised, too: they may tell of the inside.
            max_streams: How many streams of events may be open in a process; one more is answered 503.
        """
        from qtasks.tasks.web import results_router

        windows = results_router.Windows(
            lambda: self.runtime.aresults(), show_errors=show_errors, max_streams=max_streams
        )
        return results_router.results_router(windows, lifespan=self._lifespan_of_results)

    def asgi_app(self, prefix: str = DEFAULT_PREFIX) -> FastAPI:
        """A FastAPI application of nothing but these tasks, under `prefix`."""
        from qtasks.tasks.web import router

        return router.bare_app(self.router, prefix)

    @contextmanager
    def housed(
        self,
        home: Home,
        *,
        results: ResultBackend,
        workers: ThreadPool,
        clock: Clock,
        random: Random,
    ) -> Iterator[None]:
        """Have the tasks run in `home` for a while, by this clock and this randomness, `def`s in `workers`.

        For tests. Whatever the application has opened rests meanwhile, and is the application's again afterwards.
        """
        own = self.runtime
        self.runtime = runtime = own.elsewhere(home, results=results, workers=workers, clock=clock, random=random)
        try:
            yield
        finally:
            self.runtime = own
            runtime.close()

    def close(self) -> None:
        """Close what was opened outside an application's lifespan: client, results, embedded home. Idempotent."""
        self.runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<QTasks of {len(self._tasks)} tasks>"

    @functools.cached_property
    def _endpoint(self) -> Endpoint:
        from qtasks.tasks.web import router

        return router.Endpoint(self)

    @functools.cached_property
    def _lifeless_app(self) -> FastAPI:
        """For a home that runs outside an application: nothing there has to be started or refused."""
        from qtasks.tasks.web import router

        return router.bare_app(router.router(self._endpoint), DEFAULT_PREFIX)

    def _reached(self, app: ASGIApp) -> ASGIApp:
        """`app` as a home sees it, wherever in it the tasks are."""
        from qtasks.tasks.web import router

        prefix = router.prefix_of(app)
        return app if prefix is None else router.Gateway(app, prefix)

    @asynccontextmanager
    async def _lifespan(self, app: ASGIApp) -> AsyncIterator[None]:
        runtime = self.runtime  # a test may put another in its place before the end
        await runtime.enter(self._reached(app))
        try:
            if not runtime.is_idle:
                await asyncio.to_thread(self._begin_schedules)
                self._compare_prefixes(app)
            yield
        finally:
            await runtime.leave()

    def _declared_schedules(self) -> list[ScheduleDeclaration]:
        return [declaration for task in self._tasks.values() for declaration in task.declared]

    def _begin_schedules(self) -> None:
        """Refuse a declaration that cannot work; a home of our own is told what is declared now, and what is not."""
        if self.runtime.is_embedded:
            self.schedules.sync(prune=True)
        else:
            self.schedules.check()

    @asynccontextmanager
    async def _lifespan_of_results(self, _app: ASGIApp) -> AsyncIterator[None]:
        await asyncio.to_thread(self.runtime.check_results)
        yield

    def _compare_prefixes(self, app: ASGIApp) -> None:
        """Warn of a base URL under which the application cannot be reached, unless a proxy changes paths."""
        from qtasks.tasks.web import router

        prefix, base_url = router.prefix_of(app), self.settings.base_url or ""
        if self.settings.origin("base_url") != EMBEDDED and prefix and not base_url.endswith(prefix):
            log.warning(
                "tasks are served under %s, but QTASKS_BASE_URL is %s: deliveries may not arrive", prefix, base_url
            )
