"""Logs: what happened to messages, newest first (docs/protocol.md 2.10)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from qtasks.qstash.conversation.operation import HttpMethod, Operation, answer, query
from qtasks.qstash.conversation.sync_driver import HttpClient
from qtasks.qstash.conversation.transport import Reply
from qtasks.qstash.message import FlowControlProperties, parse_flow_control
from qtasks.qstash.operations import filters


class LogState(enum.Enum):
    """What happened to a message."""

    CREATED = "CREATED"
    """It was accepted and stored."""
    ACTIVE = "ACTIVE"
    """A delivery began."""
    RETRY = "RETRY"
    """It will be delivered again."""
    ERROR = "ERROR"
    """A delivery failed."""
    DELIVERED = "DELIVERED"
    """It was delivered."""
    FAILED = "FAILED"
    """It has failed for good."""
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    """A cancellation was requested."""
    CANCELED = "CANCELED"
    """It will not be delivered any more."""
    IN_PROGRESS = "IN_PROGRESS"
    """In filters only: ACTIVE, RETRY or ERROR."""
    UNKNOWN = "UNKNOWN"
    """A state that this version does not know."""

    @classmethod
    def _missing_(cls, value: object) -> LogState:
        return cls.CANCELED if value == "CANCELLED" else cls.UNKNOWN


@dataclass
class Log:
    """One line of a message's history. Times are Unix milliseconds."""

    time: int
    """When it happened."""
    message_id: str
    """Id of the message."""
    state: LogState
    """What happened."""
    error: str | None
    """What went wrong, if anything."""
    next_delivery_time: int | None
    """When the next delivery is due, if there is to be one."""
    url: str
    """Where the message goes."""
    url_group: str | None
    """The URL group it was published to, if any."""
    endpoint: str | None
    """Name of the group's endpoint, if it has one."""
    queue: str | None
    """The queue it went through, if any."""
    schedule_id: str | None
    """The schedule that made it, if any."""
    body_base64: str | None
    """Its body, in base64."""
    headers: dict[str, list[str]] | None
    """Headers that the destination gets."""
    callback_headers: dict[str, list[str]] | None
    """Headers that the callback URL gets."""
    failure_callback_headers: dict[str, list[str]] | None
    """Headers that the failure callback URL gets."""
    response_status: int | None
    """HTTP status of the failed delivery."""
    response_headers: dict[str, list[str]] | None
    """Headers of the failed delivery's response."""
    response_body: str | None
    """Body of the failed delivery's response."""
    timeout: int | None
    """Milliseconds that a delivery may take."""
    method: HttpMethod | None
    """HTTP method of the delivery."""
    callback: str | None
    """URL that gets a message after every attempt."""
    failure_callback: str | None
    """URL that gets a message when the message has failed for good."""
    max_retries: int | None
    """Deliveries after the first, when that fails."""
    retry_delay_expression: str | None
    """The `retry_delay` it was published with, if any."""
    flow_control: FlowControlProperties | None
    """Its flow control, if any."""
    label: str | None
    """Its first label, if any."""
    labels: list[str] | None = field(default=None, kw_only=True)
    """All of its labels."""
    api: str | None = field(default=None, kw_only=True)
    """Name of the API it was published to, if any."""


class LogFilter(TypedDict, total=False):
    """Which lines of the log: each name takes one value, or a list of which any may match."""

    message_id: str
    """Id of the message."""
    message_ids: list[str]
    """Ids of messages."""
    state: LogState
    """What happened."""
    url: str | list[str]
    """Where the message goes."""
    host: str | list[str]
    """Host of that URL."""
    path: str | list[str]
    """Path of that URL."""
    url_group: str | list[str]
    """Name of the URL group."""
    api: str
    """Name of the API; of the 2.x line."""
    queue: str | list[str]
    """Name of the queue."""
    schedule_id: str | list[str]
    """Id of the schedule."""
    from_time: int
    """From this moment, Unix milliseconds, inclusive."""
    to_time: int
    """Up to this moment, Unix milliseconds, inclusive."""
    caller_ip: str | list[str]
    """Address of the publisher."""
    flow_control_key: str | list[str]
    """Flow-control key."""
    label: str | list[str]
    """Label."""


@dataclass
class ListLogsResponse:
    """A page of the log."""

    cursor: str | None
    """What asks for the next page; None on the last."""
    logs: list[Log]
    """The lines, newest first."""


def parse_log(content: Mapping[str, Any]) -> Log:
    """A line of the log as the service describes it. Both spellings that the services use are understood."""
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
        """One page of the log, newest first: at most `count` lines (default and maximum 1000), from `cursor` on."""
        return self._http.run(list_page(cursor, count, filter))
