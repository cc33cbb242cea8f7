"""How code and service differ about schedules, and whose a schedule is. Pure; `scheduling` acts.

A schedule is ours only if label, destination and id agree on it (see `schedules`). Whatever is not is never written to:
a laptop with the keys of production has another address, hence other ids, and its schedules stand beside those of
production at worst.

Whether a schedule is paused is nobody's declaration: it is left as it is.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, PayloadError
from qtasks.protocol import durations
from qtasks.protocol.messages import DEFAULT_RETRIES, FlowControl, PublishOptions
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.schedules.declaration import DECLARED, DYNAMIC, DesiredSchedule, identity, mark, title
from qtasks.tasks.send.outgoing import Outgoing

if TYPE_CHECKING:
    from qtasks.qstash.schedule import Schedule


@dataclass(frozen=True, slots=True)
class ScheduleDifference:
    """One schedule, and how code and service differ about it."""

    title: str
    desired: DesiredSchedule | None = None
    found: Schedule | None = None
    reasons: tuple[str, ...] = ()
    """What differs, in words."""

    @property
    def is_dynamic(self) -> bool:
        """Whether a running program has made it, not a declaration."""
        return self.found is not None and DYNAMIC in _labels(self.found)


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What it takes, or took, for the service to have the schedules that the code declares."""

    added: tuple[ScheduleDifference, ...] = ()
    changed: tuple[ScheduleDifference, ...] = ()
    removed: tuple[ScheduleDifference, ...] = ()
    """Declared once, and no more; only `prune` removes them."""
    unchanged: tuple[ScheduleDifference, ...] = ()
    dynamic: tuple[ScheduleDifference, ...] = ()
    """Made by a running program; not ours to judge."""
    elsewhere: tuple[Schedule, ...] = ()
    """Of other environments; never touched."""
    pruned: bool = False
    """Whether `removed` has been removed."""

    @property
    def in_sync(self) -> bool:
        """Whether code and service agree."""
        return not (self.added or self.changed or self.removed)

    def __str__(self) -> str:
        gone = "removed" if self.pruned else "left over"
        said = [
            f"{word} {', '.join(step.title for step in steps)}"
            for word, steps in (("added", self.added), ("changed", self.changed), (gone, self.removed))
            if steps
        ]
        return "; ".join(said) or "nothing to do"


def plan(desired: Iterable[DesiredSchedule], found: Sequence[Schedule], base_url: str) -> SyncPlan:
    """Compare; steps are in the order of their titles.

    Raises ConfigurationError where a schedule that is not ours stands in the place of one.
    """
    standing = {one.schedule_id: one for one in found}
    added: list[ScheduleDifference] = []
    changed: list[ScheduleDifference] = []
    unchanged: list[ScheduleDifference] = []
    ids: set[str] = set()
    for one in sorted(desired, key=lambda one: one.title):
        ids.add(one.id)
        if (there := standing.get(one.id)) is None:
            added.append(ScheduleDifference(one.title, one))
            continue
        own(there, base_url)
        reasons = differences(one, there)
        (changed if reasons else unchanged).append(ScheduleDifference(one.title, one, there, reasons))
    others = [(there, title_of(there, base_url)) for there in found if there.schedule_id not in ids]
    undeclared = [ScheduleDifference(name, None, there) for there, name in others if name is not None]
    undeclared.sort(key=lambda difference: difference.title)
    return SyncPlan(
        tuple(added),
        tuple(changed),
        tuple(replace(step, reasons=("not declared any more",)) for step in undeclared if not step.is_dynamic),
        tuple(unchanged),
        tuple(step for step in undeclared if step.is_dynamic),
        tuple(there for there, name in others if name is None and _is_made_here(there)),
    )


