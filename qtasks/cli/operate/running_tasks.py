"""The tasks that a running application serves."""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from typing import Any, Final

from qtasks.errors import ConfigurationError
from qtasks.protocol import signing
from qtasks.protocol.dispatcher_questions import MANIFEST
from qtasks.tasks.run.dispatcher import NAMES_TASK
from qtasks.tasks.settings import Settings

_ASK_TIMEOUT_S: Final = 2.0
_MAX_ANSWER: Final = 16 * 1024 * 1024


def names_of_tasks(settings: Settings) -> list[str] | None:
    """The names of the tasks of the running application; None if it cannot be asked from here."""
    names = _asked(settings, NAMES_TASK)
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def searchable_of(settings: Settings, task: str) -> dict[str, int | None]:
    """The arguments by which calls of a task of the running application are found, each with its position.

    Empty if the application does not tell it.
    """
    try:
        tasks = _asked(settings, MANIFEST)["tasks"]
        described = next(each for each in tasks if each["name"] == task)
        places = {parameter["name"]: place for place, parameter in enumerate(described["parameters"])}
        return {name: places[name] for name in described["searchable"]}
    except (TypeError, KeyError, StopIteration):  # it is not a manifest, or it has no such task
        return {}


def _asked(settings: Settings, question: str) -> Any:
    """The JSON that the running application answers to a signed request without a body; None without an answer."""
    try:
        keys, base_url = settings.receiver()
    except ConfigurationError:  # the signing keys are not known here
        return None
    url = f"{base_url}/{question}"
    token = signing.sign(keys.current, url=url, body=b"", now_s=int(time.time()), jti=f"jwt_{secrets.token_hex(16)}")
    request = urllib.request.Request(url, data=b"", headers={"Upstash-Signature": token}, method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_ASK_TIMEOUT_S) as response:  # noqa: S310 - settings check the URL
            return json.loads(response.read(_MAX_ANSWER))
    except (OSError, ValueError):  # it does not run, or is older
        return None
