"""The tasks that a running application serves."""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qtasks.errors import ConfigurationError, QTasksError
from qtasks.protocol import signing, wire
from qtasks.protocol.dispatcher_questions import MANIFEST, NAMES
from qtasks.protocol.messages import PublishOptions, changed
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.settings import Settings

_ASK_TIMEOUT_S: Final = 2.0
_MAX_ANSWER: Final = 16 * 1024 * 1024


def names_of_tasks(settings: Settings) -> list[str] | None:
    """The names of the tasks of the running application; None if it cannot be asked from here."""
    names = _asked(settings, NAMES)
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A task as the running application describes it: how its calls are made."""

    options: PublishOptions
    """Those of a call, without the callback that reports its end."""
    queue: str | None
    envelope: Envelope
    searchable: Mapping[str, int | None]
    """The arguments by which its calls are found, each with its position."""
    refusal: str | None
    """Why a call cannot be made outside of the application; None if it can."""


def running_task(settings: Settings, task: str) -> RunningTask | None:
    """The task of the running application; None if the application does not describe it."""
    try:
        described = next(each for each in _asked(settings, MANIFEST)["tasks"] if each["name"] == task)
        places = {parameter["name"]: place for place, parameter in enumerate(described["parameters"])}
        return RunningTask(
            _without_report(wire.read((name, value) for name, value in described["headers"])),
            described["queue"],
            envelopes.decode(described["envelope"].encode()),
            {name: places[name] for name in described["searchable"]},
            described["refusal"],
        )
    except (TypeError, ValueError, KeyError, StopIteration, QTasksError):  # no manifest, or none that has the task
        return None


def _without_report(options: PublishOptions) -> PublishOptions:
    """The options of a call that its sender adds the end callback to: the manifest has one without a call id."""
    if options.failure_callback == options.end_callback:
        options = changed(options, failure_callback=None, failure_callback_options=None)
    return changed(options, end_callback=None)


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
