"""A callback: what the broker reports about an attempt to reach the model, and the call that it is about. Pure."""

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
from qtasks.tasks.send.outgoing import StoredCall

MAX_ID = 128
"""Largest number of characters of a message id."""


@dataclass(frozen=True, slots=True)
class CallbackBody:
    """The body of a callback (docs/protocol.md 4.4). All of it is signed."""

    status: int
    """HTTP status of the provider's response; 0 if there was no response."""
    body: bytes = field(repr=False)
    """Body of the provider's response."""
    error: str
    """Why there was no response; empty if there was one."""
    retried: int
    """Number of retries so far."""
    retries: int
    """Number of retries allowed."""
    message_id: str
    """Id of the message with the request to the model."""
    request: bytes = field(repr=False)
    """Body of the request to the model."""

    @property
    def is_answer(self) -> bool:
        """True if the provider answered with a 2xx status."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Callback:
    """A callback, and the call that it is about."""

    query: CallbackQuery
    content: CallbackBody
    envelope: Envelope = field(repr=False)
    body: bytes = field(repr=False)
    stored: StoredCall | None = field(default=None, repr=False)
    is_lost: bool = False
    """True if the result store no longer has the call, which is too large for a header. The envelope is empty then."""

    @property
    def is_interim(self) -> bool:
        """True if it only reports a failed attempt: the broker retries, or the failure callback follows."""
        return not self.content.is_answer and not self.query.failed

    @property
    def repeats_failure_callback(self) -> bool:
        """True for the callback of the last retry: the failure callback reports the same failure."""
        return self.is_interim and self.content.retried >= self.content.retries

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
        """The response to this callback if its call runs elsewhere or has ended: `response`, or an acknowledgement."""
        is_acknowledged = self.is_interim or (self.query.failed and response.status == 500)
        return DispatchResponse.acknowledgement() if is_acknowledged else response


def read_body(body: bytes) -> CallbackBody:
    """Parse the body of a callback. Raises PayloadError for a malformed one."""
    try:
        document: Any = strict_json.loads(body, big_integers=True)
        status, retried, retries, message_id = (
            document[name] for name in ("status", "retried", "maxRetries", "sourceMessageId")
        )
        if not all(type(number) is int for number in (status, retried, retries)):
            raise TypeError("status, retried and maxRetries must be whole numbers")
        if not isinstance(message_id, str) or not 0 < len(message_id) <= MAX_ID:
            raise TypeError("sourceMessageId must be a message id")
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
