"""Filters of lists and bulk actions, read from the query or a JSON body (docs/protocol.md 2.0)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from qtasks.broker.api.api_request import MAX_VALUES, ApiRequest, HttpError, Query, read_json
from qtasks.broker.core.values import DeadLetterCriteria, LogCriteria, MessageCriteria
from qtasks.protocol.messages import State

SLICE: Final = 100
"""Limit for the messages that one transaction of a bulk action changes: a few milliseconds of work."""
_MAX_BODY: Final = 1024 * 1024
"""Limit for a JSON body with filters, bytes."""
_ABOUT_MESSAGES: Final = frozenset(
    {
        "url",
        "topicName",
        "queueName",
        "scheduleId",
        "flowControlKey",
        "label",
        "callerIp",
        "callerIP",
        "fromDate",
        "toDate",
        "count",
        "qstash_token",
    }
)
CANCEL_NAMES: Final = _ABOUT_MESSAGES | {"messageIds", "messageId", "host", "path"}
DEAD_LETTER_NAMES: Final = _ABOUT_MESSAGES | {"messageId", "messageIds", "dlqIds", "dlqId", "responseStatus", "cursor"}
"""Without host and path, which the dead-letter queue of the hosted service does not support either."""

_BLANK_ALLOWED: Final = frozenset({"cursor", "qstash_token"})

_IN_PROGRESS: Final = (State.ACTIVE, State.RETRY, State.ERROR)


async def read(request: ApiRequest, names: frozenset[str]) -> Query:
    """The selection of a destructive request, from its query or its JSON body. `names` are the supported filters.

    HttpError 400 for an unknown name: a misspelt filter must not select everything. Also for a filter with an empty
    value, and for a path that ends with a slash without any filter: the caller's variable was probably empty
    (docs/protocol.md 2.5).
    """
    body = await request.read_body(_MAX_BODY)
    query = Query(request.query)
    if body.strip():
        query.add(_fields(await read_json(body)))
    if request.path.endswith("/") and not body.strip() and not query.names() - {"qstash_token"}:
        raise HttpError(400, "the path ends with a slash and nothing is selected: is an id empty?")
    if unknown := sorted(query.names() - names):
        supported = ", ".join(sorted(names - {"qstash_token", "callerIP"}))
        raise HttpError(400, f"unknown filter {unknown[0][:64]!r}; known are {supported}")
    if empty := sorted(name for name in query.names() - _BLANK_ALLOWED if query.is_blank(name)):
        raise HttpError(400, f"{empty[0]} has an empty value; leave it out to select without it")
    return query


def slices(ids: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Ids in portions, one per transaction, so that other writers need not wait for all of them."""
    return (ids[start : start + SLICE] for start in range(0, len(ids), SLICE))


def _fields(body: Any) -> dict[str, list[str]]:
    """The members of a JSON body, in the form of query parameters."""
    if not isinstance(body, dict):
        raise HttpError(400, "expected a JSON object")
    fields: dict[str, list[str]] = {}
    for name, value in body.items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int) and not isinstance(item, bool) for item in values):
            raise HttpError(400, f"{name[:64]}: expected a text, a whole number, or an array of them")
        fields[name] = [str(item) for item in values]
    return fields


def message_filter(query: Query) -> MessageCriteria:
    """The filter of a cancellation. Its dates, as those of all filters here, are wall times as the user gave them."""
    return MessageCriteria(hosts=query.several("host"), paths=_starting(query, "path", "/"), **_about_messages(query))


def log_filter(query: Query) -> LogCriteria:
    """The filter of the log."""
    return LogCriteria(
        message_ids=query.several("messageId", "messageIds"),
        hosts=query.several("host"),
        paths=_starting(query, "path", "/"),
        states=_states(query.several("state")),
        oldest_first=query.last("order") == "earliestFirst",
        **_about_messages(query),
    )


def dead_letter_filter(query: Query) -> DeadLetterCriteria:
    """The filter of the dead-letter queue."""
    return DeadLetterCriteria(
        ids=query.several("dlqIds", "dlqId", most=None),
        message_ids=query.several("messageId", "messageIds"),
        statuses=tuple(_status(text) for text in query.several("responseStatus")),
        newest_first=query.last("order") == "latestFirst",
        **_about_messages(query),
    )


def _about_messages(query: Query) -> dict[str, Any]:
    return {
        "urls": _starting(query, "url", "http://", "https://"),
        "url_groups": query.several("topicName"),
        "queues": query.several("queueName"),
        "schedule_ids": query.several("scheduleId"),
        "flow_keys": query.several("flowControlKey", split=False),
        "caller_ips": query.several("callerIp", "callerIP"),
        "labels": query.several("label"),
        "from_ms": query.integer("fromDate"),
        "to_ms": query.integer("toDate"),
    }


def _starting(query: Query, name: str, *starts: str) -> tuple[str, ...]:
    """Values that may contain commas: split at commas only if every part begins with one of `starts`.

    Otherwise a filter would match more than it says, and these filters also cancel and delete.
    """
    values: list[str] = []
    for text in query.several(name, split=False):
        parts = [part.strip() for part in text.split(",")]
        values += [text, *parts] if all(part.startswith(starts) for part in parts) else [text]
    if len(distinct := tuple(dict.fromkeys(values))) > MAX_VALUES:
        raise HttpError(400, f"{name}: too many values: {len(distinct)} > {MAX_VALUES}")
    return distinct


def _states(names: tuple[str, ...]) -> tuple[State, ...]:
    states: list[State] = []
    for name in names:
        upper = name.upper()
        if upper == "IN_PROGRESS":
            states += _IN_PROGRESS
        elif upper == "CANCELLED":
            states.append(State.CANCELED)
        elif upper in State.__members__:
            states.append(State[upper])
        else:
            raise HttpError(400, f"state: unknown state {name[:40]!r}; expected one of {', '.join(State)}, IN_PROGRESS")
    return tuple(states)


def _status(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 3):
        raise HttpError(400, f"responseStatus: expected an HTTP status such as 404, got {text[:40]!r}")
    return int(text)
