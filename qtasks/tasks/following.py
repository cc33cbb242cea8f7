"""What follows a call in a flow: sent once it has succeeded, before the broker hears of that."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from qtasks.errors import ConfigurationError, QTasksError
from qtasks.tasks import flow, outcome
from qtasks.tasks.context import TaskContext
from qtasks.tasks.outcome import Outcome
from qtasks.tasks.payload import Envelope
from qtasks.tasks.recording import Recorder
from qtasks.tasks.reporting import facts, text_of
from qtasks.tasks.results.base import ResultBackend, ResultStatus
from qtasks.tasks.sending import Outgoing

log = logging.getLogger("qtasks.dispatch")

AGAIN_AFTER_MS = 5_000
"""When to come back about a call that is done and could not be continued."""

Republish = Callable[[Outgoing], Awaitable[object]]
"""Sends a call to the broker. Raises QTasksError."""


class Following:
    """Sends what follows a call. `results` are asked for those of a group, `republish` None cannot send."""

    def __init__(self, results: ResultBackend | None, recorder: Recorder, republish: Republish | None) -> None:
        self._results = results
        self._recorder = recorder
        self._republish = republish

    async def send(self, context: TaskContext, envelope: Envelope, value: str, answer: Outcome) -> Outcome:
        """Send what follows a call whose result is `value`. `answer`, or one that has the broker come back."""
        try:
            if "of" not in envelope.flow:
                result = json.loads(value)
            elif (results := await self._gathered(envelope.flow)) is not None:
                result = results
            else:
                return answer
            messages = flow.followers(envelope, context.call_id, result)
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
            return outcome.later(text_of(error), error.code, after_ms=AGAIN_AFTER_MS)
        return answer

    async def _gathered(self, group: Mapping[str, Any]) -> list[Any] | None:
        """The results of a group, in order; None while one is missing. Raises ResultError."""
        results = self._results
        if results is None:
            raise ConfigurationError("a group that something follows needs a place for results")
        values: list[Any] = []
        for call_id in flow.members_of(group):
            read = results.read
            record = await asyncio.to_thread(read, call_id) if results.blocking else read(call_id)
            if record is None or record.status is not ResultStatus.SUCCEEDED:
                return None
            values.append(json.loads(record.value or "null"))
        return values
