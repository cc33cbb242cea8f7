"""A callback as the dispatcher sees it: what the broker tells of an attempt, and the call that it is told of. Pure."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import PayloadError
from qtasks.protocol import strict_json
from qtasks.tasks.context import TaskContext
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.llm.callback_url import CallbackQuery
from qtasks.tasks.run.decision import DispatchResponse
from qtasks.tasks.send.outgoing import Kept

MAX_ID = 128
"""Characters of a message's id."""


@dataclass(frozen=True, slots=True)
class CallbackBody:
    """What a callback says (docs/protocol.md 4.4). All of it is signed."""

    status: int
    """Of the provider's answer; 0 when there was none."""
    body: bytes = field(repr=False)
    error: str
    """Why there was no answer."""
    retried: int
    retries: int
    message_id: str
    """Of the request."""
    request: bytes = field(repr=False)

    @property
    def is_answer(self) -> bool:
        """Whether the provider did what it was asked."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Callback:
    """A callback, and the call that it is for."""

    query: CallbackQuery
    content: CallbackBody
    envelope: Envelope = field(repr=False)
    body: bytes = field(repr=False)
    kept: Kept | None = field(default=None, repr=False)
    is_lost: bool = False
    """Whether the call was to be kept, and is not to be found: the envelope is empty then."""

    @property
    def is_news(self) -> bool:
        """Whether it only tells how things are: the provider has been asked in vain, and will be asked again."""
        return not self.content.is_answer and not self.query.failed

    @property
    def is_last_of_many(self) -> bool:
        """Whether it tells of a failure that the failure callback tells of as well."""
        return self.is_news and self.content.retried >= self.content.retries

    @property
    def source(self) -> str:
        """Id of the original request to the model."""
        return self.content.message_id if self.query.repair is None else self.query.repair.source

    def adjusted(self, context: TaskContext) -> TaskContext:
        """The context of the callback's delivery with the attempts at the provider instead of those of the callback."""
        context = replace(context, snoozed=self.query.snoozed)
        if self.content.is_answer:
            return context
        return replace(context, attempt=self.content.retried + 1, retries=self.content.retries)

    def refused(self, response: DispatchResponse) -> DispatchResponse:
        """The response if the call, which runs elsewhere or has ended, would be answered with `response`."""
        is_acknowledged = self.is_news or (self.query.failed and response.status == 500)
        return DispatchResponse.acknowledgement() if is_acknowledged else response


def read_body(body: bytes) -> CallbackBody:
    """What a callback says. Raises PayloadError for a body that is none."""
    try:
        document: Any = strict_json.loads(body, big_integers=True)
        status, retried, retries, message_id = (
            document[name] for name in ("status", "retried", "maxRetries", "sourceMessageId")
        )
        if not all(type(number) is int for number in (status, retried, retries)):
            raise TypeError("a number is none")
        if not isinstance(message_id, str) or not 0 < len(message_id) <= MAX_ID:
            raise TypeError("the message has no id")
        return CallbackBody(
            status=status,
            body=base64.b64decode(document.get("body", ""), validate=True),
            error=str(document.get("error", "")),
            retried=retried,
            retries=retries,
            message_id=message_id,
            request=base64.b64decode(document.get("sourceBody", ""), validate=True),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PayloadError(
            f"the body is not a callback: {type(error).__name__}: {error}", code=ErrorCode.CALLBACK_INVALID
        ) from None
