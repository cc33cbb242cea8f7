"""Schedules under `qtasks dev`: synced by the application that begins to serve, added, changed and removed alike."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from qtasks.errors import QTasksError
from qtasks.protocol.loopback import is_loopback_url

if TYPE_CHECKING:
    from qtasks.tasks.app import QTasks

_KNOCK_S: Final = 0.2


def sync(tasks: QTasks) -> str:
    """Have the broker keep what the code declares; what was done in words, or why nothing was. Empty for nothing."""
    try:
        done = tasks.schedules.sync(prune=True)
        abandoned = [one.schedule_id for one in done.elsewhere if _is_abandoned(one.destination)]
        if not is_loopback_url(tasks.settings.url or ""):
            abandoned.clear()  # what that machine calls itself is not here
        for schedule_id in abandoned:
            _delete(tasks, schedule_id)
    except QTasksError as error:
        return f"{error.code} {error}"
    said = [] if done.in_sync else [str(done)]
    if abandoned:
        said.append(f"removed {', '.join(abandoned)}, for nothing listens there any more")
    return "; ".join(said)


def _is_abandoned(destination: str) -> bool:
    """Whether a destination is on this machine and nothing listens there: the application had another port once."""
    parts = urlsplit(destination)
    if not is_loopback_url(destination) or parts.hostname is None:
        return False
    try:
        socket.create_connection((parts.hostname, parts.port or 80), timeout=_KNOCK_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _delete(tasks: QTasks, schedule_id: str) -> None:
    from qtasks.qstash import schedule

    tasks.runtime.publisher().call(schedule.delete(schedule_id), f"the removal of schedule {schedule_id}")
