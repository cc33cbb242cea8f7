"""What follows a call in a flow: sent once it has succeeded, before the broker gets the response."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal

from qtasks.clock import Clock
from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, QTasksError, ResultError
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.encode.argument_codec import ArgumentCodec
from qtasks.tasks.encode.encryption import is_sealed
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.encode.pickling import Purpose, is_pickle
from qtasks.tasks.encode.result_codec import ResultForm
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

    def result_form(self, task: str) -> ResultForm[Any] | None:
        """Reads the results of a task; None for one that is not known here."""
        return self.tasks[task].result_form() if task in self.tasks else None


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

    @property
    def is_encrypted(self) -> bool:
        """See `PreviousResult`."""
        return is_sealed(self.text)

    def plain(self) -> Any:
        """See `PreviousResult`."""
        content, form = None, self.here.result_form(self.task)
        if not is_pickle(self.text):
            if form is None:  # it was recorded by a process that knows the task
                return json.loads(self.text)
            content = form.encoding.read(self.text, self._purpose)
        if content is None or content.is_pickled:
            raise ResultError(
                f"the result of {self.task} is a pickle; the next task of the flow takes JSON",
                code=ErrorCode.RESULT_NOT_SERIALIZABLE,
            )
        return content.value

    def typed(self) -> Any:
        """See `PreviousResult`."""
        if (form := self.here.result_form(self.task)) is None:
            raise ResultError(
                f"the result of {self.task} cannot be read: the task is not known here",
                code=ErrorCode.RESULT_UNREADABLE,
            )
        return form.load(self.text, self._purpose)

    @property
    def _purpose(self) -> Purpose:
        return Purpose.result(self.task, self.call_id)


@dataclass(frozen=True, slots=True)
class EmptyResult:
    """The result of an empty group: an empty list, or a list of such lists."""

    value: list[Any]
    source: str = "an empty group"
    is_encrypted: bool = False

    def plain(self) -> list[Any]:
        """See `PreviousResult`."""
        return self.value

    def typed(self) -> list[Any]:
        """See `PreviousResult`."""
        return self.value


@dataclass(frozen=True, slots=True)
class GroupResults:
    """The results of a group, in order; those of a member that ends with a group are a list themselves."""

    members: Sequence[RecordedResult | GroupResults | EmptyResult]

    @property
    def source(self) -> str:
        """See `PreviousResult`."""
        return f"a group of {', '.join(dict.fromkeys(member.source for member in self.members))}".removesuffix(" of ")

    @property
    def is_encrypted(self) -> bool:
        """See `PreviousResult`."""
        return any(member.is_encrypted for member in self.members)

    def plain(self) -> list[Any]:
        """See `PreviousResult`."""
        return [member.plain() for member in self.members]

    def typed(self) -> list[Any]:
        """See `PreviousResult`."""
        return [member.typed() for member in self.members]


class NoResult(Enum):
    """Why there is no result of a call or of a group."""

    WAITING = auto()
    """It has not ended."""
    FAILED = auto()
    """It has ended otherwise."""


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
        recorded = RecordedResult(self._here, context.task, context.call_id, result)
        try:
            messages = await self._followers(attempt.envelope, attempt.envelope.flow, context.call_id, recorded)
        except (KeyError, TypeError, ValueError, QTasksError) as error:
            if is_outage(error):
                return _later(attempt, error)
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
            return _later(attempt, error)
        return response

    async def abandon(self, attempt: Attempt, decision: Decision) -> None:
        """If a call ended without a result: end every later call of its flow, none of which will be sent."""
        if decision.kind in (DecisionKind.FAILED, DecisionKind.DISCARDED):
            context = attempt.context
            note = f"the flow ended with {context.task} {context.call_id}, attempt {context.attempt}: {decision.note}"
            await self._abandon(attempt, decision.status, note)

    async def _abandon(self, attempt: Attempt, status: ResultStatus, note: str) -> None:
        """Record every call that will not be sent as failed or cancelled; send what goes on without this call."""
        context, flow = attempt.context, await self._flow_of(attempt)
        if flow is not None:
            later_calls = flow.plan.after(context.call_id)
        else:
            abandoned = steps.abandoned(attempt.envelope.flow, context.call_id)
            later_calls = [PlannedCall(task, call_id) for task, call_id in abandoned]
        kept = flow is not None
        await self._flows.end_calls(later_calls, status, note, attempt=context.attempt, kept=kept)
        await self._go_on_without(attempt, flow)
        await self._flows.settle(attempt.kept_for, context.call_id)

    async def _go_on_without(self, attempt: Attempt, flow: RecordedFlow | None) -> None:
        """Send what follows the group around a call that failed, if it goes on with what worked and all have ended.

        What cannot be sent now is sent after the next look at open flows. What can never be sent ends as failed.
        """
        context, envelope = attempt.context, attempt.envelope
        group = steps.collecting(envelope.flow)
        if not group and flow is not None and (around := flow.plan.collecting_around(context.call_id)) is not None:
            group = around.flow
            envelope = envelope._replace(flow={"id": flow.plan.flow_id}, carried=around.carried)
        if flow is not None and flow.has_ended:
            return
        while group:
            try:
                messages = await self._followers(envelope, group, context.call_id, None)
            except (KeyError, TypeError, ValueError, QTasksError) as error:
                if is_outage(error):
                    _later(attempt, error)
                    return
                log.exception("a flow with %s cannot go on", context.task, extra=log_fields(context, "flow_broken"))
                note = f"the flow ended after {context.task} {context.call_id}: {error_text(error)}"
                later_calls = [PlannedCall(task, call_id) for task, call_id in steps.after_group(group)]
                await self._flows.end_calls(
                    later_calls, ResultStatus.FAILED, note, attempt=context.attempt, kept=flow is not None
                )
                group = steps.collecting(group.get("group", {}))
                continue
            try:
                for message in messages:
                    await self.publish(message)
            except QTasksError as error:
                _later(attempt, error)
            return

    async def _may_go_on(self, attempt: Attempt) -> bool:
        """Reopen the flow if the call had failed before; False if the flow was cancelled, or went on without the call.

        Raises ResultError.
        """
        flow = await self._flow_of(attempt)
        if flow is None:
            return True
        goes_on_with_successes = bool(flow.plan.collecting)
        if flow.is_cancelled or (goes_on_with_successes and flow.has_succeeded):
            await self._flows.settle(attempt.kept_for, attempt.context.call_id)
            return False
        if flow.has_failed or goes_on_with_successes:
            await self._flows.reopen(flow, attempt.context.call_id)
        return True

    async def _flow_of(self, attempt: Attempt) -> RecordedFlow | None:
        """The recorded flow of a call; None if it has none, or if it cannot be read, which is logged."""
        try:
            return await self._flows.read(attempt.kept_for)
        except ResultError:
            log.exception("a flow could not be read", extra=log_fields(attempt.context, "flow_unread"))
            return None

    async def _followers(
        self, envelope: Envelope, flow: steps.Flow, parent_id: str, result: PreviousResult | None
    ) -> Sequence[Outgoing]:
        """The messages that follow a call, by its `flow`; none while a member of its group has not ended as it must.

        `result` is that of the call; None: it has failed, and `flow` is that of a group around it.
        """
        while flow:
            if "of" in flow:
                results = await self._group_results(steps.ends_of(flow))
                if results is NoResult.WAITING:
                    return []
                if results is NoResult.FAILED:
                    flow = steps.collecting(flow.get("group", {}))  # a group around it may go on without this one
                    continue
                parent_id, result = flow["of"], results
            if flow.get("then"):
                assert result is not None
                return steps.followers(envelope, flow, parent_id, result, self._here)
            flow = flow.get("group", {})  # its last member has ended, and with it a member of the group around it
        return []

    async def _group_results(self, ends: steps.GroupEnds) -> GroupResults | Literal[NoResult.WAITING, NoResult.FAILED]:
        """The results of a group, in order. Raises ResultError, ConfigurationError."""
        if not self._writer.is_enabled:
            raise ConfigurationError("a group that a call follows needs a result backend")
        members: list[RecordedResult | GroupResults | EmptyResult] = []
        has_failed = False
        for end in reversed(ends.members):  # the last member often ends last: the others need not be read until then
            result = await self._result_at(end)
            if result is NoResult.WAITING:
                return result
            if isinstance(result, NoResult):
                has_failed = True
            else:
                members.append(result)
        return NoResult.FAILED if has_failed and not ends.collects_successes else GroupResults(members[::-1])

    async def _result_at(
        self, end: str | steps.GroupEnds | steps.EmptyEnd
    ) -> RecordedResult | GroupResults | EmptyResult | Literal[NoResult.WAITING, NoResult.FAILED]:
        """The result of a member of a group, by where it ends."""
        if isinstance(end, steps.GroupEnds):
            return await self._group_results(end)
        if isinstance(end, steps.EmptyEnd):
            before = await self._result_at(end.after)
            return before if isinstance(before, NoResult) else EmptyResult(end.value)
        record = await self._writer.read(end)
        if record is None or not record.status.is_final:
            return NoResult.WAITING
        if record.status is not ResultStatus.SUCCEEDED:
            return NoResult.FAILED
        return RecordedResult(self._here, record.task, end, record.value or "null")


def is_outage(error: Exception) -> bool:
    """True if the results cannot be reached now: nothing follows from that for the flow."""
    return isinstance(error, ResultError) and error.code == ErrorCode.RESULTS_UNREACHABLE


def _later(attempt: Attempt, error: Exception) -> DispatchResponse:
    """The response with which the broker delivers a call again whose flow could not go on now."""
    context = attempt.context
    log.warning("%s could not be continued yet: %s", context.task, error, extra=log_fields(context, "flow_waits"))
    code = error.code if isinstance(error, QTasksError) else ErrorCode.UNSPECIFIED
    return DispatchResponse.later(error_text(error), code, after_ms=RETRY_AFTER_MS)
