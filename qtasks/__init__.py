"""Background tasks for web applications, pushed over HTTP by QStash or by a durable broker of your own.

These are the public names. Each one is loaded on first use, so that `import qtasks` takes almost no time.
"""

from __future__ import annotations

# Type checkers treat this name as true; `typing` is not imported for it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from qtasks.embedded import Embedded as Embedded
    from qtasks.tasks.app import QTasks as QTasks
    from qtasks.tasks.codec import Codec as Codec
    from qtasks.tasks.context import TaskContext as TaskContext
    from qtasks.tasks.context import TaskLogFilter as TaskLogFilter
    from qtasks.tasks.context import current_context as current_context
    from qtasks.tasks.context import injected as injected
    from qtasks.tasks.control import Cancel as Cancel
    from qtasks.tasks.control import NonRetryable as NonRetryable
    from qtasks.tasks.control import RetryAfter as RetryAfter
    from qtasks.tasks.control import Snooze as Snooze
    from qtasks.tasks.control import SoftTimeLimitExceeded as SoftTimeLimitExceeded
    from qtasks.tasks.default import cron as cron
    from qtasks.tasks.default import default_app as default_app
    from qtasks.tasks.default import every as every
    from qtasks.tasks.default import task as task
    from qtasks.tasks.flow.canvas import chain as chain
    from qtasks.tasks.flow.canvas import chord as chord
    from qtasks.tasks.flow.canvas import group as group
    from qtasks.tasks.hooks import TaskEvent as TaskEvent
    from qtasks.tasks.progress import Progress as Progress
    from qtasks.tasks.registry import TaskRouter as TaskRouter
    from qtasks.tasks.results.group_result import GroupResult as GroupResult
    from qtasks.tasks.results.task_result import TaskResult as TaskResult
    from qtasks.tasks.retries import RetryPolicy as RetryPolicy
    from qtasks.tasks.schedules.task_schedule import TaskSchedule as TaskSchedule
    from qtasks.tasks.web.background import BackgroundTasks as BackgroundTasks

    __version__: str
    """The version of the distribution `qstash-tasks`."""

__all__ = [
    "BackgroundTasks",
    "Cancel",
    "Codec",
    "Embedded",
    "GroupResult",
    "NonRetryable",
    "Progress",
    "QTasks",
    "RetryAfter",
    "RetryPolicy",
    "Snooze",
    "SoftTimeLimitExceeded",
    "TaskContext",
    "TaskEvent",
    "TaskLogFilter",
    "TaskResult",
    "TaskRouter",
    "TaskSchedule",
    "chain",
    "chord",
    "cron",
    "current_context",
    "default_app",
    "every",
    "group",
    "injected",
    "task",
]

_MODULES = {
    "BackgroundTasks": "qtasks.tasks.web.background",
    "Cancel": "qtasks.tasks.control",
    "Codec": "qtasks.tasks.codec",
    "Embedded": "qtasks.embedded",
    "GroupResult": "qtasks.tasks.results.group_result",
    "NonRetryable": "qtasks.tasks.control",
    "Progress": "qtasks.tasks.progress",
    "QTasks": "qtasks.tasks.app",
    "RetryAfter": "qtasks.tasks.control",
    "RetryPolicy": "qtasks.tasks.retries",
    "Snooze": "qtasks.tasks.control",
    "SoftTimeLimitExceeded": "qtasks.tasks.control",
    "TaskContext": "qtasks.tasks.context",
    "TaskEvent": "qtasks.tasks.hooks",
    "TaskLogFilter": "qtasks.tasks.context",
    "TaskResult": "qtasks.tasks.results.task_result",
    "TaskRouter": "qtasks.tasks.registry",
    "TaskSchedule": "qtasks.tasks.schedules.task_schedule",
    "chain": "qtasks.tasks.flow.canvas",
    "chord": "qtasks.tasks.flow.canvas",
    "cron": "qtasks.tasks.default",
    "current_context": "qtasks.tasks.context",
    "default_app": "qtasks.tasks.default",
    "every": "qtasks.tasks.default",
    "group": "qtasks.tasks.flow.canvas",
    "injected": "qtasks.tasks.context",
    "task": "qtasks.tasks.default",
}
"""The module of each public name."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if (module := _MODULES.get(name)) is None:
        raise AttributeError(f"module 'qtasks' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import version

    return version("qstash-tasks")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
