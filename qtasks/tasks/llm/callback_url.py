"""The query of a callback URL: which call an answer is for, and the hash of the header with the call.

    https://app.example.com/qtasks/summarise?call=call_0f3a...&sha256=9c1d...

The broker signs the URL and the body of every delivery, but no header. A callback carries the arguments of the call in
a header, so its URL contains the hash of that header: a changed header no longer matches the signed URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from qtasks.error_codes import ErrorCode
from qtasks.errors import PayloadError

_PATTERN = re.compile(
    r"call=(?P<call>[A-Za-z0-9._~%-]{1,384})"
    r"&sha256=(?P<digest>[0-9a-f]{64})"
    r"(?:&repairs=(?P<source>[A-Za-z0-9._~%-]{1,384})&input=(?P<input>[0-9]{1,15})&output=(?P<output>[0-9]{1,15}))?"
    r"(?:&snoozed=(?P<snoozed>[1-9][0-9]{0,8}))?"
    r"(?P<failed>&failed=1)?"
)


@dataclass(frozen=True, slots=True)
class Repair:
    """Marks the second request of a call, sent because the first answer did not fit; describes the first request."""

    source: str
    """Message id of the first request."""
    input_tokens: int
    """Tokens that the first request cost."""
    output_tokens: int
    """Tokens that the first answer cost."""


@dataclass(frozen=True, slots=True)
class CallbackQuery:
    """The query of a callback URL, as a value."""

    call_id: str
    digest: str
    """SHA-256 of the value of the header with the call, in hexadecimal."""
    repair: Repair | None = None
    snoozed: int = 0
    """How many times `Snooze` has postponed the completion."""
    failed: bool = False
    """True for the failure callback, which the broker calls once after the last attempt."""

    def text(self) -> str:
        """The query string; `read` is the reverse."""
        text = f"call={quote(self.call_id, safe='')}&sha256={self.digest}"
        if (repair := self.repair) is not None:
            text += (
                f"&repairs={quote(repair.source, safe='')}&input={repair.input_tokens}&output={repair.output_tokens}"
            )
        text += f"&snoozed={self.snoozed}" if self.snoozed else ""
        return text + ("&failed=1" if self.failed else "")


def read(text: str) -> CallbackQuery:
    """Parse a query string. Raises PayloadError for any text that `CallbackQuery.text` does not produce."""
    if (match := _PATTERN.fullmatch(text)) is not None:
        repair = None
        if match["source"] is not None:
            repair = Repair(unquote(match["source"]), int(match["input"]), int(match["output"]))
        snoozed, failed = int(match["snoozed"] or 0), match["failed"] is not None
        query = CallbackQuery(unquote(match["call"]), match["digest"], repair, snoozed, failed)
        if query.text() == text:  # one call has exactly one spelling
            return query
    raise PayloadError(
        "the URL does not have the query of a callback for a call to a language model",
        code=ErrorCode.CALLBACK_URL_INVALID,
    )
