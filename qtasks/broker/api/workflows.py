"""Workflows (docs/protocol.md 2.14), which are not served: neither their endpoints nor their messages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError
from qtasks.broker.api.validation import split_target


async def refuse(context: ApiContext, account: int, request: ApiRequest, *rest: str) -> ApiResponse:
    """501, so that no client waits for a workflow that never runs."""
    raise _not_served()


def check_headers(names: Iterable[str]) -> None:
    """Refuse a publish that belongs to a workflow run, by the `names` of its headers. HttpError 501.

    Delivered as an ordinary message it would be lost: its client has a run id, and nothing that carries the run on.
    """
    if not _OF_A_RUN.isdisjoint(map(str.lower, names)):
        raise _not_served()


def check_items(items: Iterable[object]) -> None:
    """Refuse a batch as a whole if any of its items belongs to a workflow run. HttpError 501.

    An error in the place of the item would not do: the workflow SDKs read nothing but the status of a batch.
    """
    names: set[tuple[str, ...]] = set()
    destinations: set[str] = set()
    for item in items:
        if not isinstance(item, dict):
            continue
        if isinstance(headers := item.get("headers"), dict):
            names.add(tuple(headers))  # mostly the same in all items
        if isinstance(destination := item.get("destination"), str):
            destinations.add(destination)
    check_headers(itertools.chain.from_iterable(names))
    for destination in destinations:
        if "workflow-" in destination.lower():
            check_headers(name for name, _ in split_target(destination).query)


def _not_served() -> HttpError:
    return HttpError(501, "workflows are not served by this broker; the rest of the QStash API is")


_OF_A_RUN: Final = frozenset({"upstash-workflow-init", "upstash-workflow-runid"})
"""Headers of every message of a workflow run, in lower case."""
