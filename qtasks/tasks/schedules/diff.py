"""The difference between the schedules that the code declares and those that the service has. Pure: `sync` acts.

Only schedules of this environment are compared (see `existing_schedule`). Whether a schedule is paused is not declared
in the code, so a difference never pauses or resumes one.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qtasks.protocol import durations
from qtasks.protocol.labels.schedule_labels import DYNAMIC
from qtasks.protocol.messages import DEFAULT_RETRIES, FlowControl
from qtasks.tasks.schedules.declaration import DesiredSchedule
from qtasks.tasks.schedules.existing_schedule import (
    check_owner,
    failure_callback_of,
    flow_control_of,
    is_made_by_qtasks,
    labels_of,
    title_of,
)

if TYPE_CHECKING:
    from qtasks.qstash.schedule import Schedule


@dataclass(frozen=True, slots=True)
class ScheduleDifference:
    """One schedule: what the code declares, what the service has, and how the two differ."""

    title: str
    desired: DesiredSchedule | None = None
    """None: the code does not declare it."""
    existing: Schedule | None = None
    """None: the service does not have it."""
    reasons: tuple[str, ...] = ()
    """What differs, as texts for people."""

    @property
    def is_dynamic(self) -> bool:
        """True if a running program made the schedule; no code declares it."""
        return self.existing is not None and DYNAMIC in labels_of(self.existing)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPlan:
    """What a sync has to do, or did, so that the service has the schedules that the code declares."""

    added: tuple[ScheduleDifference, ...] = ()
    changed: tuple[ScheduleDifference, ...] = ()
    removed: tuple[ScheduleDifference, ...] = ()
    """Schedules whose declaration no longer exists. Only ``prune=True`` removes them."""
    unchanged: tuple[ScheduleDifference, ...] = ()
    dynamic: tuple[ScheduleDifference, ...] = ()
    """Schedules that a running program made. A sync does not touch them."""
    elsewhere: tuple[Schedule, ...] = ()
    """Schedules of other environments. A sync does not touch them."""
    pruned: bool = False
    """True if the schedules in `removed` have been removed."""

    @property
    def in_sync(self) -> bool:
        """True if code and service agree."""
        return not (self.added or self.changed or self.removed)

    def __str__(self) -> str:
        removed = "removed" if self.pruned else "left over"
        parts = [
            f"{verb} {', '.join(difference.title for difference in differences)}"
            for verb, differences in (("added", self.added), ("changed", self.changed), (removed, self.removed))
            if differences
        ]
        return "; ".join(parts) or "nothing to do"


def plan_sync(desired_schedules: Iterable[DesiredSchedule], existing: Sequence[Schedule], base_url: str) -> SyncPlan:
    """Compare all schedules of environment `base_url`; each part of the plan is sorted by title.

    Raises ConfigurationError if a schedule of another environment has the id of a desired one.
    """
    existing_by_id = {schedule.schedule_id: schedule for schedule in existing}
    added: list[ScheduleDifference] = []
    changed: list[ScheduleDifference] = []
    unchanged: list[ScheduleDifference] = []
    desired_ids: set[str] = set()
    for desired in sorted(desired_schedules, key=lambda desired: desired.title):
        desired_ids.add(desired.id)
        if (schedule := existing_by_id.get(desired.id)) is None:
            added.append(ScheduleDifference(desired.title, desired))
            continue
        check_owner(schedule, base_url)
        reasons = differences(desired, schedule)
        (changed if reasons else unchanged).append(ScheduleDifference(desired.title, desired, schedule, reasons))
    others = [
        (schedule, title_of(schedule, base_url)) for schedule in existing if schedule.schedule_id not in desired_ids
    ]
    undeclared = [ScheduleDifference(title, None, schedule) for schedule, title in others if title is not None]
    undeclared.sort(key=lambda difference: difference.title)
    return SyncPlan(
        added=tuple(added),
        changed=tuple(changed),
        removed=tuple(
            replace(difference, reasons=("not declared any more",))
            for difference in undeclared
            if not difference.is_dynamic
        ),
        unchanged=tuple(unchanged),
        dynamic=tuple(difference for difference in undeclared if difference.is_dynamic),
        elsewhere=tuple(schedule for schedule, title in others if title is None and is_made_by_qtasks(schedule)),
    )


def differences(desired: DesiredSchedule, existing: Schedule) -> tuple[str, ...]:
    """What differs between a declaration and the schedule of the service, as texts; empty if nothing does."""
    options = desired.options
    retries = DEFAULT_RETRIES if options.retries is None else options.retries
    texts = [
        f"{name} {existing_text or '-'} -> {desired_text or '-'}"
        for name, existing_text, desired_text in (
            ("cron", existing.cron, options.cron),
            ("destination", existing.destination, desired.destination),
            ("retries", str(existing.retries), str(retries)),
            ("retry delay", existing.retry_delay_expression, options.retry_delay),
            ("queue", existing.queue, options.queue),
            ("callback", existing.callback, options.callback),
            ("failure callback", failure_callback_of(existing), options.failure_callback),
            ("limits", _limits_text(flow_control_of(existing)), _limits_text(options.flow_control)),
        )
        if existing_text != desired_text
    ]
    if desired.is_lasting and not _has_body(existing, desired.body):
        texts.append("arguments")
    # The fingerprint in the labels covers everything, also what a service shows differently or does not show.
    if not texts and set(labels_of(existing)) != set(options.labels):
        texts.append("options" if desired.is_lasting else "arguments or options")
    return tuple(texts)


def _limits_text(flow_control: FlowControl | None) -> str | None:
    if flow_control is None:
        return None
    limits = []
    if flow_control.parallelism is not None:
        limits.append(f"parallelism={flow_control.parallelism}")
    if flow_control.rate is not None:
        limits.append(f"rate={flow_control.rate}/{durations.format(flow_control.period_s * 1000)}")
    return f"{flow_control.key} ({', '.join(limits)})"


def _has_body(existing: Schedule, body: bytes) -> bool:
    """True if `existing` shows `body`, or the hash of `body` in its place."""
    shown = base64.b64decode(existing.body_base64) if existing.body_base64 else (existing.body or "").encode()
    return shown in (body, f"REDACTED:{hashlib.sha256(body).hexdigest()}".encode())
