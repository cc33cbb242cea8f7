"""Messages: publish, enqueue, batch, get, cancel (docs/protocol.md 2.2 to 2.5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from qtasks.qstash.conversation.operation import (
    JSON_TYPE,
    HttpMethod,
    Operation,
    answer,
    nothing,
    query,
    segment,
    to_json,
)
from qtasks.qstash.conversation.transport import Reply
from qtasks.qstash.operations import filters, publishing
from qtasks.qstash.operations.options import EnqueueTarget, FlowControl, PublishTarget, Redact
from qtasks.qstash.operations.providers import LlmApi
from qtasks.qstash.operations.publishing import (
    BatchError,
    BatchJsonRequest,
    BatchRequest,
    BatchResponse,
    BatchUrlGroupResponse,
    Body,
    EnqueueResponse,
    EnqueueUrlGroupResponse,
    PublishResponse,
    PublishUrlGroupResponse,
)

if TYPE_CHECKING:
    from qtasks.qstash.conversation.sync_driver import HttpClient

__all__ = [
    "ApiT",
    "BatchError",
    "BatchJsonRequest",
    "BatchRequest",
    "BatchResponse",
    "BatchUrlGroupResponse",
    "DeliveryStatus",
    "EnqueueResponse",
    "EnqueueUrlGroupResponse",
    "FlowControl",
    "FlowControlProperties",
    "LlmApi",
    "Message",
    "MessageApi",
    "MessageFilter",
    "PublishResponse",
    "PublishUrlGroupResponse",
    "Redact",
]

_PATH = "/v2/messages"

ApiT = LlmApi
"""Every kind of `api` destination."""


@dataclass
class FlowControlProperties:
    """The flow control of a message as the service reports it."""

    key: str
    """Name of the key."""
    parallelism: int | None
    """Limit of attempts of the key that run at the same time."""
    rate: int | None
    """Limit of attempts of the key that start within one period."""
    period: int | None
    """Length of the period in seconds."""


@dataclass
class DeliveryStatus:
    """What has happened to a message of `qtasks broker`, and what it waits for."""

    state: str
    """State of the last log entry, such as ``RETRY``."""
    retried: int
    """Retries so far."""
    last_error: str | None
    """Why the last attempt without success failed."""
    next_delivery_time: int | None
    """When the message is due, if that lies ahead; Unix milliseconds."""
    waits_for: str | None
    """What keeps the message from starting, in words: ``delay``, ``retry``, ``queue reports``."""
    dlq_id: str | None
    """Id of the dead letter, if the message is one."""


@dataclass
class Message:
    """A stored message. Times are Unix milliseconds."""

    message_id: str
    """Id of the message."""
    url: str
    """Destination URL."""
    url_group: str | None
    """The URL group that the message was published to, if any."""
    endpoint: str | None
    """Name of the endpoint in the URL group, if it has one."""
    queue: str | None
    """The queue of the message, if any."""
    body: str | None
    """The body, if it is UTF-8."""
    body_base64: str | None
    """The body in base64, if it is not UTF-8."""
    method: HttpMethod
    """HTTP method of the delivery."""
    headers: dict[str, list[str]] | None
    """Headers that the destination gets."""
    callback_headers: dict[str, list[str]] | None
    """Headers that the callback URL gets."""
    failure_callback_headers: dict[str, list[str]] | None
    """Headers that the failure callback URL gets."""
    max_retries: int
    """Retries after the first attempt at most."""
    retry_delay_expression: str | None
    """The option `retry_delay` of the message, if any."""
    not_before: int
    """Earliest time of the delivery."""
    created_at: int
    """Time at which the message was accepted."""
    callback: str | None
    """URL that gets a message after every attempt."""
    failure_callback: str | None
    """URL that gets a message when the message has failed for good."""
    schedule_id: str | None
    """The schedule that created the message, if any."""
    caller_ip: str | None
    """IP address of the publisher."""
    flow_control: FlowControlProperties | None
    """The flow control of the message, if any."""
    label: str | None
    """First label of the message, if any."""
    labels: list[str] | None = field(default=None, kw_only=True)
    """All labels of the message."""
    call_id: str | None = field(default=None, kw_only=True)
    """The call that the message carries; only `qtasks broker` knows it."""
    status: DeliveryStatus | None = field(default=None, kw_only=True)
    """What has happened to the message; only in the result of `get`."""


class MessageFilter(TypedDict, total=False):
    """Selects messages. A filter takes one value, or a list of values of which one must match."""

    url: str | list[str]
    """Destination URL of the message."""
    host: str | list[str]
    """Host of the destination URL."""
    path: str | list[str]
    """Path of the destination URL."""
    url_group: str | list[str]
    """Name of the URL group."""
    queue: str | list[str]
    """Name of the queue."""
    schedule_id: str | list[str]
    """Id of the schedule."""
    from_time: int
    """Earliest time of acceptance, Unix milliseconds, inclusive."""
    to_time: int
    """Latest time of acceptance, Unix milliseconds, inclusive."""
    caller_ip: str | list[str]
    """IP address of the publisher."""
    label: str | list[str]
    """Label."""
    flow_control_key: str | list[str]
    """Flow-control key."""


def parse_flow_control(content: Mapping[str, Any]) -> FlowControlProperties | None:
    """Read the flow control from the JSON of a message, log entry or schedule; None if it has none."""
    if "flowControlKey" not in content:
        return None
    return FlowControlProperties(
        key=content["flowControlKey"],
        parallelism=content.get("parallelism"),
        rate=content.get("rate"),
        period=content.get("period"),
    )


def message_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields of a `Message` from JSON. A dead letter has the same fields."""
    return {
        "message_id": content["messageId"],
        "url": content["url"],
        "url_group": content.get("topicName"),
        "endpoint": content.get("endpointName"),
        "queue": content.get("queueName"),
        "body": content.get("body"),
        "body_base64": content.get("bodyBase64"),
        "method": content["method"],
        "headers": content.get("header"),
        "callback_headers": content.get("callbackHeader"),
        "failure_callback_headers": content.get("failureCallbackHeader"),
        "max_retries": content["maxRetries"],
        "retry_delay_expression": content.get("retryDelayExpression"),
        "not_before": content["notBefore"],
        "created_at": content["createdAt"],
        "callback": content.get("callback"),
        "failure_callback": content.get("failureCallback"),
        "schedule_id": content.get("scheduleId"),
        "caller_ip": content.get("callerIP"),
        "flow_control": parse_flow_control(content),
        "label": content.get("label"),
        "labels": content.get("labels"),
        "call_id": content.get("callId"),
    }


