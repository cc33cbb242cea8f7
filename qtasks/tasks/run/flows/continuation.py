"""What follows a call in a flow: sent once it has succeeded, before the broker gets the response."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtasks.clock import Clock
from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, QTasksError, ResultError
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.encode.argument_codec import ArgumentCodec
from qtasks.tasks.encode.pickling import Pickles, Purpose, is_pickle
from qtasks.tasks.encode.result_codec import load
from qtasks.tasks.encode.typed_json import TypedJson
from qtasks.tasks.flow import steps
from qtasks.tasks.flow.step_arguments import PreviousResult
from qtasks.tasks.results.backend import ResultStatus
from qtasks.tasks.results.flow_plan import PlannedCall
from qtasks.tasks.results.writer import ResultWriter
from qtasks.tasks.run.attempt import Attempt
from qtasks.tasks.run.decision import Decision, DecisionKind, DispatchResponse, error_text
from qtasks.tasks.run.flows.open_flows import OpenFlows, RecordedFlow
from qtasks.tasks.run.report import log_fields
from qtasks.tasks.send.outgoing import Outgoing

log = logging.getLogger("qtasks.dispatch")

RETRY_AFTER_MS = 5_000
"""How long the broker waits before it retries a call that has succeeded but could not be continued."""

Publish = Callable[[Outgoing], Awaitable[object]]
"""Sends a call to the broker. Raises QTasksError."""


@dataclass(frozen=True, slots=True)
class TasksHere:
    """The tasks that this dispatcher knows."""

    tasks: Mapping[str, BaseTask[..., Any]]

    def codec(self, task: str) -> ArgumentCodec | None:
        """See `KnownTasks`."""
        return self.tasks[task].codec if task in self.tasks else None

    def result_form(self, task: str) -> TypedJson[Any] | None:
        """Reads the results of a task; None for one that is not known here, or whose results JSON cannot carry."""
        return self.tasks[task].result_form() if task in self.tasks else None

    def pickles(self) -> Pickles:
        """See `KnownTasks`."""
        return next(iter(self.tasks.values())).runtime.pickles()


@dataclass(frozen=True, slots=True)
class RecordedResult:
    """The result of a call, as it is recorded."""

    here: TasksHere
    task: str
    call_id: str
    text: str

    @property
    def source(self) -> str:
        """See `PreviousResult`."""
        return self.task

    def plain(self) -> Any:
        """See `PreviousResult`."""
        if is_pickle(self.text):
            raise ResultError(
                f"the result of {self.task} is a pickle; the next task of the flow takes JSON",
                code=ErrorCode.RESULT_NOT_SERIALIZABLE,
            )
        return json.loads(self.text)

    def typed(self) -> Any:
        """See `PreviousResult`."""
        purpose = Purpose.result(self.task, self.call_id)
        return load(self.here.result_form(self.task), self.text, self.here.pickles, purpose)


@dataclass(frozen=True, slots=True)
class GroupResults:
    """The results of a group, in order; those of a member that ends with a group are a list themselves."""

    members: Sequence[RecordedResult | GroupResults]

    @property
    def source(self) -> str:
        """See `PreviousResult`."""
        return f"a group of {', '.join(dict.fromkeys(member.source for member in self.members))}"

    def plain(self) -> list[Any]:
        """See `PreviousResult`."""
        return [member.plain() for member in self.members]

    def typed(self) -> list[Any]:
        """See `PreviousResult`."""
        return [member.typed() for member in self.members]


class Continuation:
    """Sends what follows a call of one of `tasks`. With `publish` None nothing can be sent."""

    def __init__(
        self, tasks: Mapping[str, BaseTask[..., Any]], writer: ResultWriter, publish: Publish | None, clock: Clock
    ) -> None:
        self._here = TasksHere(tasks)
        self._writer = writer
        self._publish = publish
        self._flows = OpenFlows(writer, clock)

    def check_can_publish(self, consequence: str) -> None:
        """Raise ConfigurationError, naming the `consequence`, if nothing can be sent."""
        if self._publish is None:
            raise ConfigurationError(f"this dispatcher cannot publish, so {consequence}")

    async def publish(self, message: Outgoing) -> None:
        """Send a message. Raises QTasksError."""
        self.check_can_publish("nothing can follow a call")
        assert self._publish is not None
        await self._publish(message)

    async def send_next(self, attempt: Attempt, result: str, response: DispatchResponse) -> DispatchResponse:
        """Send what follows a call with this result; returns `response`, or a retry later if it cannot be sent."""
        context = attempt.context
        try:
            messages = await self._followers(attempt, result)
        except (KeyError, TypeError, ValueError, QTasksError) as error:
            log.exception("%s cannot be continued", context.task, extra=log_fields(context, "flow_broken"))
            note = f"{context.task} {context.call_id} has succeeded, but cannot be continued: {error_text(error)}"
            await self._abandon(attempt, ResultStatus.FAILED, note)
            return response
        try:
            if not messages:
                await self._flows.settle(attempt.kept_for, context.call_id)
            elif not await self._may_go_on(attempt):
                return response
            for message in messages:
                await self.publish(message)
        except QTasksError as error:
            fields = log_fields(context, "flow_waits")
            log.warning("%s could not be continued yet: %s", context.task, error, extra=fields)
            return DispatchResponse.later(error_text(error), error.code, after_ms=RETRY_AFTER_MS)
        return response

    async def abandon(self, attempt: Attempt, decision: Decision) -> None:
        """If a call ended without a result: end every later call of its flow, none of which will be sent."""
        if decision.kind in (DecisionKind.FAILED, DecisionKind.DISCARDED):
            context = attempt.context
            note = f"the flow ended with {context.task} {context.call_id}, attempt {context.attempt}: {decision.note}"
            await self._abandon(attempt, decision.status, note)

    async def _abandon(self, attempt: Attempt, status: ResultStatus, note: str) -> None:
        """Record every later call of the flow as failed or cancelled."""
        context, flow = attempt.context, await self._flow_of(attempt)
        if flow is not None:
            later_calls = flow.plan.after(context.call_id)
        else:
            abandoned = steps.abandoned(attempt.envelope.flow, context.call_id)
            later_calls = [PlannedCall(task, call_id) for task, call_id in abandoned]
        kept = flow is not None
        await self._flows.end_calls(later_calls, status, note, attempt=context.attempt, kept=kept)
        await self._flows.settle(attempt.kept_for, context.call_id)

    async def _may_go_on(self, attempt: Attempt) -> bool:
        """Reopen the flow if the call had failed before; False if the flow was cancelled. Raises ResultError."""
        flow = await self._flow_of(attempt)
        if flow is None or flow.end is None:
            return True
        if flow.is_cancelled:
            await self._flows.settle(attempt.kept_for, attempt.context.call_id)
            return False
        if flow.has_failed:
            await self._flows.reopen(flow, attempt.context.call_id)
        return True

    async def _flow_of(self, attempt: Attempt) -> RecordedFlow | None:
        """The recorded flow of a call; None if it has none, or if it cannot be read, which is logged."""
        try:
            return await self._flows.read(attempt.kept_for)
        except ResultError:
            log.exception("a flow could not be read", extra=log_fields(attempt.context, "flow_unread"))
            return None

    async def _followers(self, attempt: Attempt, result_text: str) -> Sequence[Outgoing]:
        """The messages that follow a call; none while a member of its group has not succeeded."""
        context, flow = attempt.context, attempt.envelope.flow
        parent_id = context.call_id
        result: PreviousResult = RecordedResult(self._here, context.task, context.call_id, result_text)
        while flow:
            if "of" in flow:
                group_results = await self._group_results(steps.ends_of(flow))
                if group_results is None:
                    return []
                parent_id, result = flow["of"], group_results
            if flow.get("then"):
                return steps.followers(attempt.envelope, flow, parent_id, result, self._here)
            flow = flow.get("group", {})  # its last member has ended, and with it a member of the group around it
        return []

    async def _group_results(self, ends: Sequence[Any]) -> GroupResults | None:
        """The results of a group, in order; None while one is missing. Raises ResultError, ConfigurationError."""
        if not self._writer.is_enabled:
            raise ConfigurationError("a group that a call follows needs a result backend")
        members: list[RecordedResult | GroupResults] = []
        for end in ends:
            result = await self._recorded(end) if isinstance(end, str) else await self._group_results(end)
            if result is None:
                return None
            members.append(result)
        return GroupResults(members)

    async def _recorded(self, call_id: str) -> RecordedResult | None:
        """The result of a call that has succeeded, or None."""
        record = await self._writer.read(call_id)
        if record is None or record.status is not ResultStatus.SUCCEEDED:
            return None
        return RecordedResult(self._here, record.task, call_id, record.value or "null")
