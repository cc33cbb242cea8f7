"""A call on its way to a language model: the request for the provider, and the way back for the answer."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from qtasks.errors import PayloadError
from qtasks.protocol.messages import Headers, PublishOptions, Redaction
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.llm.callback_url import CallbackQuery, Repair
from qtasks.tasks.send.outgoing import Outgoing, StoredCall

if TYPE_CHECKING:
    from typing import Self

HEADER: Final = "Qtasks-Call"
"""The header of a callback that carries the call: its envelope, in URL-safe base64."""

MAX_HEADER: Final = 6 * 1024
"""Characters of its value: many servers refuse a header line of more than 8 KiB."""


@dataclass(frozen=True, kw_only=True)
class CallHeaderMessage(Outgoing):
    """A message that comes back, or comes, with a call in a header. `envelope` is that call."""

    body: bytes = field(repr=False)

    @functools.cached_property
    def call(self) -> str:
        """The call as the value of a header, encoded on first use. Raises ValueError."""
        return written(self.envelope)

    @functools.cached_property
    def digest(self) -> str:
        """What the callback URL says of `call`."""
        return digest(self.call)

    @property
    def stored_call(self) -> StoredCall | None:
        """See `Outgoing.stored_call`: a call that is too large for a header."""
        return StoredCall(key_of(self.digest), self.call) if len(self.call) > MAX_HEADER else None

    @property
    def header(self) -> Headers:
        """The header with the call, unless that is kept."""
        return ((HEADER, self.call),) if len(self.call) <= MAX_HEADER else ()

    def encoded(self) -> Self:
        """See `Outgoing.encoded`: the call travels in the header; the body is another one."""
        _ = self.call
        return self


@dataclass(frozen=True, kw_only=True)
class ModelRequest(CallHeaderMessage):
    """A request for a provider, as a message whose callback is the dispatcher."""

    url: str
    """Where the provider is asked; or the service's own model."""
    key: Headers = field(default=(), repr=False)
    """The header lines that open it."""
    completion: PublishOptions
    """How the callback is delivered."""
    repair: Repair | None = None

    def addressed(self, base_url: str) -> tuple[str, PublishOptions]:
        """See `Outgoing.addressed`."""
        query = CallbackQuery(self.call_id, self.digest, self.repair)
        hides = self.options.redact is not None
        back = replace(
            self.completion,
            forward=self.header,
            # What tells of a request shows the headers that it was made with, and its answer.
            redact=Redaction(body=True, all_headers=hides) if self.key or hides else None,
        )
        options = replace(
            self.options,
            forward=self.key,
            redact=_redaction(self.key, hides=hides),
            callback=f"{base_url}/{self.task}?{query.text()}",
            callback_options=back,
            failure_callback=f"{base_url}/{self.task}?{replace(query, failed=True).text()}",
            failure_callback_options=back,
        )
        return self.url, options


@dataclass(frozen=True, kw_only=True)
class CallbackRedelivery(CallHeaderMessage):
    """A callback once more, later: what `Snooze` makes of one."""

    query: CallbackQuery

    def addressed(self, base_url: str) -> tuple[str, PublishOptions]:
        """See `Outgoing.addressed`."""
        return f"{base_url}/{self.task}?{self.query.text()}", replace(self.options, forward=self.header)


def written(envelope: Envelope) -> str:
    """An envelope as the value of a header."""
    return base64.urlsafe_b64encode(envelopes.encode(envelope)).decode("ascii")


def read(call: str) -> Envelope:
    """The reverse of `written`. Raises PayloadError."""
    try:
        return envelopes.decode(base64.b64decode(call, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as error:
        raise PayloadError(f"the call in the header {HEADER} cannot be read: {error}") from None


def digest(call: str) -> str:
    """What a URL says of a header."""
    return hashlib.sha256(call.encode()).hexdigest()


def key_of(digest: str) -> str:
    """Under what a call is kept that is too large for a header."""
    return f"call:{digest}"


def _redaction(key: Headers, *, hides: bool) -> Redaction | None:
    if hides:
        return Redaction(body=True, all_headers=True)
    return Redaction(headers=tuple(name for name, _ in key)) if key else None
