"""Find and import the application that a command names: a file, a module, ``module:object``, or nothing."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import click

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, QTasksError, did_you_mean
from qtasks.tasks.dev_server import DevServer, find_dev_server
from qtasks.tasks.settings import VARIABLES

if TYPE_CHECKING:
    from qtasks.tasks.app import QTasks
    from qtasks.tasks.ports import ASGIApp

RUNNING: Final = "that of the running qtasks dev"
MAX_REASON: Final = 300
"""Characters of the error text of an import that are shown."""
CANDIDATES: Final = ("tasks.py", "app.py", "main.py", "app/main.py", "app/tasks.py")


class AppError(ConfigurationError):
    """The application cannot be found or imported."""

    code = ErrorCode.APPLICATION_NOT_FOUND


class NoAppError(AppError):
    """No application was named, and none is in the folder."""


@dataclass(frozen=True, slots=True)
class AppLocation:
    """The place of an application: the folder to import from, the module, and the object in it (None: find one)."""

    folder: Path
    module: str
    attribute: str | None
    source: str
    """Where the name comes from, for the first line of output."""

    def __str__(self) -> str:
        return self.module if self.attribute is None else f"{self.module}:{self.attribute}"


@dataclass(frozen=True, slots=True)
class LoadedApp:
    """An imported application."""

    target: str
    tasks: QTasks
    app: ASGIApp
    prefix: str
    """The path below which `app` serves the tasks, such as ``/qtasks``."""


def locate(argument: str | None, folder: Path) -> AppLocation:
    """Decide what to import, without importing it. Raises AppError that lists where it looked."""
    if argument is not None:
        return _from_argument(argument, folder)
    if (configured := _configured(folder)) is not None:
        target = _from_argument(configured, folder)
        return AppLocation(target.folder, target.module, target.attribute, "named in pyproject.toml")
    for candidate in [*CANDIDATES, *(str(path.relative_to(folder)) for path in sorted(folder.glob("src/*/tasks.py")))]:
        if (folder / candidate).is_file():
            target = _from_argument(candidate, folder)
            return AppLocation(target.folder, target.module, None, f"found {candidate}")
    raise NoAppError(
        f"no application found in {folder}",
        details={"looked for": ", ".join(["[tool.qtasks] app in pyproject.toml", *CANDIDATES, "src/*/tasks.py"])},
        fix="name it: qtasks dev tasks.py, qtasks dev package.module, or qtasks dev module:object",
    )


def locate_running(argument: str | None, folder: Path) -> AppLocation:
    """As `locate`; without an argument, the application that a `qtasks dev` of this folder, or of one above, serves.

    For commands that ask the service: without `QSTASH_TOKEN` that is the broker of that `qtasks dev`.
    """
    running = None if argument is not None else running_application(folder)
    return locate(argument, folder) if running is None else running


def running_application(folder: Path) -> AppLocation | None:
    """The application that the `qtasks dev` serves with which `QTasks()` speaks here; None if there is none."""
    if os.environ.get(VARIABLES["token"]):
        return None
    server = find_dev_server(os.environ.get(VARIABLES["url"]) or None, start=folder)
    if not isinstance(server, DevServer) or server.application is None:
        return None
    folder_of, module, attribute = server.application
    return AppLocation(Path(folder_of), module, attribute, RUNNING)


def say_which(target: AppLocation) -> None:
    """Say on standard error which application a command reads, and why that one."""
    click.echo(f"application {target} in {target.folder} ({target.source})", err=True)


def _configured(folder: Path) -> str | None:
    try:
        document = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise AppError(f"pyproject.toml cannot be read: {error}") from None
    match document:
        case {"tool": {"qtasks": {"app": str(app)}}}:
            return app
        case {"tool": {"qtasks": {"app": _}}}:
            raise AppError('[tool.qtasks] app in pyproject.toml must be a string such as "package.module:object"')
    return None


def _from_argument(argument: str, folder: Path) -> AppLocation:
    place, _, attribute = argument.partition(":") if not _is_windows_path(argument) else (argument, "", "")
    if place.endswith(".py") or os.sep in place:
        return _from_file(place, attribute or None, folder)
    if not place or not all(part.isidentifier() for part in place.split(".")):
        raise AppError(
            f"{argument!r} is neither a file nor a module",
            fix="qtasks dev tasks.py, qtasks dev package.module, or qtasks dev module:object",
        )
    return AppLocation(folder, place, attribute or None, "named on the command line")


def _is_windows_path(argument: str) -> bool:
    return len(argument) > 2 and argument[1] == ":" and argument[0].isalpha() and argument[2] in "\\/"


def _from_file(place: str, attribute: str | None, folder: Path) -> AppLocation:
    path = (folder / place).resolve()
    if not path.is_file():
        guess = did_you_mean(path.name, (other.name for other in _python_files(path.parent)))
        raise AppError(f"{place} does not exist{guess}", details={"looked in": str(path.parent)})
    # Import a file of a package as a module of that package, so that its relative imports work.
    module, root = path.stem, path.parent
    while (root / "__init__.py").is_file():
        module, root = f"{root.name}.{module}", root.parent
    # A namespace package below the working directory: app/main.py is app.main, as for `python -m`. Modules in src/ are
    # imported without that prefix, as they are once the package is installed.
    if root.parent == folder and root.name.isidentifier() and root.name != "src":
        module, root = f"{root.name}.{module}", folder
    return AppLocation(root, module.removesuffix(".__init__"), attribute, f"file {place}")


def _python_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.py")) if folder.is_dir() else []


def load(target: AppLocation) -> LoadedApp:
    """Import the application and find its tasks. Raises AppError, whose few lines show only the user's code."""
    module = _import(target)
    return _loaded_app(_find_app(module, target), target)


