"""Calls as a test sees them: those that were sent, and those in the dead-letter queue."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, QTasksError
from qtasks.protocol.messages import DeadLetter, Message, PublishOptions, Response
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode.argument_codec import PositionalAndNamed
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.parameters import Values
from qtasks.tasks.llm import callback_url, model_request
from qtasks.tasks.results.task_result import TaskResult
from qtasks.tasks.send.end_callback import END_TASK, intercepted
from qtasks.tasks.task import Task

_SHOWN: Final = 200
"""Characters of an argument that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Call:
    """A call, read from the message that the broker stored."""

    task: str
    id: str
    """The call id; `TaskResult.id` is the same."""
    message_id: str
    args: Sequence[Any] = ()
    """Positional arguments as sent: plain JSON values."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    sent: datetime
    """When the call was sent, by the clock of the test."""
    due: datetime
    """The earliest time at which it runs."""
    expires: datetime | None = None
    """The time after which it does not run any more; None: never."""
    queue: str | None = None
    schedule_id: str | None = None
    """The schedule that made it, if any."""
    snoozed: int = 0
    """Number of times that it was snoozed."""
    request: Mapping[str, Any] | None = field(default=None)
    """The request to a language model, for a call of an LLM task."""
    options: PublishOptions = field(default_factory=PublishOptions, repr=False)
    """The options of the publish, as values of the protocol."""
    declared: Task[..., Any] | None = field(default=None, repr=False, compare=False)
    """The task; None if the application does not know the name."""

    @property
    def delay(self) -> timedelta:
        """The time between `sent` and `due`."""
        return self.due - self.sent

    @property
    def arguments(self) -> Values:
        """Arguments by name as the task gets them, with defaults; as sent, if they do not fit the task."""
        if self.declared is None:
            return {**{str(place): value for place, value in enumerate(self.args)}, **self.kwargs}
        parameters = self.declared.parameters
        try:
            bound = parameters.bind(tuple(self.args), self.kwargs)
        except ArgumentsError:
            return {**dict(zip(parameters.positional, self.args, strict=False)), **self.kwargs}
        try:
            return {**parameters.defaults, **parameters.check(bound, from_wire=True)}
        except ArgumentsError:
            return bound

    @property
    def result(self) -> TaskResult[Any]:
        """The handle that `.delay()` returned. Raises QTasksError for an unknown task."""
        if self.declared is None:
            raise QTasksError(
                f"the application has no task {self.task!r}, so its calls have no results", code=ErrorCode.TASK_UNKNOWN
            )
        return self.declared.result(self.id)

    def __str__(self) -> str:
        arguments = [shown(value) for value in self.args] + [f"{name}={shown(it)}" for name, it in self.kwargs.items()]
        return f"{self.task}({', '.join(arguments)})"

    def __repr__(self) -> str:
        return f"<Call {self}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DeadCall:
    """A call that failed for good, from the dead-letter queue."""

    call: Call
    error: str
    """The error text of the last attempt: that of the dispatcher, or else that of the broker."""
    status: int | None
    """HTTP status of the last response; None without a response."""
    failed: datetime
    """When it failed, by the clock of the test."""
    letter: DeadLetter = field(repr=False)
    """The dead letter of the broker."""

    @property
    def task(self) -> str:
        """The task's name."""
        return self.call.task

    def __str__(self) -> str:
        return f"{self.call}: {self.error}"

    def __repr__(self) -> str:
        return f"<DeadCall {self}>"


@dataclass(frozen=True, slots=True)
class Address:
    """The task of a message, and with `call_id` the earlier call that the message continues.

    `call` is the header with the call, for a request to a language model.
    """

    task: str
    call_id: str | None = None
    call: str | None = None


def is_end_callback(url: str, base_url: str) -> bool:
    """True for the URL of a message that reports the end of a call. It runs like any other, but is not a call."""
    return url.startswith(f"{base_url}/{END_TASK}?")


def address_of(message: Message, base_url: str) -> Address | None:
    """The address of a message that is a call or a part of one; None for a message to another service."""
    place, _, name = message.url.rpartition("/")
    if is_end_callback(message.url, base_url):
        return None
    if place == base_url:
        name, _, query = name.partition("?")
        return Address(name, callback_url.read(query).call_id if query else None)
    place, _, name = (message.options.callback or "").rpartition("/")
    if place != base_url or "?" not in name:
        return None
    name, _, query = name.partition("?")
    fields = callback_url.read(query)
    back = message.options.callback_options
    header = next((value for key, value in (back.forward if back else ()) if key == model_request.HEADER), None)
    return Address(name, fields.call_id, header if header is not None else model_request.key_of(fields.digest))


def call_of(message: Message, address: Address, task: Task[..., Any] | None, kept: Callable[[str], str | None]) -> Call:
    """The call that a stored message carries. `kept` loads a call that was too large for its header."""
    request: Mapping[str, Any] | None = None
    try:
        if address.call is None:
            envelope = envelopes.decode(message.body)
        else:
            envelope = model_request.decode(kept(address.call) or address.call)
            request = json.loads(message.body)
    except (QTasksError, ValueError):  # published by another program: not a call of these tasks
        envelope = envelopes.Envelope(address.call_id)
    args, kwargs = _arguments(envelope, task)
    return Call(
        task=address.task,
        id=envelope.call_id or envelopes.call_id_of_message(message.id),
        message_id=message.id,
        args=args,
        kwargs=kwargs,
        sent=moment(message.created_ms),
        due=moment(message.not_before_ms),
        expires=None if envelope.expires_ms is None else moment(envelope.expires_ms),
        queue=message.queue,
        schedule_id=message.schedule_id,
        snoozed=envelope.snoozed,
        request=request,
        options=message.options,
        declared=task,
    )


def _arguments(envelope: Envelope, task: Task[..., Any] | None) -> PositionalAndNamed:
    """The arguments of a call as plain JSON values, also if a codec encoded them; of a pickle none."""
    if envelope.coded is None or task is None:
        return envelope.args, envelope.kwargs
    try:
        content = task.codec.opened(envelope)
    except QTasksError:  # it cannot be read, so it will not run either
        return (), {}
    return content.value if not content.is_pickled else ((), {})


def dead_call(letter: DeadLetter, call: Call) -> DeadCall:
    """The `DeadCall` of a dead letter and its call."""
    status = None if letter.response is None else letter.response.status
    error = _answered(letter.response) or letter.error
    return DeadCall(call=call, error=error, status=status, failed=moment(letter.failed_ms), letter=letter)


def _answered(response: Response | None) -> str | None:
    """The error in the response, ``"TypeName: message"``: the dispatcher's, or that of what has answered instead."""
    if response is None:
        return None
    try:
        document = json.loads(response.body)
    except ValueError:
        return intercepted(response.status, response.body.decode("utf-8", "replace"))
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, str) else None


def moment(time_ms: int) -> datetime:
    """Unix milliseconds as a datetime in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def shown(value: object) -> str:
    """The repr of a value, shortened to 200 characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
