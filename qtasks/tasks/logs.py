"""Which call is running here, and log records that say so."""

from __future__ import annotations

import logging
from contextvars import ContextVar

from qtasks.tasks.context import TaskContext

current: ContextVar[TaskContext | None] = ContextVar("qtasks_context", default=None)
"""The context of the task that runs here, threads of the pool included; None outside of tasks."""

FIELDS = ("task", "call_id", "message_id", "attempt")
NOTHING = "-"


def current_context() -> TaskContext | None:
    """The context of the task that runs here; None outside of tasks."""
    return current.get()


class TaskLogFilter(logging.Filter):
    """Gives every log record made inside a task `task`, `call_id`, `message_id` and `attempt`, outside of tasks "-".

    Put it on a handler: ``handler.addFilter(TaskLogFilter())``; then a format may say ``%(task)s %(call_id)s``.
    What a record says of itself stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; never drops a record."""
        context = current.get()
        for name in FIELDS:
            if not hasattr(record, name):
                setattr(record, name, NOTHING if context is None else getattr(context, name))
        return True
