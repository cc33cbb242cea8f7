"""Dead letters: list, retry and delete messages that failed for good (docs/protocol.md 2.9)."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from qtasks.qstash.conversation.operation import JSON_TYPE, Operation, answer, nothing, query, segment, to_json
from qtasks.qstash.conversation.transport import Reply
from qtasks.qstash.message import Message, message_fields
from qtasks.qstash.operations import filters
from qtasks.qstash.operations import options as keywords
from qtasks.qstash.operations.options import PublishKeywords
from qtasks.qstash.operations.publishing import PublishResponse

if TYPE_CHECKING:
    from qtasks.qstash.conversation.sync_driver import HttpClient

_PATH = "/v2/dlq"


@dataclass
class DlqMessage(Message):
    """A dead letter: the message, and the response to its last attempt."""

    dlq_id: str
    """Id of the dead letter; it differs from the message id."""
    response_status: int
    """HTTP status of the last response; 0 if the last attempt got no response."""
    response_headers: dict[str, list[str]] | None
    """Headers of the last response."""
    response_body: str | None
    """Body of the last response, if it is UTF-8."""
    response_body_base64: str | None
    """Body of the last response in base64, if it is not UTF-8."""


class DlqFilter(TypedDict, total=False):
    """Selects dead letters. A filter takes one value, or a list of values of which one must match."""

    message_id: str
    """Id of the message."""
    dlq_ids: str | list[str]
    """Ids of dead letters."""
    url: str | list[str]
    """Destination URL of the message."""
    url_group: str | list[str]
    """Name of the URL group."""
    queue: str | list[str]
    """Name of the queue."""
    schedule_id: str | list[str]
    """Id of the schedule."""
    from_time: int
    """Earliest time of the failure, Unix milliseconds, inclusive."""
    to_time: int
    """Latest time of the failure, Unix milliseconds, inclusive."""
    response_status: int | list[int]
    """HTTP status of the last response."""
    caller_ip: str | list[str]
    """IP address of the publisher."""
    label: str | list[str]
    """Label."""
    flow_control_key: str | list[str]
    """Flow-control key."""


@dataclass
class ListDlqMessagesResponse:
    """One page of dead letters."""

    cursor: str | None
    """Pass it as `cursor` to get the next page; None on the last page."""
    messages: list[DlqMessage]
    """The dead letters, oldest first."""


@dataclass
class DeleteDlqMessagesResponse:
    """The result of one bulk deletion."""

    cursor: str | None
    """Pass it as `cursor` to continue; None if no match is left."""
    deleted: int
    """Number of deleted dead letters."""


@dataclass
class RetryDlqMessagesResponse:
    """The result of one bulk retry."""

    cursor: str | None
    """Pass it as `cursor` to continue; None if no match is left."""
    responses: list[PublishResponse] = field(default_factory=list)
    """The new messages."""


def parse_dlq_message(content: Mapping[str, Any], dlq_id: str = "") -> DlqMessage:
    """Read a dead letter from the JSON of the service. `dlq_id` is used if the JSON has no id."""
    return DlqMessage(
        **message_fields(content),
        dlq_id=content.get("dlqId", dlq_id),
        response_status=content["responseStatus"],
        response_headers=content.get("responseHeader"),
        response_body=content.get("responseBody"),
        response_body_base64=content.get("responseBodyBase64"),
    )


def get(dlq_id: str) -> Operation[DlqMessage]:
    """Get one dead letter."""
    return Operation("GET", _path_of(dlq_id), lambda reply: parse_dlq_message(answer(reply), dlq_id))


def list_page(
    cursor: str | None,
    count: int | None,
    filter: DlqFilter | None,  # noqa: A002
    *,
    newest_first: bool = False,
) -> Operation[ListDlqMessagesResponse]:
    """One page of dead letters, oldest first. `newest_first`: the other way round, if the service knows that order."""
    order = [("order", "latestFirst")] if newest_first else []
    path = _PATH + query([*filters.page(cursor, count), *filters.read(filter, DlqFilter), *order])
    return Operation("GET", path, _read_page)


def delete(dlq_id: str) -> Operation[None]:
    """Delete one dead letter."""
    return Operation("DELETE", _path_of(dlq_id), nothing, absent_is_done=True)


def delete_many(dlq_ids: Iterable[str]) -> Operation[int]:
    """Delete dead letters by id."""
    body = to_json({"dlqIds": filters.ids(dlq_ids, "dlq_ids")})
    return Operation("DELETE", _PATH, lambda reply: int(answer(reply)["deleted"]), headers=JSON_TYPE, body=body)


def delete_all(
    filter: DlqFilter | None,  # noqa: A002
    count: int | None,
    cursor: str | None,
) -> Operation[DeleteDlqMessagesResponse]:
    """Delete one page of matching dead letters. Not repeated after a lost reply: that would delete a second page."""
    path = _PATH + query(_selection(filter, count, cursor, "delete"))
    return Operation("DELETE", path, _read_deletion, repeatable=False)


def retry(dlq_id: str, arguments: Mapping[str, Any]) -> Operation[PublishResponse]:
    """Publish one dead letter again. Not repeated after a lost reply: the dead letter may be removed already."""
    keywords.check_names(arguments, PublishKeywords, "retry()")
    return Operation(
        "POST",
        f"{_PATH}/retry/{segment(dlq_id, 'dlq_id')}",
        lambda reply: _read_published(answer(reply)),
        headers=keywords.headers(keywords.read(arguments), arguments),
        repeatable=False,
    )


def retry_many(dlq_ids: Iterable[str], arguments: Mapping[str, Any]) -> Operation[RetryDlqMessagesResponse]:
    """Publish dead letters again, by id."""
    return _retry([("dlqIds", dlq_id) for dlq_id in filters.ids(dlq_ids, "dlq_ids")], arguments, "retry_many()")


def retry_all(
    filter: DlqFilter | None,  # noqa: A002
    count: int | None,
    cursor: str | None,
    arguments: Mapping[str, Any],
) -> Operation[RetryDlqMessagesResponse]:
    """Publish one page of matching dead letters again."""
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


def _path_of(dlq_id: str) -> str:
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
    """The dead-letter queue: messages that failed for good, kept to be inspected, retried or deleted."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def get(self, dlq_id: str) -> DlqMessage:
        """Get a dead letter. Raises ApiError (404) for an unknown id."""
        return self._http.run(get(dlq_id))

    def list(
        self,
        *,
        cursor: str | None = None,
        count: int | None = None,
        filter: DlqFilter | None = None,  # noqa: A002 - the official SDK's name
    ) -> ListDlqMessagesResponse:
        """One page of dead letters, oldest first: at most `count` (default and maximum 100), starting at `cursor`."""
        return self._http.run(list_page(cursor, count, filter))

    def delete(self, dlq_id: str) -> None:
        """Delete a dead letter. Raises ApiError (404) for an unknown id."""
        self._http.run(delete(dlq_id))

    def delete_many(self, dlq_ids: builtins.list[str]) -> int:
        """Delete dead letters by id, and return how many were deleted."""
        return self._http.run(delete_many(dlq_ids)) if dlq_ids else 0

    def delete_all(
        self,
        *,
        filter: DlqFilter | None = None,  # noqa: A002 - as in `list`
        count: int | None = None,
        cursor: str | None = None,
    ) -> DeleteDlqMessagesResponse:
        """Delete the dead letters that match, or all without a filter: at most `count` (default and maximum 100).

        To delete the rest, call it again with the cursor of the result until the cursor is None.
        """
        return self._http.run(delete_all(filter, count, cursor))

    def retry(self, dlq_id: str, **options: Unpack[PublishKeywords]) -> PublishResponse:
        """Publish a dead letter again under a new message id, and remove it. `options` replace its original options."""
        return self._http.run(retry(dlq_id, options))

    def retry_many(self, dlq_ids: builtins.list[str], **options: Unpack[PublishKeywords]) -> RetryDlqMessagesResponse:
        """As `retry`, for several dead letters by id."""
        return self._http.run(retry_many(dlq_ids, options)) if dlq_ids else RetryDlqMessagesResponse(cursor=None)

    def retry_all(
        self,
        *,
        filter: DlqFilter | None = None,  # noqa: A002 - as in `list`
        count: int | None = None,
        cursor: str | None = None,
        **options: Unpack[PublishKeywords],
    ) -> RetryDlqMessagesResponse:
        """As `retry`, for one page of the dead letters that match, or of all without a filter."""
        return self._http.run(retry_all(filter, count, cursor, options))
