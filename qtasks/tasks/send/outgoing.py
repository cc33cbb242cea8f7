"""A call that is sent: its envelope, how it is delivered, and the message that carries it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError
from qtasks.lazy import lazy_property
from qtasks.protocol import wire
from qtasks.protocol.messages import MAX_BODY, PublishOptions, changed
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.results.backend import ResultRecord, ResultStatus
from qtasks.tasks.results.unique import Unique
from qtasks.tasks.send.end_callback import EndQuery, ending_at, least_retries

if TYPE_CHECKING:
    from typing import Self


AFTER_FAILURE: Final = "else"
"""The member of a call's `flow` with the calls that follow its failure."""


@dataclass(frozen=True, slots=True)
class StoredCall:
    """A call that is too large for a header of its message: the result backend stores it under `key`."""

    key: str
    text: str = field(repr=False)

    def record(self, task: str, now_ms: int, status: ResultStatus = ResultStatus.QUEUED) -> ResultRecord:
        """The record that holds the text until the call has succeeded, and its status after that.

        A failed call keeps its text, because its dead letter may be sent again.
        """
        text = None if status is ResultStatus.SUCCEEDED else self.text
        return ResultRecord(
            call_id=self.key, message_id=self.key, task=task, status=status, attempt=1, updated_ms=now_ms, value=text
        )


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """One call, and how its message is delivered. A change makes a new value."""

    task: str
    call_id: str
    options: PublishOptions
    envelope: Envelope = field(repr=False)
    queue: str | None = None
    unique: Unique | None = None
    """The key that the call must lock before it is sent."""
    argument_labels: tuple[str, ...] = ()
    """The labels by which the call is found by its arguments, behind those of `options`."""
    own_deduplication: bool = False
    """True if the deduplication id is that of the caller, so that it counts for the calls of one task only."""

    @lazy_property
    def body(self) -> bytes:
        """The body of the message: the envelope as JSON, encoded on first use.

        Raises ArgumentsError for a body that is too large, ValueError for an envelope that JSON cannot carry.
        """
        body = envelopes.encode(self.envelope)
        if len(body) > MAX_BODY:
            raise self._too_large(len(body))
        return body

    def _too_large(self, size: int) -> ArgumentsError:
        alone = len(envelopes.encode(self.envelope._replace(carried={}, flow={})))
        what = "the arguments make" if alone > MAX_BODY else "the arguments and what the message carries make"
        return ArgumentsError(
            f"{self.task}: {what} a message of {size:,} bytes; {MAX_BODY:,} are allowed",
            fix="store the data and pass its key",
            code=ErrorCode.CALL_TOO_LARGE,
        )

    @property
    def stored_call(self) -> StoredCall | None:
        """What the result backend must store before the message is sent."""
        return None

    def encoded(self) -> Self:
        """Encode the call now, once, so that no later step can fail for its contents. Raises as `body`."""
        _ = self.body
        return self

    def addressed(self, base_url: str, *, interrupted_for_ms: int | None = None) -> tuple[str, PublishOptions]:
        """The destination and the options of the message, for a dispatcher at `base_url`.

        `interrupted_for_ms` is for options that do not set it; None or 0: interrupted attempts count.
        """
        return f"{base_url}/{self.task}", self.ending(base_url, self.scoped(base_url), interrupted_for_ms)

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels of the message: those that the user has chosen first."""
        return self.options.labels + self.argument_labels

    def scoped(self, base_url: str) -> PublishOptions:
        """The options with all labels, and with a deduplication id that no task has but this one at this dispatcher.

        To the broker an id belongs to the whole account. It would answer a call of one task with the message of another
        one, whose result the handle would then show.
        """
        options = changed(self.options, labels=self.labels) if self.argument_labels else self.options
        if not self.own_deduplication or options.deduplication_id is None:
            return options
        return changed(options, deduplication_id=once(f"{base_url}/{self.task}", options.deduplication_id))

    def ending(self, base_url: str, options: PublishOptions, interrupted_for_ms: int | None) -> PublishOptions:
        """`options` with the end callback of the call.

        The calls after a failure are in the body of the message. A failure callback has that body; an end callback,
        which then only matters for a cancel, does not.
        """
        url = self.end_query.url(base_url)
        if AFTER_FAILURE in self.envelope.flow:
            options = replace(options, failure_callback=url, failure_callback_options=least_retries(options))
            url = replace(self.end_query, is_request=True).url(base_url)
        return ending_at(url, options, self.call_id, interrupted_for_ms=interrupted_for_ms)

    @property
    def end_query(self) -> EndQuery:
        """What the URL of the end callback says about the call."""
        return EndQuery(self.task, self.call_id, self.envelope.flow.get("id"), unique=self.envelope.unique)

    @property
    def carried(self) -> Mapping[str, str]:
        """What middleware added to the call; the task finds it in `TaskContext.carried`."""
        return self.envelope.carried

    def carrying(self, items: Mapping[str, str]) -> Self:
        """The same call with `items` added to what it carries."""
        return replace(self, envelope=self.envelope._replace(carried={**self.carried, **items}))


def once(call_id: str, step: str = "") -> str:
    """A deduplication id for one message that several deliveries of a call may send: the broker takes the first.

    A hex digest, because a deduplication id must not contain a colon.
    """
    text = f"{call_id} {step}" if step else call_id
    return hashlib.sha256(text.encode()).hexdigest()


def again(
    task: str,
    call_id: str,
    envelope: Envelope,
    declared: PublishOptions,
    delay_ms: int,
    *,
    argument_labels: tuple[str, ...] = (),
) -> Outgoing:
    """A call that is published once more after `delay_ms`. It bypasses the task's queue, which has no delay.

    `declared` are the options of its task; a call that carries options of its own uses those.
    """
    options = wire.read(envelope.options.items()) if envelope.options else declared
    options = replace(
        options,
        method="POST",
        content_type="application/json",
        retries=envelope.retries,
        delay_ms=delay_ms,
        not_before_s=None,
        deduplication_id=once(call_id, f"snoozed {envelope.snoozed}"),
    )
    return Outgoing(
        task=task,
        call_id=call_id,
        options=options,
        envelope=envelope._replace(call_id=call_id, snoozed=envelope.snoozed + 1),
        argument_labels=argument_labels,
    )
