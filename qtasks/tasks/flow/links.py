"""Calls that one call brings along, under Celery's names: `link` follows its success, `link_error` its failure.

They travel in the `flow` of the call: what follows a success as any sequence does, what follows a failure as `else`,
which `tasks.flow.steps` describes. The handle stays that of the call itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from qtasks.error_codes import ErrorCode
from qtasks.errors import ArgumentsError, DefinitionError
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.flow.canvas import Chain, Group, Signature
from qtasks.tasks.flow.steps import derived, placed
from qtasks.tasks.send.outgoing import AFTER_FAILURE, Outgoing

_SAMPLE: Final = ("call_0", "TypeName: message")
"""What a call after a failure gets before its own arguments: the id of the call that failed, and its error."""


def linked(task: BaseTask[..., Any], message: Outgoing, link: Any, link_error: Any) -> Outgoing:
    """`message` with the calls that follow it. Raises DefinitionError, ArgumentsError for calls that cannot."""
    after_success, after_failure = _calls(link, "link"), _calls(link_error, "link_error")
    if not after_success and not after_failure:
        return message
    if message.unique is not None:
        raise task.not_unique_in_flow()
    flow: dict[str, Any] = dict(message.envelope.flow)
    if after_success:
        flow["then"] = _sequence(after_success, message.call_id, task.runtime.now_ms())
    if after_failure:
        if message.options.failure_callback is not None:
            raise _refused(
                f"{task.name}: link_error and failure_callback are both called for a failure, by the same message",
                fix="@task.on_failure in place of one of them",
            )
        now_ms = task.runtime.now_ms()
        flow[AFTER_FAILURE] = [_error_call(call, now_ms) for call in after_failure if isinstance(call, Signature)]
    return replace(message, envelope=message.envelope._replace(flow=flow))


def _calls(link: Any, option: str) -> Sequence[Signature[Any] | Chain]:
    calls = link if isinstance(link, (list, tuple)) else () if link is None else (link,)
    for call in calls:
        is_flow = isinstance(call, Chain) and option == "link" and not call.times.options
        if is_flow and not any(isinstance(node, Group) for node in call.nodes):
            continue
        if not isinstance(call, Signature):
            raise _refused(f"{option} takes a call, or a list of calls, not {_shown(call)}", fix=_instead(call, option))
    return calls


def _shown(call: object) -> str:
    return f"a {call.word}" if isinstance(call, (Chain, Group)) else repr(call)


def _instead(call: object, option: str) -> str:
    """What to write in place of what cannot be linked."""
    if isinstance(call, BaseTask):
        return f"{option}={call.name}.s()"
    if option == "link_error":
        return "link_error=report.s(), or [report.s(), ...]"
    return "link=[first.s(), second.s()]; a flow with a group or with options: chain(call.s(...), group(...), last.s())"


def _sequence(links: Sequence[Signature[Any] | Chain], call_id: str, now_ms: int) -> list[Any]:
    """What follows a success: the calls of one link, or a group of several, none of which waits for another."""
    members = [list(link.nodes) if isinstance(link, Chain) else [link] for link in links]
    sequence = members[0] if len(members) == 1 else [[each[0] if len(each) == 1 else each for each in members]]

    def step(signature: Signature[Any], step_id: str) -> dict[str, Any]:
        return signature.step(now_ms, step_id, None).to_json()

    return placed(sequence, derived(call_id, "then"), first=step, later=step)


def _error_call(signature: Signature[Any], now_ms: int) -> dict[str, Any]:
    """A call after a failure: how many values of `_SAMPLE` it takes, and the call as a step."""
    takes = _taken(signature)
    whole = replace(signature, args=(*_SAMPLE[:takes], *signature.args), immutable=True)
    step = whole.step(now_ms, _SAMPLE[0], None)
    if step.pickled is not None or step.coded is not None:
        raise _refused(
            f"link_error calls {step.task}, whose arguments do not travel as plain JSON: none can be put before them",
            fix="@task.on_failure, a hook in the process that ran the call",
        )
    return {"takes": takes, "step": replace(step, args=step.args[takes:]).to_json()}


def _taken(signature: Signature[Any]) -> int:
    """2 for a task with room for the id and the error, 1 for one that takes the id alone, 0 for an immutable call."""
    if signature.immutable:
        return 0
    parameters, refusal = signature.task.parameters, None
    for takes in (2, 1):
        try:
            parameters.check(parameters.bind((*_SAMPLE[:takes], *signature.args), signature.kwargs))
        except ArgumentsError as error:
            refusal = refusal or error
        else:
            return takes
    assert refusal is not None
    raise ArgumentsError(
        f"link_error: {refusal.message}",
        details=refusal.details,
        fix=f"def {signature.task.name}(call_id: str, error: str, ...): what link_error passes first",
        code=refusal.code,
    )


def _refused(text: str, *, fix: str) -> DefinitionError:
    return DefinitionError(text, fix=fix, code=ErrorCode.FLOW_INVALID)
