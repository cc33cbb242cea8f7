"""What `link_error` has asked for: calls that are sent when a call has failed for good.

They are sent before the failure is recorded. If they cannot be, nothing is recorded, and the response does not say that
the call has ended: the report of its end, which contains the call, goes on from here. Their ids derive from the message
that failed, so that no other delivery and no report sends them twice, while a dead letter that is sent again and fails
again sends them once more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qtasks.errors import QTasksError, ResultError
from qtasks.tasks.flow.steps import Step, derived
from qtasks.tasks.run.attempt import Attempt
from qtasks.tasks.run.flows.continuation import Continuation, TasksHere
from qtasks.tasks.run.report import log_fields
from qtasks.tasks.send.outgoing import AFTER_FAILURE, Outgoing

log = logging.getLogger("qtasks.dispatch")


@dataclass(frozen=True, slots=True)
class _NoResult:
    """Stands where a call that has succeeded has its result: no call after a failure takes it."""

    source: str
    is_encrypted: bool = False

    def plain(self) -> Any:
        """See `PreviousResult`."""
        raise ResultError(f"{self.source} has failed and has no result")

    def typed(self) -> Any:
        """See `PreviousResult`."""
        return self.plain()


async def send_failure_calls(attempt: Attempt, error: str, continuation: Continuation) -> bool:
    """Send the calls that follow the failure of a call, if there are any. False if they cannot be sent now."""
    try:
        for message in _failure_calls(attempt, error):
            await continuation.publish(message)
    except (ValueError, TypeError, KeyError):  # the caller made them; no later attempt can read them either
        log.exception(
            "link_error of %s cannot be read", attempt.context.task, extra=log_fields(attempt.context, "link")
        )
    except QTasksError as failure:
        fields = log_fields(attempt.context, "link_waits")
        log.warning("link_error of %s cannot be sent yet: %s", attempt.context.task, failure, extra=fields)
        return False
    return True


def _failure_calls(attempt: Attempt, error: str) -> Sequence[Outgoing]:
    context, envelope = attempt.context, attempt.envelope
    links: Sequence[Mapping[str, Any]] = envelope.flow.get(AFTER_FAILURE, ())
    messages: list[Outgoing] = []
    for place, link in enumerate(links):
        step = Step.from_json(link["step"])
        step = replace(step, args=[*[context.call_id, error][: link["takes"]], *step.args], immutable=True)
        call_id = derived(f"{context.call_id} {context.message_id}", f"{AFTER_FAILURE} {place}")
        messages.append(step.message(call_id, _NoResult(context.task), {}, envelope, TasksHere({})))
    return messages
