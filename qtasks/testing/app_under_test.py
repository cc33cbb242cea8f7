"""The application under test: given, named, or found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qtasks.cli.loader import AppError, load, locate
from qtasks.errors import ConfigurationError
from qtasks.tasks.app import DEFAULT_PREFIX, QTasks
from qtasks.tasks.web.router import prefix_of, served_by

if TYPE_CHECKING:
    from fastapi import FastAPI

ORIGIN = "http://testserver"
"""Where Starlette's test client has its applications, so that host checks know it already."""

_FIX = (
    '[tool.qtasks] app = "package.module:object" in pyproject.toml, `qtasks_app` in pytest\'s settings, '
    "or a fixture `qtasks_app` that returns the application"
)


@dataclass(frozen=True, slots=True)
class Application:
    """Tasks, and the application that serves them; without one the tasks are served alone."""

    tasks: QTasks
    app: FastAPI | None
    prefix: str

    @property
    def base_url(self) -> str:
        """Where the tasks are reached, so to speak."""
        return f"{ORIGIN}{self.prefix}"


def find(target: str | None, folder: Path) -> FastAPI | QTasks:
    """What `target` names (a file, a module, or ``module:object``), else what is found as `qtasks dev` finds it.

    Where there is nothing to be found, the tasks that were declared with ``from qtasks import task``. Raises AppError.
    """
    try:
        place = locate(target, folder)
    except AppError as error:
        from qtasks.tasks.default import default_app

        if target is None and default_app.tasks:
            return default_app
        raise AppError(error.message, details=error.details, fix=_FIX, code=error.code) from None
    try:
        app: FastAPI = load(place).app  # type: ignore[assignment]  # it was made or found as one
    except AppError as error:
        raise AppError(error.message, details=error.details, fix=error.fix or _FIX, code=error.code) from None
    return app


def of(given: FastAPI | QTasks | str | None, folder: Path) -> Application:
    """The application that `given` is, names, or leaves to be found. Raises ConfigurationError."""
    found = find(given, folder) if given is None or isinstance(given, str) else given
    if isinstance(found, QTasks):
        return Application(found, None, DEFAULT_PREFIX)
    prefix = prefix_of(found)
    tasks = None if prefix is None else served_by(found)
    if prefix is None or tasks is None:
        raise ConfigurationError(
            f"{found!r} serves no tasks",
            fix='app.include_router(tasks.router, prefix="/qtasks")',
        )
    return Application(tasks, found, prefix)