def differences(desired: DesiredSchedule, found: Schedule) -> tuple[str, ...]:
    """How a schedule at the service is other than it should be, in words; empty if it is not."""
    options = desired.options
    said = [
        f"{name} {is_there or '-'} -> {should_be or '-'}"
        for name, is_there, should_be in (
            ("cron", found.cron, options.cron),
            ("destination", found.destination, desired.destination),
            ("retries", str(found.retries), str(DEFAULT_RETRIES if options.retries is None else options.retries)),
            ("retry delay", found.retry_delay_expression, options.retry_delay),
            ("queue", found.queue, options.queue),
            ("callback", found.callback, options.callback),
            ("failure callback", found.failure_callback, options.failure_callback),
            ("limits", _limits(_flow_control(found)), _limits(options.flow_control)),
        )
        if is_there != should_be
    ]
    if not _is_body(found, desired.body):
        said.append("arguments")
    # The fingerprint knows of everything, also of what services show differently or not at all.
    if not said and set(_labels(found)) != set(options.labels):
        said.append("options")
    return tuple(said)


def title_of(found: Schedule, base_url: str) -> str | None:
    """The title of a schedule of environment `base_url`; None for any other."""
    task = found.destination.removeprefix(f"{base_url}/")
    name = found.schedule_id.rpartition("-")[0].removeprefix(task).removeprefix(".")
    ours = (
        _is_made_here(found)
        and any(label.startswith(mark(base_url)) for label in _labels(found))
        and found.schedule_id == identity(base_url, task, name)
    )
    return title(task, name) if ours else None


def own(found: Schedule, base_url: str) -> str:
    """The title of a schedule that we may write to. Raises ConfigurationError for any other, naming both sides."""
    if (name := title_of(found, base_url)) is not None:
        return name
    other = "belongs to another environment" if _is_made_here(found) else "was not made by qtasks"
    raise ConfigurationError(
        f"the schedule {found.schedule_id} {other}, and is left alone",
        details={"this one": base_url, "its calls": found.destination},
        fix="work on it with the QTASKS_BASE_URL of its environment, or where it was made",
        code=ErrorCode.SCHEDULE_NOT_OURS,
    )


def call_of(found: Schedule, base_url: str) -> Outgoing:
    """A run now of a schedule that only the service knows. Raises ConfigurationError where it hides the arguments."""
    try:
        envelope = envelopes.decode((found.body or "").encode())
    except PayloadError:
        raise ConfigurationError(
            f"the service does not show the arguments of {found.schedule_id}, so they cannot be sent again",
            fix="trigger it through the handle that .schedule() returned",
        ) from None
    call_id = envelopes.new_call_id()
    message = Outgoing(
        task=found.destination.removeprefix(f"{base_url}/"),
        call_id=call_id,
        body=b"",
        options=PublishOptions(
            method="POST",
            content_type="application/json",
            retries=found.retries,
            retry_delay=found.retry_delay_expression,
            timeout_ms=envelope.timeout_ms,
            callback=found.callback,
            failure_callback=found.failure_callback,
            flow_control=_flow_control(found),
            labels=tuple(label for label in _labels(found) if not label.startswith(mark(base_url))),
        ),
        queue=found.queue,
        envelope=replace(envelope, call_id=call_id),
    )
    return message.sealed()


def _labels(found: Schedule) -> Sequence[str]:
    return found.labels or ([found.label] if found.label else [])


def _is_made_here(found: Schedule) -> bool:
    """Whether some qtasks has made it, of whichever environment."""
    return not {DECLARED, DYNAMIC}.isdisjoint(_labels(found))


def _flow_control(found: Schedule) -> FlowControl | None:
    flow = found.flow_control
    if flow is None:
        return None
    return FlowControl(
        flow.key, flow.parallelism or None, flow.rate or None, flow.period or 1
    )  # 0 is none, as absent is


def _limits(flow: FlowControl | None) -> str | None:
    if flow is None:
        return None
    period = durations.format(flow.period_s * 1000)
    said = [f"parallelism={flow.parallelism}"] * (flow.parallelism is not None)
    said += [f"rate={flow.rate}/{period}"] * (flow.rate is not None)
    return f"{flow.key} ({', '.join(said)})"


def _is_body(found: Schedule, body: bytes) -> bool:
    shown = base64.b64decode(found.body_base64) if found.body_base64 else (found.body or "").encode()
    return shown in (body, f"REDACTED:{hashlib.sha256(body).hexdigest()}".encode())
