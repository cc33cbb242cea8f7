"""Messages to language models: the request to the provider, and the callback URL and header for the answer."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from qtasks.errors import PayloadError
from qtasks.lazy import lazy_property
from qtasks.protocol.messages import Headers, PublishOptions, Redaction
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.llm.callback_url import CallbackQuery, Repair
from qtasks.tasks.send.end_callback import LEAST_RETRIES, ending_at
from qtasks.tasks.send.outgoing import Outgoing, StoredCall

if TYPE_CHECKING:
    from typing import Self

HEADER: Final = "Qtasks-Call"
"""The header of a callback with the call: the envelope in URL-safe base64."""

MAX_HEADER: Final = 6 * 1024
"""Largest number of characters of its value: many servers refuse a header line of more than 8 KiB."""


@dataclass(frozen=True, kw_only=True)
class CallHeaderMessage(Outgoing):
    """A message that sets the header of a callback: the header contains `envelope`, and `body` is independent of it.

    A call that is too large for a header is stored in the result store, under the hash that the callback URL contains.
    """

    body: bytes = field(repr=False)

    @lazy_property
    def call(self) -> str:
        """The call as the value of the header, encoded on first use. Raises ValueError."""
        return encode(self.envelope)

    @lazy_property
    def digest(self) -> str:
        """The hash of `call`, for the callback URL."""
        return digest(self.call)

    @property
    def stored_call(self) -> StoredCall | None:
        """See `Outgoing.stored_call`: a call that is too large for a header."""
        return StoredCall(key_of(self.digest), self.call) if len(self.call) > MAX_HEADER else None

    @property
    def header(self) -> Headers:
        """The header with the call; empty if the call is stored."""
        return ((HEADER, self.call),) if len(self.call) <= MAX_HEADER else ()

    def encoded(self) -> Self:
        """See `Outgoing.encoded`: here the call is in the header."""
        _ = self.call
        return self


@dataclass(frozen=True, kw_only=True)
class ModelRequest(CallHeaderMessage):
    """A request to a provider. Its callback goes to the dispatcher."""

    url: str
    """The provider's address, or ``api/llm`` for the model of the service."""
    authorization: Headers = field(default=(), repr=False)
    """Authorization headers for the provider."""
    completion: PublishOptions
    """The options of the callback's delivery."""
    repair: Repair | None = None
    """Set for the second request of a call."""

    def addressed(self, base_url: str, *, interrupted_for_ms: int | None = None) -> tuple[str, PublishOptions]:
        """See `Outgoing.addressed`.

        The end callback reports only a cancel: a failure has its own callback. A callback that fails itself, for
        example because the process of the completion is killed, has an end callback as any call has.
        """
        query = CallbackQuery(self.call_id, self.digest, self.repair)
        hides_call = self.options.redact is not None
        end_url = self.end_query.url(base_url)
        completion = replace(
            self.completion,
            interrupted_for_ms=self.options.interrupted_for_ms,
            failure_callback=end_url,
            failure_callback_options=LEAST_RETRIES,
            forward=self.header,
            # A callback contains the headers of the request and the answer to it.
            redact=Redaction(body=True, all_headers=hides_call) if self.authorization or hides_call else None,
        )
        callback_options = ending_at(end_url, completion, None, interrupted_for_ms=interrupted_for_ms)
        options = replace(
            self.scoped(base_url),
            forward=self.authorization,
            redact=_redaction(self.authorization, hides_call=hides_call),
            callback=f"{base_url}/{self.task}?{query.text()}",
            callback_options=callback_options,
            failure_callback=f"{base_url}/{self.task}?{replace(query, failed=True).text()}",
            failure_callback_options=callback_options,
        )
        url = replace(self.end_query, is_request=True).url(base_url)
        return self.url, ending_at(url, options, self.call_id, interrupted_for_ms=interrupted_for_ms)


@dataclass(frozen=True, kw_only=True)
class CallbackRedelivery(CallHeaderMessage):
    """A callback that is sent once more, later, because the completion raised `Snooze`."""

    query: CallbackQuery

    def addressed(self, base_url: str, *, interrupted_for_ms: int | None = None) -> tuple[str, PublishOptions]:
        """See `Outgoing.addressed`."""
        options = self.ending(base_url, self.options, interrupted_for_ms)
        return f"{base_url}/{self.task}?{self.query.text()}", replace(options, forward=self.header)


def encode(envelope: Envelope) -> str:
    """Encode an envelope as the value of the header. Raises ValueError."""
    return base64.urlsafe_b64encode(envelopes.encode(envelope)).decode("ascii")


def decode(call: str) -> Envelope:
    """Decode the value of the header. Raises PayloadError."""
    try:
        return envelopes.decode(base64.b64decode(call, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as error:
        raise PayloadError(f"the call in the header {HEADER} cannot be read: {error}") from None


def digest(call: str) -> str:
    """The hash of the header's value, for the callback URL."""
    return hashlib.sha256(call.encode()).hexdigest()


def key_of(digest: str) -> str:
    """The key under which the result store has a call that is too large for a header."""
    return f"call:{digest}"


def _redaction(authorization: Headers, *, hides_call: bool) -> Redaction | None:
    if hides_call:
        return Redaction(body=True, all_headers=True)
    return Redaction(headers=tuple(name for name, _ in authorization)) if authorization else None
