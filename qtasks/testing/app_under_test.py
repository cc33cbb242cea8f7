"""Finds the application under test: an object, a name, or the result of a search."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtasks.cli.loader import AppError, load, locate
from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError
from qtasks.tasks.app import DEFAULT_PREFIX, QTasks, served_by
from qtasks.tasks.web.applications import endpoint_of, prefix_of, serving
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

    If the search fails: the one application with tasks that the tests have imported. Raises AppError.
    """
    try:
        place = locate(target, folder)
    except AppError as error:
        if target is None and (imported := _imported()) is not None:
            return imported
        raise AppError(error.message, details=error.details, fix=_FIX, code=error.code) from None
    try:
        app: FastAPI = load(place).app  # type: ignore[assignment]  # the loader returns FastAPI applications here
    except AppError as error:
        # A file with the usual name need not be the one with the tasks.
        is_guess = target is None and place.source.startswith("found ") and error.code == ErrorCode.APPLICATION_UNUSABLE
        if is_guess and (imported := _imported()) is not None:
            return imported
        raise AppError(error.message, details=error.details, fix=error.fix or _FIX, code=error.code) from None
    return app


def _imported() -> FastAPI | QTasks | None:
    """The one FastAPI application with tasks in this process, or the one `QTasks` with tasks that no other serves.

    None without one. Raises AppError if there are several.
    """
    gc.collect()  # what earlier tests have left is not meant
    served = serving()
    alone = [tasks for tasks in _alive() if tasks.tasks and all(served_by(app) is not tasks for app in served)]
    candidates: list[Any] = served or alone
    if len(candidates) > 1:
        raise AppError(
            f"no application is named, and {len(candidates)} with tasks are in this process",
            details={"found": [_described(each) for each in candidates]},
            fix=_FIX,
            code=ErrorCode.APPLICATION_NOT_FOUND,
        )
    return candidates[0] if candidates else None


def _alive() -> list[QTasks]:
    return [each for each in gc.get_objects() if issubclass(type(each), QTasks)]


def _described(app: FastAPI | QTasks) -> str:
    """Where an object is, ``module.name``; its repr for one that no module names."""
    for name, module in list(sys.modules.items()):
        for attribute, value in list(vars(module).items()):
            if value is app:
                return f"{name}:{attribute}"
    return repr(app)


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
