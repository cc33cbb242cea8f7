"""Filters of lists and of bulk actions: the names in Python and on the wire (docs/protocol.md 2.0).

A record must match all filters, and one of the values of each. An unknown name is refused here, because a mistyped
filter would otherwise delete everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any

from qtasks.errors import InvalidCallError
from qtasks.qstash.conversation.operation import segment
from qtasks.qstash.operations.options import check_names

MAX_PAGE = 100
"""Default and maximum number of dead letters of one bulk action."""

_WIRE = {
    "message_id": "messageId",
    "message_ids": "messageIds",
    "dlq_ids": "dlqIds",
    "state": "state",
    "url": "url",
    "host": "host",
    "path": "path",
    "url_group": "topicName",
    "api": "api",
    "queue": "queueName",
    "schedule_id": "scheduleId",
    "from_time": "fromDate",
    "to_time": "toDate",
    "response_status": "responseStatus",
    "caller_ip": "callerIp",
    "label": "label",
    "flow_control_key": "flowControlKey",
}

Pairs = list[tuple[str, str]]


def page(cursor: str | None, count: int | None) -> Pairs:
    """The query parameters that select a page."""
    parameters = (("cursor", cursor), ("count", count))
    return [(name, str(value)) for name, value in parameters if value is not None]


def read(filters: Mapping[str, Any] | None, kind: type) -> Pairs:
    """The query parameters of a filter of a list; None selects everything."""
    fields = filters or {}
    check_names(fields, kind, "filter")
    return [(_WIRE[name], _text(value)) for name, values in fields.items() for value in _each(values)]


def selecting(filters: Mapping[str, Any] | None, kind: type, action: str) -> Pairs:
    """The query parameters of a filter of a bulk action; None selects everything.

    Raises InvalidCallError for an empty filter or an empty value, which would select more than the caller intended.
    """
    if filters is None:
        return []
    if not filters:
        raise InvalidCallError(
            f"an empty filter would {action} everything", fix="leave `filter` out to select everything"
        )
    for name, values in filters.items():
        texts = [_text(value) for value in _each(values)]
        if not texts or not all(text.strip() for text in texts):
            raise InvalidCallError(f"the filter {name!r} is empty, which would {action} more than intended")
    return read(filters, kind)


def ids(listed: Iterable[str], what: str) -> list[str]:
    """The ids of a bulk action. Raises InvalidCallError for an empty id, and for a text instead of a list."""
    if isinstance(listed, str):
        raise InvalidCallError(f"{what} must be a list, not the text {listed!r}")
    named = list(listed)
    for each_id in named:
        segment(each_id, f"each of {what}")
    return named


def _each(values: Any) -> Iterable[Any]:
    if values is None:
        return ()
    return values if isinstance(values, (list, tuple, set, frozenset)) else (values,)


def _text(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, datetime):
        return str(int(value.timestamp() * 1000))
    return str(value)
