"""Dead letters: messages that failed for good (docs/protocol.md 2.9)."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

from qtasks.qstash.conversation.operation import JSON_TYPE, Operation, answer, nothing, query, segment, to_json
from qtasks.qstash.conversation.sync_driver import HttpClient
from qtasks.qstash.conversation.transport import Reply
from qtasks.qstash.message import Message, message_fields
from qtasks.qstash.operations import filters
from qtasks.qstash.operations import options as keywords
from qtasks.qstash.operations.options import PublishKeywords
from qtasks.qstash.operations.publishing import PublishResponse

_PATH = "/v2/dlq"


@dataclass
class DlqMessage(Message):
    """A dead letter: the message, and how its last delivery went."""

    dlq_id: str
    """Id of the dead letter; another than the message's."""
    response_status: int
    """HTTP status of the last delivery; 0 when no response came."""
    response_headers: dict[str, list[str]] | None
    """Headers of the last delivery's response."""
    response_body: str | None
    """Body of the last delivery's response, if it is UTF-8."""
    response_body_base64: str | None
    """The same in base64, if it is not UTF-8."""


class DlqFilter(TypedDict, total=False):
    """Which dead letters: each name takes one value, or a list of which any may match."""

    message_id: str
    """Id of the message."""
    dlq_ids: str | list[str]
    """Ids of dead letters."""
    url: str | list[str]
    """Where the message went."""
    url_group: str | list[str]
    """Name of the URL group."""
    queue: str | list[str]
    """Name of the queue."""
    schedule_id: str | list[str]
    """Id of the schedule."""
    from_time: int
    """Failed for good at this moment or later, Unix milliseconds."""
    to_time: int
    """Failed for good at this moment or earlier, Unix milliseconds."""
    response_status: int | list[int]
    """HTTP status of the last delivery."""
    caller_ip: str | list[str]
    """Address of the publisher."""
    label: str | list[str]
    """Label."""
    flow_control_key: str | list[str]
    """Flow-control key."""


@dataclass
class ListDlqMessagesResponse:
    """A page of dead letters."""

    cursor: str | None
    """What asks for the next page; None on the last."""
    messages: list[DlqMessage]
    """The dead letters, oldest first."""


@dataclass
class DeleteDlqMessagesResponse:
    """What one bulk deletion did."""

    cursor: str | None
    """What goes on with the rest; None when there is none."""
    deleted: int
    """How many are gone."""


@dataclass
class RetryDlqMessagesResponse:
    """What one bulk retry did."""

    cursor: str | None
    """What goes on with the rest; None when there is none."""
    responses: list[PublishResponse] = field(default_factory=list)
    """The new messages."""


def parse_dlq_message(content: Mapping[str, Any], dlq_id: str = "") -> DlqMessage:
    """A dead letter as the service describes it; `dlq_id` stands in for one that it leaves out."""
    return DlqMessage(
        **message_fields(content),
        dlq_id=content.get("dlqId", dlq_id),
        response_status=content["responseStatus"],
        response_headers=content.get("responseHeader"),
        response_body=content.get("responseBody"),
        response_body_base64=content.get("responseBodyBase64"),
    )


def get(dlq_id: str) -> Operation[DlqMessage]:
    """Look at one dead letter."""
    return Operation("GET", _of(dlq_id), lambda reply: parse_dlq_message(answer(reply), dlq_id))


def list_page(cursor: str | None, count: int | None, filter: DlqFilter | None) -> Operation[ListDlqMessagesResponse]:  # noqa: A002
    """One page of dead letters."""
    path = _PATH + query([*filters.page(cursor, count), *filters.read(filter, DlqFilter)])
    return Operation("GET", path, _read_page)


def delete(dlq_id: str) -> Operation[None]:
    """Delete one dead letter."""
    return Operation("DELETE", _of(dlq_id), nothing, absent_is_done=True)


def delete_many(dlq_ids: Iterable[str]) -> Operation[int]:
    """Delete the dead letters named."""
    body = to_json({"dlqIds": filters.ids(dlq_ids, "dlq_ids")})
    return Operation("DELETE", _PATH, lambda reply: int(answer(reply)["deleted"]), headers=JSON_TYPE, body=body)


def delete_all(
    filter: DlqFilter | None,  # noqa: A002
    count: int | None,
    cursor: str | None,
) -> Operation[DeleteDlqMessagesResponse]:
    """Delete a page of what the filter finds. Never repeated after a lost answer: that would take a second page."""
    path = _PATH + query(_selection(filter, count, cursor, "delete"))
    return Operation("DELETE", path, _read_deletion, repeatable=False)


def retry(dlq_id: str, arguments: Mapping[str, Any]) -> Operation[PublishResponse]:
    """Publish one dead letter anew. Never repeated after a lost answer: the letter would be gone."""
    keywords.check_names(arguments, PublishKeywords, "retry()")
    return Operation(
        "POST",
        f"{_PATH}/retry/{segment(dlq_id, 'dlq_id')}",
        lambda reply: _read_published(answer(reply)),
        headers=keywords.headers(keywords.read(arguments), arguments),
        repeatable=False,
    )


