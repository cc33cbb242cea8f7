"""The names of the tasks that a running application serves."""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from typing import Final

from qtasks.errors import ConfigurationError
from qtasks.protocol import signing
from qtasks.tasks.run.dispatcher import NAMES_TASK
from qtasks.tasks.settings import Settings

_ASK_TIMEOUT_S: Final = 2.0
_MAX_NAMES: Final = 1024 * 1024


def names_of_tasks(settings: Settings) -> list[str] | None:
    """The names of the tasks of the running application; None if it cannot be asked from here."""
    try:
        keys, base_url = settings.receiver()
    except ConfigurationError:  # the signing keys are not known here
        return None
    url = f"{base_url}/{NAMES_TASK}"
    token = signing.sign(keys.current, url=url, body=b"", now_s=int(time.time()), jti=f"jwt_{secrets.token_hex(16)}")
    request = urllib.request.Request(url, data=b"", headers={"Upstash-Signature": token}, method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_ASK_TIMEOUT_S) as response:  # noqa: S310 - settings check the URL
            names = json.loads(response.read(_MAX_NAMES))
    except (OSError, ValueError):  # it does not run, or is older
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
