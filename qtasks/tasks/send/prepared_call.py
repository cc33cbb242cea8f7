"""A call as it travels: alone in a request, or as an item of a batch.

The calls of one task differ in few header lines. The others are made once, as a template: making them costs more than
the rest of a call.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from qtasks.protocol.messages import Headers, PublishOptions
from qtasks.tasks.encode.envelope import COMPACT, Envelope
from qtasks.tasks.send.end_callback import END_TASK
from qtasks.tasks.send.outgoing import AFTER_FAILURE, Outgoing

if TYPE_CHECKING:
    from qtasks.qstash.conversation.operation import Operation
    from qtasks.qstash.operations.publishing import PublishResponse

_TEMPLATES: Final = 256
"""Templates that are kept: one for each task and its options."""

_CALL_ID: Final = "Qtasks-Call-Id"
_END: Final = "Qtasks-End-Callback"
_FAILURE: Final = "Upstash-Failure-Callback"
_DEDUPLICATION: Final = "Upstash-Deduplication-Id"
_LABELS: Final = "Upstash-Label"

_UNQUOTED: Final = re.compile(r"[A-Za-z0-9_.~-]+")
"""A text that a query contains as it is."""

_EMPTY: Final = Envelope(None)

_quoted: Final = json.encoder.encode_basestring
"""A text as JSON, without escapes that it does not need."""


@dataclass(frozen=True, slots=True)
class CallTemplate:
    """What the calls of one task with the same options have in common."""

    target: str
    queue: str | None
    lines: Headers = field(repr=False)
    """The header lines that are the same for all calls."""
    item: str = field(repr=False)
    """The beginning of a batch item: its header lines follow."""
    takes_retry_id: bool
    """True if the client may add a deduplication id: the options have none, and no deduplication by content."""
    is_shareable: bool
    """True if a call may be sent in a batch with others: it goes to the dispatcher, and may be repeated."""
    reports_failure: bool = False
    """True if each call has a failure callback of its own, with the URL of its end callback."""

    @classmethod
    def of(
        cls,
        target: str,
        queue: str | None,
        options: PublishOptions,
        base_url: str,
        *,
        own: frozenset[str] = frozenset(),
        reports_failure: bool = False,
    ) -> CallTemplate:
        """The template for `options`, without the header lines called `own`.

        Raises InvalidCallError for a header that HTTP cannot carry.
        """
        # Imported here: a process that only runs tasks does not need the client.
        from qtasks.qstash.conversation.operation import url_text
        from qtasks.qstash.operations import options as keywords

        lines = tuple(line for line in keywords.headers(options, {}) if line[0] not in own)
        item = COMPACT.encode({"destination": url_text(target), "queue": queue, "headers": dict(lines)})
        return cls(
            target,
            queue,
            lines,
            item.removesuffix("}}"),
            takes_retry_id=options.deduplication_id is None and not options.content_based_deduplication,
            is_shareable=target.startswith(f"{base_url}/") and not options.content_based_deduplication,
            reports_failure=reports_failure,
        )


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """A call with everything that is sent of it. However often it is sent, the broker stores it once."""

    template: CallTemplate
    own_lines: Headers = field(repr=False)
    """The header lines of this call alone."""
    body: bytes = field(repr=False)
    has_retry_id: bool
    """True if the deduplication id is the client's own."""

    def operation(self) -> Operation[PublishResponse]:
        """The request that sends this call alone."""
        from qtasks.qstash.operations import publishing

        template = self.template
        lines = template.lines + self.own_lines
        return publishing.publish_lines(
            template.target, self.body, lines, queue=template.queue, has_retry_id=self.has_retry_id
        )

    def item(self) -> bytes:
        """This call as an item of a batch: JSON, as our broker reads it most quickly."""
        lines = ",".join([f"{_quoted(name)}:{_quoted(value)}" for name, value in self.own_lines])
        comma = "," if self.template.lines and lines else ""
        return f'{self.template.item}{comma}{lines}}},"body":{_quoted(self.body.decode())}}}'.encode()


class CallPreparer:
    """Prepares calls for a dispatcher at `base_url`. Thread-safe.

    `interrupted_for_ms` is for options that do not set it; None or 0: interrupted attempts count.
    """

    def __init__(self, base_url: str, interrupted_for_ms: int | None) -> None:
        self._base_url = base_url
        self._interrupted_for_ms = interrupted_for_ms
        self._template = lru_cache(_TEMPLATES)(self._new_template)

    def prepared(self, message: Outgoing, retry_id: str | None) -> PreparedCall:
        """The call with `retry_id` as its deduplication id, unless its options choose a deduplication.

        Raises ArgumentsError for a body that is too large.
        """
        lines: Headers
        if type(message) is not Outgoing or AFTER_FAILURE in message.envelope.flow:
            target, options = message.addressed(self._base_url, interrupted_for_ms=self._interrupted_for_ms)
            template, lines = CallTemplate.of(target, message.queue, options, self._base_url), ()
        else:
            template = self._template(
                message.task,
                message.queue,
                message.options,
                message.own_deduplication,
                has_own_labels=bool(message.argument_labels),
            )
            lines = self._own_lines(message, template)
        if has_retry_id := retry_id is not None and template.takes_retry_id:
            lines = (*lines, (_DEDUPLICATION, retry_id or ""))
        return PreparedCall(template, lines, message.body, has_retry_id)

    def _own_lines(self, message: Outgoing, template: CallTemplate) -> Headers:
        call_id, envelope = message.call_id, message.envelope
        if envelope.flow or envelope.unique is not None or not _UNQUOTED.fullmatch(call_id):
            url = message.end_query.url(self._base_url)
        else:
            url = f"{self._base_url}/{END_TASK}?task={message.task}&call={call_id}"  # the same, in a tenth of the time
        lines: Headers = ((_CALL_ID, call_id), (_END, url))
        if template.reports_failure:
            lines = (*lines, (_FAILURE, url))
        return (*lines, (_LABELS, ",".join(message.labels))) if message.argument_labels else lines

    def _new_template(
        self, task: str, queue: str | None, options: PublishOptions, own_deduplication: bool, *, has_own_labels: bool
    ) -> CallTemplate:
        example = Outgoing(
            task=task,
            call_id=task,
            options=options,
            envelope=_EMPTY,
            queue=queue,
            own_deduplication=own_deduplication,
        )
        target, complete = example.addressed(self._base_url, interrupted_for_ms=self._interrupted_for_ms)
        reports_failure = options.failure_callback is None
        own = {_CALL_ID, _END, *([_FAILURE] if reports_failure else ()), *([_LABELS] if has_own_labels else ())}
        return CallTemplate.of(
            target, queue, complete, self._base_url, own=frozenset(own), reports_failure=reports_failure
        )
