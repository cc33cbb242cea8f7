"""The body of an end callback, or of a failure callback: how a message ended, in the words of the broker. Pure.

All of it is signed. The URL says which call it was. Of what the message itself contained (`sourceBody`, which only a
failure callback has) only the calls are read that follow a failure.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import PayloadError
from qtasks.protocol import strict_json
from qtasks.protocol.headers import DISPATCHER_HEADER, ENDED_HEADER
from qtasks.protocol.messages import State
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.send.end_callback import answered_error, delivery_failed
from qtasks.tasks.send.outgoing import AFTER_FAILURE

MAX_ID = 128
"""Largest number of characters of a message id."""

_ENDS = (State.FAILED.value, State.CANCELED.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndReport:
    """How a message ended."""

    message_id: str
    is_cancelled: bool
    attempt: int
    """The number of the last attempt, from 1."""
    retries: int
    """How many attempts could follow the first."""
    created_ms: int
    """When the message was published: Unix milliseconds of the broker's clock."""
    reason: str
    """Why it failed: "TypeName: message"."""
    is_known: bool
    """True if the dispatcher has answered that it ended the call itself, hooks included."""
    flow: Mapping[str, Any] = field(default_factory=dict)
    """The calls that follow the failure, as the `flow` of the call has them."""


def read_report(body: bytes) -> EndReport:
    """Parse the body of an end callback. Raises PayloadError for a malformed one."""
    try:
        document: Any = strict_json.loads(body, big_integers=True)
        message_id, retried, retries = (document[name] for name in ("sourceMessageId", "retried", "maxRetries"))
        state = document.get("state", State.FAILED.value)
        if type(retried) is not int or type(retries) is not int or state not in _ENDS:
            raise TypeError("retried and maxRetries must be whole numbers, and state must be FAILED or CANCELED")
        if not isinstance(message_id, str) or not 0 < len(message_id) <= MAX_ID:
            raise TypeError("sourceMessageId must be a message id")
        return EndReport(
            message_id=message_id,
            is_cancelled=state == State.CANCELED.value,
            attempt=retried + 1,
            retries=retries,
            created_ms=int(document["createdAt"]),
            reason=_reason(document),
            is_known=ENDED_HEADER in document.get("header", {}),
            flow=_flow(document),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PayloadError(
            f"the body is not an end callback: {type(error).__name__}: {error}", code=ErrorCode.CALLBACK_INVALID
        ) from None


def _flow(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the message's flow that matters after a failure; empty if it has none."""
    body = base64.b64decode(document.get("sourceBody", ""), validate=True)
    if f'"{AFTER_FAILURE}"'.encode() not in body:
        return {}
    try:
        flow = envelopes.decode(body).flow
    except PayloadError:  # the body of another message, such as a request to a language model
        return {}
    return {AFTER_FAILURE: flow[AFTER_FAILURE]} if AFTER_FAILURE in flow else {}


def _reason(document: Mapping[str, Any]) -> str:
    """The error in the last response if a dispatcher has sent it, else what the broker says."""
    text = base64.b64decode(document.get("body", ""), validate=True)
    is_ours = any(name.lower() == DISPATCHER_HEADER.lower() for name in document.get("header", {}))
    if (error := answered_error(text, document.get("status"), is_ours=is_ours)) is not None:
        return error
    return delivery_failed(document.get("error"), document.get("status"))
