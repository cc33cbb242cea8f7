"""Finds the application under test: an object, a name, or the result of a search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qtasks.cli.loader import AppError, load, locate
from qtasks.errors import ConfigurationError
from qtasks.tasks.app import DEFAULT_PREFIX, QTasks, served_by
from qtasks.tasks.web.applications import endpoint_of, prefix_of
from qtasks.tasks.web.gateway import Gateway

if TYPE_CHECKING:
    from fastapi import FastAPI

ORIGIN = "http://testserver"
"""The origin of Starlette's test client, which host checks of applications usually accept."""

_FIX = (
    '[tool.qtasks] app = "package.module:object" in pyproject.toml, `qtasks_app` in pytest\'s settings, '
    "or a fixture `qtasks_app` that returns the application"
)


@dataclass(frozen=True, slots=True)
class AppUnderTest:
    """The tasks and the application that serves them; with None, the tasks are served alone."""

    tasks: QTasks
    app: FastAPI | None
    prefix: str

    @property
    def base_url(self) -> str:
        """The base URL of the dispatcher, prefix included. No socket listens there."""
        return f"{ORIGIN}{self.prefix}"

    def gateway(self) -> Gateway | None:
        """The application as deliveries reach it; None if the tasks are served alone."""
        if self.app is None:
            return None
        reports = endpoint_of(self.app)
        return Gateway(self.app, self.prefix, reports=reports, base_url=self.tasks.runtime.configured_base_url())


def find(target: str | None, folder: Path) -> FastAPI | QTasks:
    """The application that `target` names (a file, a module, or ``module:object``); None searches as `qtasks dev` does.

    If the search fails: the tasks that were declared with ``from qtasks import task``. Raises AppError.
    """
    try:
        place = locate(target, folder)
    except AppError as error:
        from qtasks.tasks.default import default_app

        if target is None and default_app.tasks:
            return default_app
        raise AppError(error.message, details=error.details, fix=_FIX, code=error.code) from None
    try:
        app: FastAPI = load(place).app  # type: ignore[assignment]  # the loader returns FastAPI applications here
    except AppError as error:
        raise AppError(error.message, details=error.details, fix=error.fix or _FIX, code=error.code) from None
    return app


def of(app: FastAPI | QTasks | str | None, folder: Path) -> AppUnderTest:
    """The application under test: `app`, the named one, or for None the one found. Raises ConfigurationError."""
    chosen = find(app, folder) if app is None or isinstance(app, str) else app
    if isinstance(chosen, QTasks):
        return AppUnderTest(chosen, None, DEFAULT_PREFIX)
    prefix = prefix_of(chosen)
    tasks = None if prefix is None else served_by(chosen)
    if prefix is None or tasks is None:
        raise ConfigurationError(
            f"{chosen!r} serves no tasks",
            fix='app.include_router(tasks.router, prefix="/qtasks")',
        )
    return AppUnderTest(tasks, chosen, prefix)
