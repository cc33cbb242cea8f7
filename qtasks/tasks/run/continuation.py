"""What follows a call in a flow: sent once it has succeeded, before the broker hears of that."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, QTasksError, ResultError
from qtasks.tasks.context import TaskContext
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.pickling import Pickles, Purpose, is_pickle
from qtasks.tasks.encode.result_codec import load
from qtasks.tasks.flow import canvas
from qtasks.tasks.results.backend import ResultBackend, ResultStatus
from qtasks.tasks.run import dispatch_response
from qtasks.tasks.run.dispatch_response import Outcome
from qtasks.tasks.run.recorder import Recorder
from qtasks.tasks.run.report import facts, text_of
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.task import Task

log = logging.getLogger("qtasks.dispatch")

AGAIN_AFTER_MS = 5_000
"""When to come back about a call that is done and could not be continued."""

Republish = Callable[[Outgoing], Awaitable[object]]
"""Sends a call to the broker. Raises QTasksError."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The result of a call of one of `tasks`, as it is kept."""

    tasks: Mapping[str, Task[..., Any]]
    task: str
    call_id: str
    text: str

    def plain(self) -> Any:
        """See `flow.Value`."""
        if is_pickle(self.text):
            raise ResultError(
                f"the result of {self.task} is no JSON, as the next task would have it",
                code=ErrorCode.RESULT_NOT_SERIALIZABLE,
            )
        return json.loads(self.text)

    def typed(self) -> Any:
        """See `flow.Value`."""
        adapter = self.tasks[self.task].parameters.result
        return load(adapter, self.text, self.pickles, Purpose.result(self.task, self.call_id))

    def pickles(self) -> Pickles:
        """See `flow.Value`."""
        return self.tasks[self.task].runtime.pickles()


@dataclass(frozen=True, slots=True)
class Gathered:
    """The results of a group, in order."""

    members: Sequence[Returned]

    def plain(self) -> list[Any]:
        """See `flow.Value`."""
        return [member.plain() for member in self.members]

    def typed(self) -> list[Any]:
        """See `flow.Value`."""
        return [member.typed() for member in self.members]

    def pickles(self) -> Pickles:
        """See `flow.Value`."""
        return self.members[0].pickles()


class Following:
    """Sends what follows a call of one of `tasks`.

    `results` are asked for those of a group; a `republish` of None cannot send.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task[..., Any]],
        results: ResultBackend | None,
        recorder: Recorder,
        republish: Republish | None,
    ) -> None:
        self._tasks = tasks
        self._results = results
        self._recorder = recorder
        self._republish = republish

    async def send(self, context: TaskContext, envelope: Envelope, value: str, answer: Outcome) -> Outcome:
        """Send what follows a call whose result is `value`. `answer`, or one that has the broker come back."""
        try:
            result: canvas.Value | None = Returned(self._tasks, context.task, context.call_id, value)
            if "of" in envelope.flow and (result := await self._gathered(envelope.flow)) is None:
                return answer
            assert result is not None
            messages = canvas.followers(envelope, context.call_id, result)
        except (KeyError, TypeError, ValueError, QTasksError) as error:
            log.exception("%s cannot be continued", context.task, extra=facts(context, "flow_broken"))
            note = f"{context.task} {context.call_id} has succeeded, but nothing can follow: {text_of(error)}"
            await self._recorder.abandon(context, envelope, ResultStatus.FAILED, note)
            return answer
        try:
            if self._republish is None:
                raise ConfigurationError("this dispatcher cannot publish, so nothing can follow a call")
            for message in messages:
                await self._republish(message)
        except QTasksError as error:
            log.warning("%s could not be continued yet: %s", context.task, error, extra=facts(context, "flow_waits"))
            return dispatch_response.later(text_of(error), error.code, after_ms=AGAIN_AFTER_MS)
        return answer

    async def _gathered(self, group: Mapping[str, Any]) -> Gathered | None:
        """The results of a group, in order; None while one is missing. Raises ResultError."""
        results = self._results
        if results is None:
            raise ConfigurationError("a group that something follows needs a place for results")
        members: list[Returned] = []
        for call_id in canvas.members_of(group):
            read = results.read
            record = await asyncio.to_thread(read, call_id) if results.blocking else read(call_id)
            if record is None or record.status is not ResultStatus.SUCCEEDED:
                return None
            members.append(Returned(self._tasks, record.task, call_id, record.value or "null"))
        return Gathered(members)
