"""The work on qtasks, so that its producer is measured like those of the peers."""

from __future__ import annotations

from benchmarks.app import tasks


def send(name: str, task: int) -> None:
    """Publish one call."""
    tasks.tasks[name].delay(task)
