"""What a message is for: the task of the framework that is called at its URL."""

from __future__ import annotations

from qtasks.protocol.messages import PublishOptions


def task_of(url: str, options: PublishOptions) -> str | None:
    """The name of the task that a message calls, the last segment of its path; None if it is not of the framework."""
    if options.call_id is None and options.interrupted_for_ms is None:
        return None
    return url.partition("?")[0].rpartition("/")[2] or None


def is_report(task: str | None) -> bool:
    """True for a report of an ended call: the framework sends it itself, and its names begin with ``_``."""
    return task is not None and task.startswith("_")
