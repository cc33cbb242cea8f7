"""`GET console/api/system`: the broker itself, its store, keys, tokens and settings."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import orjson

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, json_response
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.core.wall_times import added
from qtasks.broker.loops import page_checker, scrubber
from qtasks.broker.settings import BrokerSettings, ConfiguredValue
from qtasks.broker.store.connection import MEMORY, schema_version
from qtasks.broker.store.integrity import backup_note
from qtasks.broker.store.verbs import accounts
from qtasks.broker.store.verbs.upkeep import check_notes
from qtasks.broker.store.verbs.upkeep.check_notes import Checked
from qtasks.protocol.views import Json

_USER_INFO: Final = re.compile(r"(?<=://)[^/@]*@")
"""Name and password in a URL."""
_SHOWN: Final = ("destinations", "allow", "resolve_on_publish", "drain_s", "llm_url")


async def show(context: ConsoleContext, viewer: Viewer, request: ApiRequest) -> ApiResponse:
    """What an operator wants to know of the broker."""
    settings = context.settings
    size, free = await asyncio.to_thread(_sizes, settings.path)
    rotated_ms = await context.store.read(accounts.rotated_ms, viewer.account)
    return json_response(
        {
            "version": version("qstash-tasks"),
            "store": {
                "path": settings.path,
                "promise": context.store.promise,
                "bytes": size,
                "freeBytes": free,
                "schema": schema_version(),
            },
            "retention": {
                "deliveredMs": settings.retention.delivered_ms,
                "failedMs": settings.retention.failed_ms,
                "maxBytes": settings.retention.max_bytes,
            },
            **await upkeep(context),
            "limits": {
                "inFlight": settings.limits.in_flight,
                "perHost": settings.limits.plain_host,
                "perDispatcher": settings.limits.largest_host,
            },
            "readiness": await _readiness(context),
            "keys": {"rotatedMs": added(rotated_ms, context.clock.offset_ms())},
            "tokens": await _tokens(context, viewer),
            "configuration": list(_configuration(settings)),
        }
    )


async def _readiness(context: ConsoleContext) -> Json:
    response = await context.ready()
    return {"ready": response.status == 200, **orjson.loads(response.body)}


async def upkeep(context: ConsoleContext) -> dict[str, Any]:
    """The last checks and the last backup of the store; in memory there is nothing to check or to copy."""
    path = context.settings.path
    if path == MEMORY:
        return {"checks": {}, "backup": None}
    backup = await asyncio.to_thread(backup_note.read, path)
    shown = None if backup is None else {"timeMs": backup.time_ms, "bytes": backup.bytes, "target": backup.target}
    return {"checks": await _checks(context), "backup": shown}


async def _checks(context: ConsoleContext) -> dict[str, Json]:
    offset_ms, last = context.clock.offset_ms(), await context.store.read(check_notes.last)
    return {
        what.value: {
            "everyMs": every_ms,
            "timeMs": None if check is None else check.time_ms + offset_ms,
            "damagedMs": None if check is None else added(check.damaged_ms, offset_ms),
            "damaged": 0 if check is None else check.damaged,
        }
        for what, every_ms in ((Checked.PAGES, page_checker.INTERVAL_MS), (Checked.MESSAGES, scrubber.INTERVAL_MS))
        for check in (last.get(what),)
    }


async def _tokens(context: ConsoleContext, viewer: Viewer) -> list[Json]:
    """The names of the account's tokens; the tokens themselves are stored nowhere."""
    offset_ms = context.clock.offset_ms()
    configured: list[Json] = [
        {"name": "(of the configuration)", "role": "operator", "createdMs": None, "usedMs": None}
        for credentials in context.settings.credentials
        if credentials.token is not None and context.accounts.get(credentials.name) == viewer.account
    ]
    stored: list[Json] = [
        {
            "name": token.name,
            "role": "metadata" if token.without_payloads else "viewer" if token.read_only else "operator",
            "createdMs": token.created_ms + offset_ms,
            "usedMs": added(token.used_ms, offset_ms),
        }
        for token in await context.store.read(accounts.tokens)
        if token.account == viewer.account
    ]
    return [*configured, *stored]


def _configuration(settings: BrokerSettings) -> Iterator[Json]:
    """What the broker was started with, without secrets; each value with its default and where it comes from."""
    for each in settings.configuration or _of_fields(settings):
        yield {**each._asdict(), "value": _shown(each.value), "default": _shown(each.default)}


def _of_fields(settings: BrokerSettings) -> Iterator[ConfiguredValue]:
    """The same where a program has made the settings."""
    defaults = BrokerSettings(path=MEMORY)
    for name in _SHOWN:
        value, default = getattr(settings, name), getattr(defaults, name)
        source = "default" if value == default else "the program"
        yield ConfiguredValue(name, _shown(value), _shown(default), source)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _USER_INFO.sub("", str(value))


def _sizes(path: str) -> tuple[int | None, int | None]:
    """Bytes of the database with its log, and bytes that are free on its disk; unknown in memory."""
    if path == MEMORY:
        return None, None
    files = [Path(path), Path(f"{path}-wal")]
    try:
        return sum(file.stat().st_size for file in files if file.exists()), shutil.disk_usage(files[0].parent).free
    except OSError:  # the disk does not answer, or the file has gone
        return None, None