def _read_message(reply: Reply) -> Message:
    content = answer(reply)
    return Message(**message_fields(content), status=_read_status(content))


def _read_status(content: Mapping[str, Any]) -> DeliveryStatus | None:
    if "state" not in content:
        return None
    return DeliveryStatus(
        state=content["state"],
        retried=content["retried"],
        last_error=content.get("lastError"),
        next_delivery_time=content.get("nextDeliveryTime"),
        waits_for=content.get("waitsFor"),
        dlq_id=content.get("dlqId"),
    )


def get(message_id: str) -> Operation[Message]:
    """Get one message. `qtasks broker` also takes the id of a call."""
    return Operation("GET", _path_of(message_id), _read_message)


def cancel(message_id: str) -> Operation[None]:
    """Cancel one message."""
    return Operation("DELETE", _path_of(message_id), nothing, absent_is_done=True)


def cancel_many(message_ids: Iterable[str]) -> Operation[int]:
    """Cancel messages by id. The caller must pass at least one id: a request without ids cancels every message."""
    body = to_json({"messageIds": filters.ids(message_ids, "message_ids")})
    return Operation("DELETE", _PATH, _read_cancelled, headers=JSON_TYPE, body=body)


def cancel_all(filter: MessageFilter | None, count: int | None) -> Operation[int]:  # noqa: A002
    """Cancel the messages that match, or all without a filter."""
    pairs = [*filters.page(None, count), *filters.selecting(filter, MessageFilter, "cancel")]
    return Operation("DELETE", _PATH + query(pairs), _read_cancelled, repeatable=count is None)


