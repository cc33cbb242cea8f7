"""What a check finds, and what checks work with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from qtasks.cli.loader import LoadedApp, load, locate
from qtasks.cli.operate.service import ServiceConnection, connected
from qtasks.errors import QTasksError
from qtasks.lazy import lazy_property
from qtasks.tasks.dev_server import find_dev_server
from qtasks.tasks.settings import Settings, resolve


class Level(StrEnum):
    """How good a finding is."""

    OK = "ok"
    NOTE = "note"
    """Nothing is wrong, but the operator should know it."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. `repair` makes it good, where that is safe; it returns what was done."""

    level: Level
    text: str
    cause: str | None = None
    fix: str | None = None
    repair: Callable[[], str] | None = field(default=None, compare=False)


def ok(text: str) -> CheckResult:
    """All is well."""
    return CheckResult(Level.OK, text)


def note(
    text: str, *, cause: str | None = None, fix: str | None = None, repair: Callable[[], str] | None = None
) -> CheckResult:
    """Nothing is wrong, but see."""
    return CheckResult(Level.NOTE, text, cause, fix, repair)


def fail(text: str, *, cause: str, fix: str, repair: Callable[[], str] | None = None) -> CheckResult:
    """Something is wrong."""
    return CheckResult(Level.FAIL, text, cause, fix, repair)


def of_error(error: QTasksError) -> CheckResult:
    """The finding of a check that raised `error`."""
    cause = "; ".join(
        f"{label}: {value if isinstance(value, str) else ', '.join(value)}" for label, value in error.details.items()
    )
    return CheckResult(Level.FAIL, error.message, cause or None, error.fix or f"see `qtasks explain {error.code}`")


class Patient:
    """The place that is examined. Each part is opened once; what cannot be opened raises the same error again."""

    def __init__(self, folder: Path, app: str | None, db: str | None) -> None:
        self.folder = folder
        self.app = app
        self.db = db
        self.environment: Mapping[str, str] = os.environ
        self.load_s = 0.0
        """Seconds that the import of the application took."""
        self._open = ExitStack()

    @lazy_property
    def settings(self) -> Settings:
        """The settings of the environment, or of the running `qtasks dev`."""
        return resolve(self.environment, {}, lambda url: find_dev_server(url, start=self.folder))

    def settings_or_none(self) -> Settings | None:
        """The settings if they name a service; None if they cannot be read, or name no service."""
        try:
            settings = self.settings
        except QTasksError:
            return None
        return settings if settings.url is not None and settings.token is not None else None

    @lazy_property
    def application(self) -> LoadedApp:
        """The imported application. Raises AppError."""
        began = time.monotonic()
        loaded = load(locate(self.app, self.folder))
        self.load_s = time.monotonic() - began
        return loaded

    @lazy_property
    def service(self) -> ServiceConnection:
        """A connection to the service. Raises ConfigurationError."""
        return self._open.enter_context(connected(timeout_s=10.0))

    def close(self) -> None:
        """Close the connection."""
        self._open.close()


Check: TypeAlias = Callable[[Patient], CheckResult | None]
"""One check; None: it does not apply here."""
