"""What a callback URL says: which call the answer is for, and what its header has to be.

    https://app.example.com/qtasks/summarise?call=call_0f3a...&sha256=9c1d...

The broker signs the URL of every delivery, but no header of it. So the URL carries the hash of the header that brings
the arguments, and thereby vouches for it: whoever could change the header could not change the hash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from qtasks.errors import PayloadError

BAD_TICKET = "QT423"

_FORM = re.compile(
    r"call=(?P<call>[A-Za-z0-9._~%-]{1,384})"
    r"&sha256=(?P<digest>[0-9a-f]{64})"
    r"(?:&repairs=(?P<source>[A-Za-z0-9._~%-]{1,384})&input=(?P<input>[0-9]{1,15})&output=(?P<output>[0-9]{1,15}))?"
    r"(?:&snoozed=(?P<snoozed>[1-9][0-9]{0,8}))?"
    r"(?P<failed>&failed=1)?"
)


@dataclass(frozen=True, slots=True)
class Repair:
    """The second request of a call: what the first one was, and what it cost."""

    source: str
    """Id of the message that asked first."""
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Ticket:
    """The query of a callback URL."""

    call_id: str
    digest: str
    """SHA-256 of the header's value, in hexadecimal."""
    repair: Repair | None = None
    snoozed: int = 0
    """How often its completion has been put off."""
    failed: bool = False
    """Whether this is the URL that is told of the end of all attempts."""

    def query(self) -> str:
        """As it is written; `read` gives it back."""
        text = f"call={quote(self.call_id, safe='')}&sha256={self.digest}"
        if (repair := self.repair) is not None:
            text += (
                f"&repairs={quote(repair.source, safe='')}&input={repair.input_tokens}&output={repair.output_tokens}"
            )
        text += f"&snoozed={self.snoozed}" if self.snoozed else ""
        return text + ("&failed=1" if self.failed else "")


def read(query: str) -> Ticket:
    """The ticket in a query string. Raises PayloadError for one that `Ticket.query` would not have written."""
    if (found := _FORM.fullmatch(query)) is not None:
        repair = None
        if found["source"] is not None:
            repair = Repair(unquote(found["source"]), int(found["input"]), int(found["output"]))
        snoozed, failed = int(found["snoozed"] or 0), found["failed"] is not None
        ticket = Ticket(unquote(found["call"]), found["digest"], repair, snoozed, failed)
        if ticket.query() == query:
            return ticket
    raise PayloadError("the query of the URL is not one that a call to a language model has", code=BAD_TICKET)