def _import(target: AppLocation) -> ModuleType:
    sys.path.insert(0, str(target.folder))
    try:
        return importlib.import_module(target.module)
    except ModuleNotFoundError as error:
        if error.name is not None and (target.module == error.name or target.module.startswith(f"{error.name}.")):
            guess = did_you_mean(target.module, (path.stem for path in _python_files(target.folder)))
            raise AppError(
                f"there is no module {target.module!r}{guess}", details={"looked in": str(target.folder)}
            ) from None
        raise _import_failed(target, error) from None
    except (Exception, SystemExit) as error:  # SystemExit: a script that exits is not an application
        raise _import_failed(target, error) from None


def _import_failed(target: AppLocation, error: BaseException) -> AppError:
    """The error of an import that failed in the user's code, with the innermost line of that code."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        where = f"{error.filename}:{error.lineno}  {(error.text or '').strip()}"
    else:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).is_relative_to(target.folder) and "site-packages" not in frame.filename
        ]
        where = f"{frames[-1].filename}:{frames[-1].lineno}  {frames[-1].line}" if frames else "unknown"
    # A caret in the message of a qtasks error points at the line above it, so keep its line feeds.
    text = error.message if isinstance(error, QTasksError) else " ".join(str(error).split())
    text = text if len(text) <= MAX_REASON else text[:MAX_REASON] + "..."
    details: dict[str, str | Sequence[str]] = {"error": f"{type(error).__name__}: {text}", "at": where}
    fix: str | None = None
    if isinstance(error, QTasksError):
        details, fix = {**details, **error.details}, error.fix
    return AppError(
        f"{target.module} cannot be imported", details=details, fix=fix, code=ErrorCode.APPLICATION_IMPORT_FAILED
    )


def _find_app(module: ModuleType, target: AppLocation) -> Any:
    """The named object; without a name the application of the module, its QTasks object, or the default one.

    A function that is named makes the application. Of several applications it is the first that serves tasks and is
    not inside of another one.
    """
    if target.attribute is not None:
        try:
            named = getattr(module, target.attribute)
        except AttributeError:
            raise AppError(
                f"module {target.module!r} has no {target.attribute!r}{did_you_mean(target.attribute, vars(module))}",
                details={"looked in": str(module.__file__)},
                code=ErrorCode.APPLICATION_UNUSABLE,
            ) from None
        return _made_by(named, target) if inspect.isfunction(named) else named
    from qtasks.tasks.web.applications import is_application, outermost, place_of

    applications = [value for value in vars(module).values() if is_application(value)]
    serving = outermost([app for app in applications if place_of(app) is not None])
    return next(iter([*serving, *applications]), None) or _tasks_of(module, target)


def _made_by(factory: Callable[[], Any], target: AppLocation) -> Any:
    """What a function without parameters returns. Raises AppError for any other function, and if it fails."""
    required = [each.name for each in inspect.signature(factory).parameters.values() if each.default is each.empty]
    if required:
        raise AppError(
            f"{target} is a function with parameters; expected an application, or a function that makes one",
            details={"parameters": ", ".join(required)},
            code=ErrorCode.APPLICATION_UNUSABLE,
        )
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise _import_failed(target, error) from None


def _tasks_of(module: ModuleType, target: AppLocation) -> QTasks:
    from qtasks.tasks.app import QTasks

    declared = list({id(value): value for value in vars(module).values() if isinstance(value, QTasks)}.values())
    if len(declared) > 1:
        raise AppError(
            f"{target.module} has {len(declared)} QTasks objects",
            fix=f"name one of them: {target.module}:name",
            code=ErrorCode.APPLICATION_UNUSABLE,
        )
    if declared:
        return declared[0]
    from qtasks.tasks.default import default_app

    if not default_app.tasks:
        raise AppError(
            f"no tasks found in {target.module}",
            details={
                "looked for": "a FastAPI app, a QTasks object, functions with @task",
                "looked in": str(module.__file__),
            },
            fix="from qtasks import task, and put @task above a function",
            code=ErrorCode.APPLICATION_UNUSABLE,
        )
    return default_app


def _loaded_app(candidate: Any, target: AppLocation) -> LoadedApp:
    from qtasks.tasks.app import QTasks, served_by
    from qtasks.tasks.web.applications import is_application, prefix_of

    if isinstance(candidate, QTasks):
        app = candidate.asgi_app()
        return LoadedApp(str(target), candidate, app, prefix_of(app) or "")
    if not is_application(candidate):
        raise AppError(
            f"{target} is a {type(candidate).__name__}; expected a FastAPI application or a QTasks object",
            code=ErrorCode.APPLICATION_UNUSABLE,
        )
    prefix, tasks = prefix_of(candidate), served_by(candidate)
    if prefix is None or tasks is None:
        raise AppError(
            f"the application in {target} does not serve any tasks",
            fix='app.include_router(tasks.router, prefix="/qtasks")',
            code=ErrorCode.APPLICATION_UNUSABLE,
        )
    return LoadedApp(str(target), tasks, candidate, prefix)
