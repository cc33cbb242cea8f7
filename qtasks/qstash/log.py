"""The log: the history of messages, newest entry first (docs/protocol.md 2.10)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from qtasks.qstash.conversation.operation import HttpMethod, Operation, answer, query
from qtasks.qstash.conversation.transport import Reply
from qtasks.qstash.message import FlowControlProperties, parse_flow_control
from qtasks.qstash.operations import filters

if TYPE_CHECKING:
    from qtasks.qstash.conversation.sync_driver import HttpClient


class LogState(enum.Enum):
    """The state of a message in a log entry."""

    CREATED = "CREATED"
    """The message was accepted and stored."""
    ACTIVE = "ACTIVE"
    """An attempt started."""
    RETRY = "RETRY"
    """A retry will follow."""
    ERROR = "ERROR"
    """An attempt failed."""
    DELIVERED = "DELIVERED"
    """The message was delivered."""
    FAILED = "FAILED"
    """The message has failed for good."""
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    """A cancellation was requested."""
    CANCELED = "CANCELED"
    """The message was cancelled: no attempt follows."""
    IN_PROGRESS = "IN_PROGRESS"
    """In filters only: ACTIVE, RETRY or ERROR."""
    UNKNOWN = "UNKNOWN"
    """A state that this version does not know."""

    @classmethod
    def _missing_(cls, value: object) -> LogState:
        return cls.CANCELED if value == "CANCELLED" else cls.UNKNOWN


@dataclass
class Log:
    """One entry of a message's history. Times are Unix milliseconds."""

    time: int
    """Time of the entry."""
    message_id: str
    """Id of the message."""
    state: LogState
    """State of the message."""
    error: str | None
    """The error text, if there is one."""
    next_delivery_time: int | None
    """Time of the next attempt, if one will follow."""
    url: str
    """Destination URL of the message."""
    url_group: str | None
    """The URL group that the message was published to, if any."""
    endpoint: str | None
    """Name of the endpoint in the URL group, if it has one."""
    queue: str | None
    """The queue of the message, if any."""
    schedule_id: str | None
    """The schedule that created the message, if any."""
    body_base64: str | None
    """The body of the message, in base64."""
    headers: dict[str, list[str]] | None
    """Headers that the destination gets."""
    callback_headers: dict[str, list[str]] | None
    """Headers that the callback URL gets."""
    failure_callback_headers: dict[str, list[str]] | None
    """Headers that the failure callback URL gets."""
    response_status: int | None
    """HTTP status of the response to the failed attempt."""
    response_headers: dict[str, list[str]] | None
    """Headers of that response."""
    response_body: str | None
    """Body of that response."""
    timeout: int | None
    """Milliseconds that one attempt may take."""
    method: HttpMethod | None
    """HTTP method of the delivery."""
    callback: str | None
    """URL that gets a message after every attempt."""
    failure_callback: str | None
    """URL that gets a message when the message has failed for good."""
    max_retries: int | None
    """Retries after the first attempt at most."""
    retry_delay_expression: str | None
    """The option `retry_delay` of the message, if any."""
    flow_control: FlowControlProperties | None
    """The flow control of the message, if any."""
    label: str | None
    """First label of the message, if any."""
    labels: list[str] | None = field(default=None, kw_only=True)
    """All labels of the message."""
    api: str | None = field(default=None, kw_only=True)
    """Name of the API that the message was published to, such as ``llm``, if any."""


class LogFilter(TypedDict, total=False):
    """Selects log entries. A filter takes one value, or a list of values of which one must match."""

    message_id: str
    """Id of the message."""
    message_ids: list[str]
    """Ids of messages."""
    state: LogState
    """State of the message."""
    url: str | list[str]
    """Destination URL of the message."""
    host: str | list[str]
    """Host of the destination URL."""
    path: str | list[str]
    """Path of the destination URL."""
    url_group: str | list[str]
    """Name of the URL group."""
    api: str
    """Name of the API; an option of the 2.x API."""
    queue: str | list[str]
    """Name of the queue."""
    schedule_id: str | list[str]
    """Id of the schedule."""
    from_time: int
    """Earliest time of the entry, Unix milliseconds, inclusive."""
    to_time: int
    """Latest time of the entry, Unix milliseconds, inclusive."""
    caller_ip: str | list[str]
    """IP address of the publisher."""
    flow_control_key: str | list[str]
    """Flow-control key."""
    label: str | list[str]
    """Label."""


@dataclass
class ListLogsResponse:
    """One page of the log."""

    cursor: str | None
    """Pass it as `cursor` to get the next page; None on the last page."""
    logs: list[Log]
    """The log entries, newest first."""


def parse_log(content: Mapping[str, Any]) -> Log:
    """Read a log entry from the JSON of the service, in either of the two spellings that services use."""
    return Log(
        time=content["time"],
        message_id=content["messageId"],
        state=LogState(content["state"]),
        error=content.get("error"),
        next_delivery_time=content.get("nextDeliveryTime"),
        url=content["url"],
        url_group=content.get("topicName"),
        endpoint=content.get("endpointName"),
        queue=content.get("queueName"),
        schedule_id=content.get("scheduleId"),
        body_base64=content.get("body"),
        headers=content.get("header"),
        callback_headers=content.get("callbackHeaders", content.get("callbackHeader")),
        failure_callback_headers=content.get("failureCallbackHeaders", content.get("failureCallbackHeader")),
        response_status=content.get("responseStatus"),
        response_headers=content.get("responseHeader", content.get("responseHeaders")),
        response_body=content.get("responseBody"),
        timeout=content.get("timeout"),
        method=content.get("method"),
        callback=content.get("callback"),
        failure_callback=content.get("failureCallback"),
        max_retries=content.get("maxRetries"),
        retry_delay_expression=content.get("retryDelayExpr", content.get("retryDelayExpression")),
        flow_control=parse_flow_control(content),
        label=content.get("label"),
        labels=content.get("labels"),
        api=content.get("api"),
    )


def list_page(cursor: str | None, count: int | None, filter: LogFilter | None) -> Operation[ListLogsResponse]:  # noqa: A002
    """One page of the log."""
    path = "/v2/events" + query([*filters.page(cursor, count), *filters.read(filter, LogFilter)])
    return Operation("GET", path, _read_page)


def _read_page(reply: Reply) -> ListLogsResponse:
    content = answer(reply)
    return ListLogsResponse(
        cursor=content.get("cursor") or None, logs=[parse_log(event) for event in content["events"]]
    )


class LogApi:
    """The log of all messages."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def list(
        self,
        *,
        cursor: str | None = None,
        count: int | None = None,
        filter: LogFilter | None = None,  # noqa: A002 - the official SDK's name
    ) -> ListLogsResponse:
        """One page of the log, newest first: at most `count` (default and maximum 1000) entries from `cursor` on."""
        return self._http.run(list_page(cursor, count, filter))
