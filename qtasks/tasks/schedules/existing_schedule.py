"""Schedules that the service has: the environment of each one, and the call that it makes. Pure.

A schedule belongs to an environment only if its label, its destination and its id all agree (see `declaration`). Any
other schedule is never written to. A laptop with the production credentials has another dispatcher address, and so
other ids: its schedules appear in addition to those of production, but never replace them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError, PayloadError
from qtasks.protocol.labels.schedule_labels import DECLARED, DYNAMIC
from qtasks.protocol.messages import FlowControl, PublishOptions
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.schedules.declaration import identity, label_prefix, title
from qtasks.tasks.send.end_callback import END_TASK
from qtasks.tasks.send.outgoing import Outgoing

if TYPE_CHECKING:
    from qtasks.qstash.schedule import Schedule


def title_of(schedule: Schedule, base_url: str) -> str | None:
    """The title of a schedule of environment `base_url`; None if it belongs to another one or to another program."""
    task = schedule.destination.removeprefix(f"{base_url}/")
    name = schedule.schedule_id.rpartition("-")[0].removeprefix(task).removeprefix(".")
    is_ours = (
        is_made_by_qtasks(schedule)
        and any(label.startswith(label_prefix(base_url)) for label in labels_of(schedule))
        and schedule.schedule_id == identity(base_url, task, name)
    )
    return title(task, name) if is_ours else None


def check_owner(schedule: Schedule, base_url: str) -> str:
    """The title of a schedule of environment `base_url`. Raises ConfigurationError if it belongs to another one."""
    if (name := title_of(schedule, base_url)) is not None:
        return name
    owner = "belongs to another environment" if is_made_by_qtasks(schedule) else "was not made by qtasks"
    raise ConfigurationError(
        f"the schedule {schedule.schedule_id} {owner}, so it is not changed",
        details={"this one": base_url, "its calls": schedule.destination},
        fix="change it with the QTASKS_BASE_URL of its environment, or with the program that made it",
        code=ErrorCode.SCHEDULE_NOT_OURS,
    )


def call_of(schedule: Schedule, base_url: str) -> Outgoing:
    """The message of a run now, for a schedule that the code does not declare.

    Raises ConfigurationError if the service hides the arguments.
    """
    try:
        envelope = envelopes.decode((schedule.body or "").encode())
    except PayloadError:
        raise ConfigurationError(
            f"the service does not show the arguments of {schedule.schedule_id}, so they cannot be sent again",
            fix="trigger it through the handle that .schedule() returned",
        ) from None
    call_id = envelopes.new_call_id()
    return Outgoing(
        task=schedule.destination.removeprefix(f"{base_url}/"),
        call_id=call_id,
        options=PublishOptions(
            method="POST",
            content_type="application/json",
            retries=schedule.retries,
            retry_delay=schedule.retry_delay_expression,
            timeout_ms=envelope.timeout_ms,
            callback=schedule.callback,
            failure_callback=failure_callback_of(schedule),
            flow_control=flow_control_of(schedule),
            labels=tuple(label for label in labels_of(schedule) if not label.startswith(label_prefix(base_url))),
        ),
        queue=schedule.queue,
        envelope=envelope._replace(call_id=call_id),
    )


def labels_of(schedule: Schedule) -> Sequence[str]:
    """All labels of a schedule."""
    return schedule.labels or ([schedule.label] if schedule.label else [])


def is_made_by_qtasks(schedule: Schedule) -> bool:
    """True if qtasks made the schedule, in any environment."""
    return not {DECLARED, DYNAMIC}.isdisjoint(labels_of(schedule))


def failure_callback_of(schedule: Schedule) -> str | None:
    """The failure callback that the user has chosen; None for that of the framework, which reports ends."""
    url = schedule.failure_callback
    base_url, _, _ = schedule.destination.rpartition("/")
    return None if url is None or url.startswith(f"{base_url}/{END_TASK}?") else url


def flow_control_of(schedule: Schedule) -> FlowControl | None:
    """The limits of a schedule in the protocol's form."""
    flow = schedule.flow_control
    if flow is None:
        return None
    # The service may show a limit that is not set as 0.
    return FlowControl(flow.key, flow.parallelism or None, flow.rate or None, flow.period or 1)