def retry_many(dlq_ids: Iterable[str], arguments: Mapping[str, Any]) -> Operation[RetryDlqMessagesResponse]:
    """Publish the dead letters named anew."""
    return _retry([("dlqIds", dlq_id) for dlq_id in filters.ids(dlq_ids, "dlq_ids")], arguments, "retry_many()")


def retry_all(
    filter: DlqFilter | None,  # noqa: A002
    count: int | None,
    cursor: str | None,
    arguments: Mapping[str, Any],
) -> Operation[RetryDlqMessagesResponse]:
    """Publish a page of what the filter finds anew."""
    return _retry(_selection(filter, count, cursor, "retry"), arguments, "retry_all()")


def _retry(pairs: filters.Pairs, arguments: Mapping[str, Any], where: str) -> Operation[RetryDlqMessagesResponse]:
    keywords.check_names(arguments, PublishKeywords, where)
    return Operation(
        "POST",
        f"{_PATH}/retry{query(pairs)}",
        _read_retries,
        headers=keywords.headers(keywords.read(arguments), arguments),
        repeatable=False,
    )


def _selection(arguments: DlqFilter | None, count: int | None, cursor: str | None, action: str) -> filters.Pairs:
    page = filters.page(cursor, filters.MAX_PAGE if count is None else count)
    return [*page, *filters.selecting(arguments, DlqFilter, action)]


def _of(dlq_id: str) -> str:
    return f"{_PATH}/{segment(dlq_id, 'dlq_id')}"


def _read_page(reply: Reply) -> ListDlqMessagesResponse:
    content = answer(reply)
    messages = [parse_dlq_message(entry) for entry in content["messages"]]
    return ListDlqMessagesResponse(cursor=content.get("cursor") or None, messages=messages)


def _read_deletion(reply: Reply) -> DeleteDlqMessagesResponse:
    content = answer(reply)
    return DeleteDlqMessagesResponse(cursor=content.get("cursor") or None, deleted=content["deleted"])


def _read_published(content: Mapping[str, Any]) -> PublishResponse:
    return PublishResponse(message_id=content["messageId"], deduplicated=bool(content.get("deduplicated")))


def _read_retries(reply: Reply) -> RetryDlqMessagesResponse:
    content = answer(reply)
    responses = [_read_published(response) for response in content["responses"]]
    return RetryDlqMessagesResponse(cursor=content.get("cursor") or None, responses=responses)


class DlqApi:
    """The dead letter queue: what failed for good is kept here, to be looked at, retried or deleted."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def get(self, dlq_id: str) -> DlqMessage:
        """Look at a dead letter. Raises ApiError (404) for an unknown one."""
        return self._http.run(get(dlq_id))

    def list(
        self,
        *,
        cursor: str | None = None,
        count: int | None = None,
        filter: DlqFilter | None = None,  # noqa: A002 - the official SDK's name
    ) -> ListDlqMessagesResponse:
        """One page of dead letters, oldest first: at most `count` (default and maximum 100), from `cursor` on."""
        return self._http.run(list_page(cursor, count, filter))

    def delete(self, dlq_id: str) -> None:
        """Delete a dead letter. Raises ApiError (404) for an unknown one."""
        self._http.run(delete(dlq_id))

    def delete_many(self, dlq_ids: builtins.list[str]) -> int:
        """Delete the dead letters named, and return how many there were."""
        return self._http.run(delete_many(dlq_ids)) if dlq_ids else 0

    def delete_all(
        self,
        *,
        filter: DlqFilter | None = None,  # noqa: A002 - as in `list`
        count: int | None = None,
        cursor: str | None = None,
    ) -> DeleteDlqMessagesResponse:
        """Delete what the filter finds, or without one every dead letter: at most `count` (default and maximum 100).

        Go on with the answer's cursor until it is None.
        """
        return self._http.run(delete_all(filter, count, cursor))

    def retry(self, dlq_id: str, **options: Unpack[PublishKeywords]) -> PublishResponse:
        """Publish a dead letter anew, under a new id, and remove it. `options` replace those it was published with."""
        return self._http.run(retry(dlq_id, options))

    def retry_many(self, dlq_ids: builtins.list[str], **options: Unpack[PublishKeywords]) -> RetryDlqMessagesResponse:
        """As `retry`, for all of the dead letters named."""
        return self._http.run(retry_many(dlq_ids, options)) if dlq_ids else RetryDlqMessagesResponse(cursor=None)

    def retry_all(
        self,
        *,
        filter: DlqFilter | None = None,  # noqa: A002 - as in `list`
        count: int | None = None,
        cursor: str | None = None,
        **options: Unpack[PublishKeywords],
    ) -> RetryDlqMessagesResponse:
        """As `retry`, for what the filter finds, or without one for every dead letter, a page at a time."""
        return self._http.run(retry_all(filter, count, cursor, options))
