"""The work with a ``def`` task as well, which runs in threads: `qtasks run benchmarks.mixed_app:tasks`."""

from __future__ import annotations

from benchmarks import app, work
from qtasks import QTasks


def declare(application: QTasks) -> QTasks:
    """Declare the work in an application, and return it."""
    app.declare(application).task(name="plain")(work.noop)
    return application


tasks = declare(QTasks())
