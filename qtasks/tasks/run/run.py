"""One run of a task's function, as middleware sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from qtasks.protocol.labels.argument_labels import labels_of
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.context import TaskContext
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.parameters import Values
from qtasks.tasks.encode.pickling import Purpose
from qtasks.tasks.encode.result_codec import dump
from qtasks.tasks.send.outgoing import Outgoing, again


@dataclass(frozen=True, slots=True)
class Run:
    """A verified call with checked arguments, ready to run."""

    task: BaseTask[..., Any]
    values: Values = field(repr=False)
    """The arguments by parameter name."""
    context: TaskContext
    envelope: Envelope = field(default=Envelope(None), repr=False)

    def again(self, delay_ms: int) -> Outgoing:
        """The message that runs the call once more, `delay_ms` from now."""
        return again(
            self.task.name,
            self.context.call_id,
            self.envelope,
            self.task.delivery_options.publish,
            delay_ms,
            argument_labels=labels_of(self.task.searchable, self.envelope.args, self.envelope.kwargs),
        )

    def encoded(self, value: Any) -> str:
        """The result as text. Raises ResultError for a value that does not fit the task's return annotation."""
        purpose = Purpose.result(self.task.name, self.context.call_id)
        return dump(self.task.parameters, value, self.task.encoding, purpose)


Invoke = Callable[[Run], Awaitable[Any]]
"""Runs a task that has dependencies; a web framework supplies it."""
