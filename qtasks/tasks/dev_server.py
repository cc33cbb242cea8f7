"""Find a running `qtasks dev`: read the file that it writes, and ask its broker for the signing keys."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from qtasks.protocol import strict_json
from qtasks.protocol.loopback import is_loopback_url
from qtasks.protocol.messages import SigningKeys

DEV_FILE = Path(".qtasks", "dev.json")
PROBE_TIMEOUT_S = 0.5
"""How long a broker on this machine may take to answer with its keys."""

_MAX_ANSWER = 64 * 1024


class ServedApplication(NamedTuple):
    """Where the application is that a `qtasks dev` serves."""

    folder: str
    module: str
    attribute: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DevServer:
    """A running `qtasks dev`: the contents of its file, and the signing keys from its broker."""

    path: Path
    url: str
    token: str = field(repr=False)
    keys: SigningKeys
    base_url: str | None
    """None: it serves no application."""
    results: str | None
    application: ServedApplication | None = None


def find_dev_server(given_url: str | None, *, start: Path) -> DevServer | str:
    """The `qtasks dev` of the directory `start` or of one above it, if its broker answers.

    Otherwise a text that says why it was not used. `given_url` is the URL of the service that is set, or None.
    """
    for directory in (start, *start.parents):
        path = directory / DEV_FILE
        if path.is_file():
            return _ask_dev_server(path, given_url)
    return f"not found in {start} or above"


def _ask_dev_server(path: Path, given_url: str | None) -> DevServer | str:
    """Read the file, then ask its broker for the keys: those in the file may be older, because keys rotate."""
    if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
        return f"at {path} belongs to another user and was not read"
    try:
        document = strict_json.loads(path.read_bytes())
        if not isinstance(document, dict):
            raise ValueError("not an object")
        url, token = str(document["broker"]).rstrip("/"), str(document["token"])
        base_url = str(document["base_url"]) if document.get("base_url") else None
        results = str(document["results"]) if document.get("results") else None
    except (OSError, ValueError, KeyError) as error:
        return f"at {path} cannot be read ({type(error).__name__}: {error})"
    if not is_loopback_url(url):
        return f"at {path} names {url}, which is not this machine, and was ignored"
    if given_url is not None and given_url != url:
        return f"at {path} is for {url}, but QSTASH_URL is {given_url}"
    keys = _ask_keys(url, token)
    if keys is None:
        return f"at {path} names {url}, which does not answer"
    return DevServer(
        path=path,
        url=url,
        token=token,
        keys=keys,
        base_url=base_url,
        results=results,
        application=_application(document.get("application")),
    )


def _application(facts: object) -> ServedApplication | None:
    match facts:
        case {"folder": str(folder), "module": str(module), "attribute": str() | None as attribute}:
            return ServedApplication(folder, module, attribute)
    return None


def _ask_keys(url: str, token: str) -> SigningKeys | None:
    """``GET /v2/keys`` of a broker on this machine; None if there is no valid answer in `PROBE_TIMEOUT_S`."""
    import http.client

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", f"{parts.path}/v2/keys", headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        answer = strict_json.loads(response.read(_MAX_ANSWER))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    if response.status != HTTPStatus.OK or not isinstance(answer, dict):
        return None
    current, following = answer.get("current"), answer.get("next")
    return SigningKeys(current, following) if isinstance(current, str) and isinstance(following, str) else None
