"""The end callback of a call: what its message asks of the broker, and the URL at which its end is reported. Pure.

    https://app.example.com/qtasks/_end?task=resize&call=call_0f3a...

The broker calls the URL once when the message has failed for good or was cancelled. It signs the URL, so
the URL vouches for everything in its query. The dispatcher (`run.end_handler`) then ends the call: an end that it did
not see (its process was killed, or was not there) would otherwise be known to the broker alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from qtasks.error_codes import ErrorCode
from qtasks.errors import PayloadError
from qtasks.protocol.messages import DEFAULT_RETRIES, PublishOptions, changed

END_TASK: Final = "_end"
"""The name in the URL: those that begin with ``_`` belong to the framework, so no task has it."""

LEAST_RETRIES: Final = PublishOptions(retries=DEFAULT_RETRIES)
"""Retries of a plain failure callback, which would otherwise have as few as its message: perhaps none."""

PROXY_STATUSES: Final = frozenset({502, 503, 504})
"""Statuses with which a proxy answers for an application that is away."""
MAX_SHOWN: Final = 200
"""Characters of an answer that are shown in an error."""

_PATTERN = re.compile(
    r"task=(?P<task>[A-Za-z0-9_.-]{1,128})"
    r"(?:&call=(?P<call>[A-Za-z0-9._~%-]{1,384}))?"
    r"(?:&flow=(?P<flow>[A-Za-z0-9_]{1,128}))?"
    r"(?:&unique=(?P<unique>[A-Za-z0-9._~%-]{1,512}))?"
    r"(?P<request>&request=1)?"
)


@dataclass(frozen=True, slots=True)
class EndQuery:
    """The query of the URL, as a value."""

    task: str
    call_id: str | None = None
    """None for the messages of a schedule: their call ids derive from their message ids."""
    flow: str | None = None
    """The id of the flow that the call belongs to."""
    unique: str | None = None
    """The unique key that the call locks until it has ended."""
    is_request: bool = False
    """True where a failure callback of its own reports the failure, as for a language model: only a cancel matters."""

    def text(self) -> str:
        """The query string; `read` is the reverse."""
        text = f"task={self.task}"
        if self.call_id is not None:
            text += f"&call={quote(self.call_id, safe='')}"
        if self.flow is not None:
            text += f"&flow={self.flow}"
        if self.unique is not None:
            text += f"&unique={quote(self.unique, safe='')}"
        return f"{text}&request=1" if self.is_request else text

    def url(self, base_url: str) -> str:
        """The URL at a dispatcher."""
        return f"{base_url}/{END_TASK}?{self.text()}"


def read(text: str) -> EndQuery:
    """Parse a query string. Raises PayloadError for any text that `EndQuery.text` does not produce."""
    if (match := _PATTERN.fullmatch(text)) is not None:
        call, unique = match["call"], match["unique"]
        query = EndQuery(
            match["task"],
            None if call is None else unquote(call),
            match["flow"],
            None if unique is None else unquote(unique),
            match["request"] is not None,
        )
        if query.text() == text:  # one call has exactly one spelling
            return query
    raise PayloadError("the URL does not have the query of an end callback", code=ErrorCode.CALLBACK_URL_INVALID)


def ending_at(
    url: str, options: PublishOptions, call_id: str | None, *, interrupted_for_ms: int | None
) -> PublishOptions:
    """`options` of a message whose end is reported at `url`.

    The hosted service has only the failure callback: it is ours too, unless the user has chosen one. Our broker calls
    an address that is given twice once. `interrupted_for_ms` is used if `options` have none; 0 is the same as None.
    """
    limit_ms = interrupted_for_ms if options.interrupted_for_ms is None else options.interrupted_for_ms
    failure_callback, failure_callback_options = options.failure_callback, options.failure_callback_options
    if failure_callback is None:
        failure_callback, failure_callback_options = url, least_retries(options)
    return changed(
        options,
        call_id=call_id,
        end_callback=url,
        interrupted_for_ms=limit_ms or None,
        failure_callback=failure_callback,
        failure_callback_options=failure_callback_options,
    )


def least_retries(options: PublishOptions) -> PublishOptions | None:
    """The options of a failure callback of a message with these `options`: it has retries even if the message has not.

    None: it has as many as the message.
    """
    return LEAST_RETRIES if options.retries is not None and options.retries < DEFAULT_RETRIES else None


def dispatcher_error(body: bytes | str) -> str | None:
    """The error in the response of a dispatcher, ``"TypeName: message"``; None for any other body."""
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    error = answer.get("error") if isinstance(answer, dict) and "code" in answer else None
    return error if isinstance(error, str) else None


def delivery_failed(error: object, status: object) -> str:
    """The reason of a failure that no dispatcher reports: the `error` of the broker, or the `status` of the answer."""
    if error:
        return f"DeliveryFailed: {error}"
    return f"DeliveryFailed: the last answer was {status}" if status else "DeliveryFailed: there was no answer"


def answered_error(body: bytes | str, status: int | None, *, is_ours: bool) -> str | None:
    """The error in an answer: the dispatcher's, or that another one was given in its place; None if neither is known.

    `is_ours` says whether the headers of the answer are a dispatcher's.
    """
    if (error := dispatcher_error(body)) is not None:
        return error
    if is_ours or not status:
        return None
    return intercepted(status, body if isinstance(body, str) else body.decode("utf-8", "replace"))


def intercepted(status: int, text: str) -> str:
    """The reason of a failure if the last answer, with this status and text, did not come from a dispatcher."""
    who = "a proxy" if status in PROXY_STATUSES else "the application"
    return f"DeliveryFailed: {who} {answered_instead(status, text)}"


def answered_instead(status: int, text: str) -> str:
    """What something else than the dispatcher did, as the end of a sentence."""
    shown = " ".join(text.split())
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
    return f"answered {status} in place of the dispatcher" + (f": {shown}" if shown else "")
