"""`tasks.conf` and `tasks.control` of Celery: objects whose attributes all say what to write instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NoReturn

from qtasks.errors import CeleryNameError

_LATE: Final = "leave it out: a call is acknowledged after its end, and delivered again if its process dies"
_JSON: Final = 'leave it out: arguments are JSON; @tasks.task(serializer="pickle") for what JSON cannot carry'
_QUEUE: Final = '@tasks.task(queue="...") where the task is declared'
_PROCESS: Final = "leave it out: the server of your application starts and replaces its processes"
_CONNECTION: Final = "leave it out: a request that fails is repeated"
_IN_TESTS: Final = "the fixture `qtasks` in a test: calls run there, in virtual time; or call the function, task(...)"
_RESULTS: Final = "QTASKS_RESULTS, or QTasks(results=...)"

SETTINGS: Final[Mapping[str, str]] = {
    "accept_content": _JSON,
    "beat_schedule": '@tasks.cron("0 7 * * *") or @tasks.every("15m") above the task',
    "broker_connection_retry_on_startup": _CONNECTION,
    "broker_transport_options": _LATE,
    "broker_url": "QSTASH_URL and QSTASH_TOKEN, or QTasks(url=..., token=...)",
    "cache_backend": _RESULTS,
    "database_url": _RESULTS,
    "enable_utc": '@tasks.cron("0 7 * * *", tz="Europe/Berlin")',
    "imports": "import the modules with tasks",
    "include": "import the modules with tasks",
    "redis_backend_use_ssl": _RESULTS,
    "result_backend": _RESULTS,
    "result_expires": 'QTASKS_RESULT_TTL, or QTasks(result_ttl="1d")',
    "result_extended": "keep arguments with your own data, beside result.id",
    "result_persistent": _RESULTS,
    "result_serializer": _JSON,
    "task_acks_late": _LATE,
    "task_acks_on_failure_or_timeout": _LATE,
    "task_always_eager": _IN_TESTS,
    "task_annotations": "options where each task is declared",
    "task_create_missing_queues": _QUEUE,
    "task_default_priority": _QUEUE,
    "task_default_queue": _QUEUE,
    "task_default_rate_limit": '@tasks.task(key="...", rate="10/1m")',
    "task_eager_propagates": _IN_TESTS,
    "task_ignore_result": "leave QTASKS_RESULTS unset",
    "task_publish_retry": _CONNECTION,
    "task_publish_retry_policy": _CONNECTION,
    "task_queues": _QUEUE,
    "task_reject_on_worker_lost": _LATE,
    "task_routes": _QUEUE,
    "task_send_sent_event": "@tasks.send_middleware",
    "task_serializer": _JSON,
    "task_soft_time_limit": "@tasks.task(soft_time_limit=...)",
    "task_store_eager_result": _IN_TESTS,
    "task_time_limit": '@tasks.task(timeout="30s")',
    "task_track_started": "leave it out: result.state is STARTED while a call runs",
    "timezone": '@tasks.cron("0 7 * * *", tz="Europe/Berlin")',
    "worker_concurrency": 'QTASKS_THREADS, or QTasks(threads=...); for all processes, key="...", parallelism=...',
    "worker_max_memory_per_child": _PROCESS,
    "worker_max_tasks_per_child": _PROCESS,
    "worker_prefetch_multiplier": _LATE,
    "worker_send_task_events": "@tasks.on_success, @tasks.on_retry and @tasks.on_failure",
}
"""The settings of Celery's application, by their present names."""

_OLD: Final[Mapping[str, str]] = {"celerybeat_schedule": "beat_schedule", "task_result_expires": "result_expires"}
_ARGUMENTS: Final[Mapping[str, str]] = {
    "main": "leave it out: a task has the name of its function, or that of @tasks.task(name=...)",
    "broker": SETTINGS["broker_url"],
    "backend": SETTINGS["result_backend"],
    "include": SETTINGS["include"],
    "config_source": "environment variables, or arguments of QTasks",
    "task_cls": "@tasks.run_middleware for what surrounds a run, @tasks.on_failure and others for hooks",
}
"""Arguments of Celery's application."""

_OTHER: Final = "QTasks(...), or environment variables; an option of a task where the task is declared"

CONTROL: Final[Mapping[str, str]] = {
    "cancel_consumer": "client.queue.pause(name), with qtasks.qstash.QStash",
    "inspect": "client.log and client.dlq, with qtasks.qstash.QStash",
    "purge": "client.message.cancel_all(), with qtasks.qstash.QStash",
    "rate_limit": '@tasks.task(key="...", rate="10/1m")',
    "revoke": "tasks.result(id).cancel(); it also asks an attempt that runs to end",
    "terminate": "tasks.result(id).cancel()",
    "time_limit": '@tasks.task(timeout="30s")',
}
"""The methods of `app.control`."""


