"""A call on its way out: the message that carries it, and the requests that carry messages."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError
from qtasks.protocol import wire
from qtasks.protocol.messages import MAX_BODY, PublishOptions
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.results.backend import ResultRecord, ResultStatus
from qtasks.tasks.results.unique import Unique

if TYPE_CHECKING:
    from collections.abc import Callable

    from qtasks.qstash.conversation.operation import Operation
    from qtasks.qstash.conversation.transport import Reply
    from qtasks.qstash.operations.publishing import PublishResponse

BATCH_ITEMS = 100
BATCH_BYTES = 1024 * 1024
"""What one batch request carries, unless a single message is larger; brokers take four times as much."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A text that is too large to travel with its message."""

    key: str
    text: str = field(repr=False)

    def record(self, task: str, now_ms: int, status: ResultStatus = ResultStatus.QUEUED) -> ResultRecord:
        """As the result backend keeps it: as long as the call is not done, then for the time that results are kept.

        After a failure it is still there, for somebody may send the dead letter again.
        """
        text = None if status is ResultStatus.SUCCEEDED else self.text
        return ResultRecord(
            call_id=self.key, message_id=self.key, task=task, status=status, attempt=1, updated_ms=now_ms, value=text
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One message, ready to be sent."""

    task: str
    call_id: str
    body: bytes = field(repr=False)
    options: PublishOptions
    queue: str | None = None
    envelope: Envelope | None = field(default=None, repr=False)
    """What `body` was made from."""
    unique: Unique | None = None
    """The key that it has to get before it is sent."""

    @property
    def kept(self) -> Kept | None:
        """What the result backend must have before it is sent."""
        return None

    def addressed(self, base_url: str) -> tuple[str, PublishOptions]:
        """Where it goes, and how, for a dispatcher that is reached at `base_url`."""
        return f"{base_url}/{self.task}", self.options

    @property
    def carried(self) -> Mapping[str, str]:
        """What travels beside the arguments, for middleware; a task finds it in its context."""
        return {} if self.envelope is None else self.envelope.carried

    def carrying(self, more: Mapping[str, str]) -> Outgoing:
        """The same message with `more` to carry."""
        assert self.envelope is not None
        return replace(self, envelope=replace(self.envelope, carried={**self.carried, **more}))

    def sealed(self) -> Outgoing:
        """The same message with the body that its envelope makes. Raises ArgumentsError for one that is too large."""
        assert self.envelope is not None
        body = envelopes.encode(self.envelope)
        if len(body) > MAX_BODY:
            raise ArgumentsError(
                f"{self.task}: what the message carries makes {len(body):,} bytes; {MAX_BODY:,} are allowed",
                code=ErrorCode.CALL_TOO_LARGE,
            )
        return replace(self, body=body)


def again(task: str, call_id: str, envelope: Envelope, declared: PublishOptions, delay_ms: int) -> Outgoing:
    """A call, to be published once more; not through its queue, which knows no delay.

    `declared` are the options of its task, for a call that travels without its own.
    """
    options = wire.read(envelope.options.items()) if envelope.options else declared
    # A delivery that is made twice must not put the call off twice.
    once = hashlib.sha256(f"{call_id} snoozed {envelope.snoozed}".encode()).hexdigest()
    options = replace(
        options,
        method="POST",
        content_type="application/json",
        retries=envelope.retries,
        delay_ms=delay_ms,
        not_before_s=None,
        deduplication_id=once,
    )
    body = envelopes.encode(replace(envelope, call_id=call_id, snoozed=envelope.snoozed + 1))
    return Outgoing(task=task, call_id=call_id, body=body, options=options)


@dataclass(frozen=True, slots=True)
class Refused:
    """A message of a batch that the broker did not take, and its words."""

    error: str


def call(message: Outgoing, base_url: str, retry_id: str | None) -> Operation[PublishResponse]:
    """The request that sends one message, through its queue if it has one."""
    from qtasks.qstash.conversation import operation
    from qtasks.qstash.operations import publishing

    target, options = message.addressed(base_url)
    if message.queue is None:
        return publishing.publish_raw(target, message.body, options, retry_id=retry_id)
    sealed = publishing.Sealed.of(options, retry_id)
    return operation.Operation(
        "POST",
        f"/v2/enqueue/{operation.segment(message.queue, 'queue')}/{operation.destination(target)}",
        lambda reply: _accepted(operation.answer(reply), ours=sealed.ours),
        headers=wire.write(sealed.options),
        body=message.body,
    )


def batch(
    messages: Sequence[Outgoing], base_url: str, new_retry_id: Callable[[], str | None]
) -> Operation[list[PublishResponse | Refused]]:
    """The request that sends many messages at once. One that is refused does not touch the others."""
    from qtasks.qstash.conversation import operation
    from qtasks.qstash.operations import publishing

    addressed = [message.addressed(base_url) for message in messages]
    sealed = [publishing.Sealed.of(options, new_retry_id()) for _, options in addressed]
    items = [
        {
            "destination": operation.url_text(target),
            "headers": dict(wire.write(one.options)),
            "body": message.body.decode(),
            "queue": message.queue,
        }
        for message, (target, _), one in zip(messages, addressed, sealed, strict=True)
    ]

    def read(reply: Reply) -> list[PublishResponse | Refused]:
        answers = operation.answer(reply)
        if len(answers) != len(sealed):
            raise ValueError(f"{len(answers)} answers for {len(sealed)} messages")
        return [_answer(content, ours=one.ours) for content, one in zip(answers, sealed, strict=True)]

    return operation.Operation("POST", "/v2/batch", read, headers=operation.JSON_TYPE, body=operation.to_json(items))


def portions(messages: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    """Messages in groups that fit into one batch request each, order kept."""
    sizes = itertools.accumulate(len(message.body) for message in messages)
    ends = list(sizes)
    begin = 0
    while begin < len(messages):
        sent = ends[begin - 1] if begin else 0
        end = begin + 1
        while end < len(messages) and end - begin < BATCH_ITEMS and ends[end] - sent <= BATCH_BYTES:
            end += 1
        yield messages[begin:end]
        begin = end


def _answer(content: Any, *, ours: bool) -> PublishResponse | Refused:
    if "messageId" not in content and "error" in content:
        return Refused(str(content["error"]))
    return _accepted(content, ours=ours)


def _accepted(content: Any, *, ours: bool) -> PublishResponse:
    from qtasks.qstash.operations.publishing import PublishResponse

    return PublishResponse(message_id=content["messageId"], deduplicated=bool(content.get("deduplicated")) and not ours)
