"""The tasks of the measurements, all ``async def``, as a qtasks application: `qtasks run benchmarks.app:tasks`."""

from __future__ import annotations

from benchmarks import work
from qtasks import QTasks


def declare(application: QTasks) -> QTasks:
    """Declare the work in an application, and return it."""
    application.task(name="noop")(work.anoop)
    application.task(name="nap")(work.anap)
    application.task(name="hang", retries=500, retry_delay="100ms")(work.ahang)
    return application


tasks = declare(QTasks())
