"""Sync schedules under `qtasks dev`: an application process does it when it starts to serve."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from qtasks.errors import QTasksError
from qtasks.protocol.loopback import is_loopback_url

if TYPE_CHECKING:
    from qtasks.tasks.app import QTasks

_CONNECT_TIMEOUT_S: Final = 0.2


def sync(tasks: QTasks) -> str:
    """Sync the schedules of the broker with those that the code declares.

    Returns one line: what changed, or the error. Returns an empty text if nothing had to change.
    """
    try:
        plan = tasks.schedules.sync(prune=True)
        abandoned = [existing.schedule_id for existing in plan.elsewhere if _is_abandoned(existing.destination)]
        if not is_loopback_url(tasks.settings.url or ""):
            abandoned.clear()  # a loopback address at a broker on another machine does not name this machine
        for schedule_id in abandoned:
            _delete(tasks, schedule_id)
    except QTasksError as error:
        return f"{error.code} {error}"
    changes = [] if plan.in_sync else [str(plan)]
    if abandoned:
        changes.append(f"removed {', '.join(abandoned)}: nothing listens there any more")
    return "; ".join(changes)


def _is_abandoned(destination: str) -> bool:
    """True if the destination is on this machine and nothing listens there: the port of the application has changed."""
    parts = urlsplit(destination)
    if not is_loopback_url(destination) or parts.hostname is None:
        return False
    try:
        socket.create_connection((parts.hostname, parts.port or 80), timeout=_CONNECT_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _delete(tasks: QTasks, schedule_id: str) -> None:
    from qtasks.qstash import schedule

    tasks.runtime.publisher().call(schedule.delete(schedule_id), f"the removal of schedule {schedule_id}")