class CeleryNamespace:
    """An object of Celery's application that has no twin here. Each use of it is a CeleryNameError."""

    def __init__(self, title: str, names: Mapping[str, str], otherwise: str) -> None:
        vars(self).update(title=title, names=names, otherwise=otherwise)

    def __repr__(self) -> str:
        return f"<{vars(self)['title']} of Celery, which qtasks does not have>"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._error({name: None})

    def __setattr__(self, name: str, value: object) -> None:
        raise self._error({name: value})

    def __getitem__(self, name: str) -> NoReturn:
        raise self._error({name: None})

    def __setitem__(self, name: str, value: object) -> None:
        raise self._error({name: value})

    def update(self, *settings: Mapping[str, Any], **named: Any) -> NoReturn:
        """Refuse all of these settings at once."""
        raise self._error({name: value for each in (*settings, named) for name, value in dict(each).items()})

    def _error(self, values: Mapping[str, object]) -> CeleryNameError:
        title, names, otherwise = (vars(self)[name] for name in ("title", "names", "otherwise"))
        fixes = {name: _fix(present_name(name), value, names, otherwise) for name, value in values.items()}
        return CeleryNameError(
            f"{title}: {', '.join(map(repr, fixes)) or 'nothing'} cannot be set or read: there is no {title}",
            details=fixes if len(fixes) > 1 else None,
            fix="; ".join(dict.fromkeys(fixes.values())) if len(fixes) == 1 else "write each as shown above",
        )


def conf() -> CeleryNamespace:
    """What stands for `app.conf`."""
    return CeleryNamespace("tasks.conf", SETTINGS, _OTHER)


def control() -> CeleryNamespace:
    """What stands for `app.control`."""
    return CeleryNamespace("tasks.control", CONTROL, "tasks.result(id).cancel(), or a method of qtasks.qstash.QStash")


def not_celery(positional: Sequence[object], named: Mapping[str, object]) -> CeleryNameError | None:
    """The error for an application that is made with arguments of Celery's; None if there are none."""
    names = {*tuple(_ARGUMENTS)[: len(positional)], *named}
    fixes = {name: fix for name, fix in _ARGUMENTS.items() if name in names}
    if not fixes:
        return None
    return CeleryNameError(
        f"QTasks does not take {', '.join(map(repr, fixes))}, as Celery does", details=fixes, fix="tasks = QTasks()"
    )


def present_name(name: str) -> str:
    """The present name of a setting that may have an old one: ``CELERY_TASK_ALWAYS_EAGER``."""
    lower = name.lower()
    return _OLD.get(lower, _OLD.get(lower.removeprefix("celery_"), lower.removeprefix("celery_")))


def _fix(name: str, value: object, names: Mapping[str, str], otherwise: str) -> str:
    if name == "beat_schedule" and isinstance(value, Mapping) and value:
        return "; ".join(_schedule(entry) for entry in value.values())
    if name == "task_routes" and isinstance(value, Mapping) and value:
        return "; ".join(_route(task, route) for task, route in value.items())
    return names.get(name, otherwise)


def _schedule(entry: Any) -> str:
    """The decorator for an entry of `beat_schedule`."""
    try:
        task, when = entry["task"], _when(entry["schedule"])
        args = f", args={list(entry['args'])!r}" if entry.get("args") else ""
        kwargs = f", kwargs={dict(entry['kwargs'])!r}" if entry.get("kwargs") else ""
    except (KeyError, TypeError, AttributeError, ValueError):
        return SETTINGS["beat_schedule"]
    return f"@tasks.{when}{args}{kwargs}) above {task}"


def _when(schedule: object) -> str:
    """The beginning of the decorator; Celery's `crontab` shows its fields in its text."""
    if isinstance(schedule, (int, float, timedelta)):
        seconds = schedule.total_seconds() if isinstance(schedule, timedelta) else schedule
        for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
            if seconds >= size and seconds % size == 0:
                return f'every("{seconds // size:.0f}{unit}"'
        return f'every("{seconds:g}s"'
    crontab = re.search(r"<crontab: (\S+ \S+ \S+ \S+ \S+) ", repr(schedule))
    return f'cron("{schedule if crontab is None else crontab[1]}"'


def _route(task: str, route: object) -> str:
    queue = route.get("queue") if isinstance(route, Mapping) else route
    return f'@tasks.task(queue="{queue}") above {task}'
