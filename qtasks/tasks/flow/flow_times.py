"""When the first calls of a flow run, and after which moment none of its calls does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypedDict

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.tasks import options as call_options
from qtasks.tasks.base_task import BaseTask
from qtasks.tasks.options import CallOptions, Span

_OPTIONS: Final = ("delay", "eta", "expires")

_INSTEAD: Final[Mapping[str, str]] = {
    "deduplication_id": "give it to the first call: task.using(deduplication_id=...).s(...); later ones are sent once",
    "link": "let the flow go on: flow | other.s()",
    "link_error": "@task.on_failure at the tasks of the flow; the handle of the flow says which call failed",
    "task_id": "keep the id of the handle: flow.delay().id",
}
"""What to write in place of options that a call of Celery's has."""


class FlowOptions(TypedDict, total=False):
    """Options of a whole flow."""

    delay: Span
    """Run the first calls at this time after now or later; 0 by default, a year at most. Not with `eta`."""
    countdown: Span
    """Celery's name for `delay`."""
    eta: datetime
    """Run the first calls at this moment or later; a datetime with a time zone. By default at once. Not with
    `delay`."""
    expires: Span | datetime
    """Run no call of the flow after this moment, or this long after the start (a year at most): a call whose turn comes
    later ends as expired, and the flow with it. Never by default; a call may expire earlier by an option of its own."""


@dataclass(frozen=True, slots=True)
class FlowTimes:
    """The options of a whole flow: `delay` or `eta`, and `expires`."""

    options: Mapping[str, Any] = field(default_factory=dict)

    def using(self, flow: str, options: Mapping[str, Any]) -> FlowTimes:
        """These options with `options` over them; `flow` names the flow in an error. Raises DefinitionError."""
        changed = in_our_words(flow, options)
        _refuse_options_of_calls(flow, changed)
        merged = call_options.merge(self.options, changed)
        call_options.check(flow, changed, allowed=_OPTIONS, merged=merged)
        return FlowTimes(merged)

    def expires_ms(self, now_ms: int) -> int | None:
        """Unix time in milliseconds after which no call of a flow that starts at `now_ms` runs; None: no limit."""
        return call_options.delivery_options("flow", {"expires": self.options.get("expires")}).expires_ms(now_ms)

    def first(self, task: BaseTask[..., Any], now_ms: int) -> BaseTask[..., Any]:
        """The task of a first call, with these options over its own. Raises DefinitionError if they do not fit."""
        options = {name: value for name, value in self.options.items() if name != "expires" and value is not None}
        ends_ms = self.expires_ms(now_ms)
        if ends_ms is not None and ends_ms == earliest(ends_ms, task.delivery_options.expires_ms(now_ms)):
            options["expires"] = datetime.fromtimestamp(ends_ms / 1000, UTC)
        return task.using(**options) if options else task


def in_our_words(owner: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with `delay` in place of Celery's `countdown`. Raises DefinitionError if both are given."""
    translated = dict(options)
    if "countdown" in translated:
        if "delay" in translated:
            raise DefinitionError(
                f"{owner}: countdown is another name for delay",
                fix="give one of them",
                code=ErrorCode.OPTION_INVALID,
            )
        translated["delay"] = translated.pop("countdown")
    return translated


def sent_once(task: str) -> DefinitionError:
    """The error for a later call of a flow with a `deduplication_id`, in whose place the flow has one of its own."""
    return DefinitionError(
        f"{task}: a later call of a flow has no deduplication_id: it is sent once by its own id",
        fix="leave it out, or give it to the first call of the flow",
        code=ErrorCode.FLOW_INVALID,
    )


def of_signature(owner: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """As `in_our_words`, for a signature. Raises DefinitionError for what is given when the call is made."""
    for name in ("task_id", "link", "link_error"):
        if name in options:
            raise DefinitionError(
                f"{owner}: a signature does not keep {name!r}",
                fix=f"give it where the call is made: signature.apply_async({name}=...)",
                code=ErrorCode.OPTION_INVALID,
            )
    return in_our_words(owner, options)


def _refuse_options_of_calls(flow: str, options: Mapping[str, Any]) -> None:
    """Raise DefinitionError for an option that a call has and a whole flow has not, with what to write instead."""
    for name in options:
        fix = _INSTEAD.get(name)
        if fix is None and name in CallOptions.__annotations__ and name not in _OPTIONS:
            fix = f"give it to the calls of the flow: task.using({name}=...).s(...)"
        if fix is not None:
            raise DefinitionError(
                f"{flow}: there is no option {name!r} for a whole flow", fix=fix, code=ErrorCode.OPTION_INVALID
            )


AT_ONCE: Final = FlowTimes()
"""No options."""


def earliest(*moments_ms: int | None) -> int | None:
    """The earliest of some moments; None is left out."""
    return min((moment_ms for moment_ms in moments_ms if moment_ms is not None), default=None)
