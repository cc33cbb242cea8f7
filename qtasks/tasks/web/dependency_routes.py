"""Runs tasks with `Depends`: an `APIRoute` for each of them, through the public interface of FastAPI only."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.ports import Scope
from qtasks.tasks.run.dispatcher import Dispatcher
from qtasks.tasks.run.run import Run

_CALL_KEY = "qtasks.call"


class _DependentRun:
    """One run inside an `APIRoute`: its input, and its result or its error."""

    __slots__ = ("dispatcher", "error", "run", "value")

    def __init__(self, dispatcher: Dispatcher, run: Run) -> None:
        self.dispatcher = dispatcher
        self.run = run
        self.value: Any = None
        self.error: BaseException | None = None


class DependencyRoutes:
    """An `APIRoute` for each task with dependencies, for each application that serves it."""

    def __init__(self) -> None:
        self._by_app: weakref.WeakKeyDictionary[Any, dict[str, tuple[BaseTask[..., Any], APIRoute]]] = (
            weakref.WeakKeyDictionary()
        )

    async def call(self, dispatcher: Dispatcher, run: Run, scope: Scope, body: bytes) -> Any:
        """Open the dependencies of a run, run it, close them. Raises what any of the three raised."""
        call = _DependentRun(dispatcher, run)
        answers: list[Mapping[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            answers.append(message)

        route = self._route(run.task, scope["app"])
        try:
            await route.app({**scope, _CALL_KEY: call}, receive, send)
        except Exception:
            if call.error is None:
                raise
        # An exception handler of the application may have turned the exception into a response.
        if call.error is not None:
            raise call.error
        return call.value

    def _route(self, task: BaseTask[..., Any], app: Any) -> APIRoute:
        routes = self._by_app.setdefault(app, {})
        of_task, route = routes.get(task.name, (None, None))
        if route is None or of_task is not task:  # a task may be defined once more
            route = APIRoute(
                "/{task}",
                _endpoint(task),
                methods=["POST"],
                response_model=None,
                dependencies=[Depends(_record_error)],
                dependency_overrides_provider=weakref.proxy(app),  # the value must not keep its own key alive
                include_in_schema=False,
            )
            routes[task.name] = task, route
        return route


async def _record_error(request: Request) -> AsyncIterator[None]:
    """The first dependency of each task: opened first and closed last, so it sees every error in between."""
    try:
        yield
    except BaseException as error:
        request.scope[_CALL_KEY].error = error
        raise


def _endpoint(task: BaseTask[..., Any]) -> Callable[..., Awaitable[Response]]:
    """A path operation whose only parameters are the task's dependencies."""
    name = "request"
    while name in {parameter.name for parameter in task.parameters.dependencies}:
        name += "_"

    async def endpoint(**dependencies: Any) -> Response:
        call: _DependentRun = dependencies.pop(name).scope[_CALL_KEY]
        call.value = await call.dispatcher.run(call.run, dependencies)
        return Response()

    request = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in task.parameters.dependencies]
    endpoint.__signature__ = inspect.Signature([request, *parameters])  # type: ignore[attr-defined]
    endpoint.__name__ = task.name
    return endpoint