def _path_of(message_id: str) -> str:
    return f"{_PATH}/{segment(message_id, 'message_id')}"


def _read_cancelled(reply: Reply) -> int:
    return int(answer(reply)["cancelled"])


class MessageApi:
    """Messages. `operations.options` describes the keyword arguments. An empty id raises InvalidCallError."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def publish(
        self, *, body: Body = None, **options: Unpack[PublishTarget]
    ) -> PublishResponse | list[PublishUrlGroupResponse]:
        """Publish a message to exactly one of `url`, `url_group` or `api`.

        The message is stored when this returns. For a URL group the result is a list with one element for each
        endpoint.
        """
        return self._http.run(publishing.publish(body, options, retry_id=self._http.new_retry_id()))

    def publish_json(
        self, *, body: Any = None, **options: Unpack[PublishTarget]
    ) -> PublishResponse | list[PublishUrlGroupResponse]:
        """As `publish`, with a body that is encoded as JSON."""
        text, arguments = publishing.as_json(body, options)
        return self._http.run(publishing.publish(text, arguments, retry_id=self._http.new_retry_id()))

    def enqueue(
        self, *, queue: str, body: Body = None, **options: Unpack[EnqueueTarget]
    ) -> EnqueueResponse | list[EnqueueUrlGroupResponse]:
        """Append a message to a queue. A queue that does not exist is created."""
        return self._http.run(publishing.enqueue(queue, body, options, retry_id=self._http.new_retry_id()))

    def enqueue_json(
        self, *, queue: str, body: Any = None, **options: Unpack[EnqueueTarget]
    ) -> EnqueueResponse | list[EnqueueUrlGroupResponse]:
        """As `enqueue`, with a body that is encoded as JSON."""
        text, arguments = publishing.as_json(body, options)
        return self._http.run(publishing.enqueue(queue, text, arguments, retry_id=self._http.new_retry_id()))

    def batch(self, messages: Iterable[BatchRequest]) -> list[BatchResponse | list[BatchUrlGroupResponse] | BatchError]:
        """Publish or enqueue many messages in one request. Returns one answer for each message, in order.

        The answer for a message that the service refuses is a `BatchError`; the other messages are not affected.
        """
        return self._http.run(publishing.batch(messages, new_retry_id=self._http.new_retry_id))

    def batch_json(
        self, messages: Iterable[BatchJsonRequest]
    ) -> list[BatchResponse | list[BatchUrlGroupResponse] | BatchError]:
        """As `batch`, with bodies that are encoded as JSON."""
        return self.batch(publishing.batch_as_json(messages))

    def get(self, message_id: str) -> Message:
        """Get a message. Raises ApiError (404) if it is unknown, or finished and removed."""
        return self._http.run(get(message_id))

    def cancel(self, message_id: str) -> None:
        """Cancel a message. A running attempt is not stopped, but no retry follows it."""
        self._http.run(cancel(message_id))

    def cancel_many(self, message_ids: list[str]) -> int:
        """Cancel messages by id, and return how many were cancelled. An empty list cancels none."""
        return self._http.run(cancel_many(message_ids)) if message_ids else 0

    def cancel_all(
        self,
        *,
        filter: MessageFilter | None = None,  # noqa: A002 - as in the other lists of the SDK
        count: int | None = None,
    ) -> int:
        """Cancel the messages that match, or all without a filter, and return how many were cancelled.

        `count` limits the number (1 to 500). If the service stops with an error, some messages are cancelled already:
        call it again to cancel the rest.
        """
        return self._http.run(cancel_all(filter, count))
