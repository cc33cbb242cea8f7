"""Attributes that tasks, results and applications of Dramatiq and RQ have and ours do not, and what to write instead.

They do not exist, as those of Celery: see `celery_names`. docs/migrate/dramatiq.md and docs/migrate/rq.md list them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class OtherName(NamedTuple):
    """A name of another queue, and what to write instead."""

    queue: str
    instead: str


_SECONDS: Final = 'times are seconds or texts such as "10m", not milliseconds'
_STATUS: Final = OtherName("RQ", "result.status, or result.is_finished")

_TASK: Final[Mapping[str, OtherName]] = {
    "actor_name": OtherName("Dramatiq", "task.name"),
    "fn": OtherName("Dramatiq", "task.function"),
    "message_with_options": OtherName("Dramatiq", f"task.using(...).s(...); {_SECONDS}"),
    "queue_name": OtherName("Dramatiq", 'task.options["queue"]'),
    "send": OtherName("Dramatiq", "task.delay(...)"),
    "send_with_options": OtherName("Dramatiq", f'task.using(delay="10s").delay(...); {_SECONDS}'),
}  # fmt: skip

_RESULT: Final[Mapping[str, OtherName]] = {
    "exc_info": OtherName("RQ", "result.error"),
    "get_id": OtherName("RQ", "result.id"),
    "get_meta": OtherName("RQ", "result.progress"),
    "get_result": OtherName("Dramatiq", f"result.get(timeout=5); {_SECONDS}"),
    "get_status": OtherName("RQ", "result.status"),
    "is_failed": OtherName("RQ", "result.failed()"),
    "is_queued": _STATUS,
    "is_scheduled": _STATUS,
    "is_started": _STATUS,
    "latest_result": OtherName("RQ", "result.get(timeout=5)"),
    "meta": OtherName("RQ", "result.progress"),
    "refresh": OtherName("RQ", "leave it out: result.status asks each time"),
    "requeue": OtherName("RQ", "tasks.dlq.retry(...), or qtasks dlq retry"),
}  # fmt: skip

_APPLICATION: Final[Mapping[str, OtherName]] = {
    "actor": OtherName("Dramatiq", "@tasks.task"),
    "enqueue": OtherName("RQ", "@tasks.task above the function, and function.delay(...)"),
    "enqueue_at": OtherName("RQ", "function.using(eta=...).delay(...), of a function with @tasks.task"),
    "enqueue_in": OtherName("RQ", 'function.using(delay="10m").delay(...), of a function with @tasks.task'),
    "enqueue_many": OtherName("RQ", "function.map([...]), of a function with @tasks.task"),
    "job": OtherName("RQ", "@tasks.task"),
}  # fmt: skip

_OF_KIND: Final[Mapping[str, Mapping[str, OtherName]]] = {"QTasks": _APPLICATION, "Task": _TASK, "TaskResult": _RESULT}
"""The names for each of our classes, by its name."""


def find(owner: object, name: str) -> OtherName | None:
    """What to write instead of the attribute `name` of `owner`; None if neither queue has such a name."""
    tables = (_OF_KIND.get(kind.__name__, {}) for kind in type(owner).__mro__)
    return next((table[name] for table in tables if name in table), None)
