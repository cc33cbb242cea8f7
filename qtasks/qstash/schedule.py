"""Schedules: create, get, pause, resume, delete (docs/protocol.md 2.7)."""

from __future__ import annotations

import builtins
import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

from qtasks.protocol.messages import PublishOptions
from qtasks.qstash.conversation.operation import HttpMethod, Operation, answer, destination, nothing, segment
from qtasks.qstash.message import FlowControlProperties, parse_flow_control
from qtasks.qstash.operations import options as keywords
from qtasks.qstash.operations.options import ScheduleKeywords
from qtasks.qstash.operations.publishing import Body, as_bytes, as_json

if TYPE_CHECKING:
    from qtasks.qstash.conversation.sync_driver import HttpClient

_PATH = "/v2/schedules"


class ScheduleState(enum.Enum):
    """The state of a message of the last run."""

    IN_PROGRESS = "IN_PROGRESS"
    SUCCESS = "SUCCESS"
    FAIL = "FAIL"
    UNKNOWN = "UNKNOWN"
    """A state that this version does not know."""

    @classmethod
    def _missing_(cls, _: object) -> ScheduleState:
        return cls.UNKNOWN


@dataclass
class Schedule:
    """A schedule. Times are Unix milliseconds."""

    schedule_id: str
    """Id of the schedule."""
    destination: str
    """Destination of its messages: a URL or the name of a URL group."""
    cron: str
    """The cron expression: five fields, optionally after `CRON_TZ=<zone>`."""
    created_at: int
    """Time of its creation."""
    body: str | None
    """Body of its messages, if it is UTF-8."""
    body_base64: str | None
    """Body of its messages in base64, if it is not UTF-8."""
    method: HttpMethod
    """HTTP method of the deliveries."""
    headers: dict[str, list[str]] | None
    """Headers that the destination gets."""
    callback_headers: dict[str, list[str]] | None
    """Headers that the callback URL gets."""
    failure_callback_headers: dict[str, list[str]] | None
    """Headers that the failure callback URL gets."""
    retries: int
    """Retries of a message after the first attempt at most."""
    retry_delay_expression: str | None
    """The option `retry_delay` of its messages, if any."""
    callback: str | None
    """URL that gets a message after every attempt."""
    failure_callback: str | None
    """URL that gets a message when a message has failed for good."""
    queue: str | None
    """Queue of its messages, if any."""
    delay: int | None
    """Seconds between a tick and the delivery of its message."""
    timeout: int | None
    """Seconds that one attempt may take, if limited."""
    caller_ip: str | None
    """IP address of its creator."""
    paused: bool
    """True if it is paused: its ticks create no messages."""
    flow_control: FlowControlProperties | None
    """Flow control of its messages, if any."""
    last_schedule_time: int | None
    """Time of the last tick, if there was one."""
    next_schedule_time: int | None
    """Time of the next tick."""
    last_schedule_states: dict[str, ScheduleState] | None
    """State of each message of the last run, by message id."""
    error: str | None
    """The error text of the last tick, if it failed."""
    label: str | None
    """First label of its messages, if any."""
    labels: list[str] | None = field(default=None, kw_only=True)
    """All labels of its messages."""
    paused_at: int | None = field(default=None, kw_only=True)
    """When it was paused; this and the next two are known to a broker of qtasks only."""
    paused_by: str | None = field(default=None, kw_only=True)
    """Who paused it: the name of a token."""
    pause_note: str | None = field(default=None, kw_only=True)
    """Why, if a note was given."""


def parse_schedule(content: Mapping[str, Any]) -> Schedule:
    """Read a schedule from the JSON of the service."""
    states = content.get("lastScheduleStates")
    return Schedule(
        schedule_id=content["scheduleId"],
        destination=content["destination"],
        cron=content["cron"],
        created_at=content["createdAt"],
        body=content.get("body"),
        body_base64=content.get("bodyBase64"),
        method=content["method"],
        headers=content.get("header"),
        callback_headers=content.get("callbackHeader"),
        failure_callback_headers=content.get("failureCallbackHeader"),
        retries=content["retries"],
        retry_delay_expression=content.get("retryDelayExpression"),
        callback=content.get("callback"),
        failure_callback=content.get("failureCallback"),
        queue=content.get("queueName"),
        delay=content.get("delay"),
        timeout=content.get("timeout"),
        caller_ip=content.get("callerIP"),
        paused=content.get("isPaused", False),
        flow_control=parse_flow_control(content),
        last_schedule_time=content.get("lastScheduleTime"),
        next_schedule_time=content.get("nextScheduleTime"),
        last_schedule_states=None if states is None else {key: ScheduleState(state) for key, state in states.items()},
        error=content.get("error"),
        label=content.get("label"),
        labels=content.get("labels"),
        paused_at=content.get("pausedAt"),
        paused_by=content.get("pausedBy"),
        pause_note=content.get("pauseNote"),
    )


def create(target: str, cron: str, body: Body, arguments: Mapping[str, Any], *, repeating: bool) -> Operation[str]:
    """Create or replace a schedule.

    A client that repeats requests (`repeating`) chooses the id itself if the caller does not. A second creation after
    a lost reply then replaces the first schedule.
    """
    keywords.check_names(arguments, ScheduleKeywords, "create()")
    options = replace(keywords.read(arguments), cron=cron)
    if options.schedule_id is None and repeating:
        options = replace(options, schedule_id=f"scd_{os.urandom(16).hex()}")
    return replace(create_raw(target, as_bytes(body), options), headers=keywords.headers(options, arguments))


def create_raw(target: str, body: bytes, options: PublishOptions) -> Operation[str]:
    """Create or replace a schedule. `options` is the protocol's own value, with the id and the cron expression."""
    return Operation(
        "POST",
        f"{_PATH}/{destination(target)}",
        lambda reply: str(answer(reply)["scheduleId"]),
        headers=keywords.headers(options, {}),
        body=body,
    )


def get(schedule_id: str) -> Operation[Schedule]:
    """Get one schedule."""
    return Operation("GET", _path_of(schedule_id), lambda reply: parse_schedule(answer(reply)))


def list_all() -> Operation[list[Schedule]]:
    """Get all schedules."""
    return Operation("GET", _PATH, lambda reply: [parse_schedule(content) for content in answer(reply)])


def delete(schedule_id: str) -> Operation[None]:
    """Delete a schedule."""
    return Operation("DELETE", _path_of(schedule_id), nothing, absent_is_done=True)


def pause(schedule_id: str) -> Operation[None]:
    """Pause a schedule."""
    return Operation("PATCH", f"{_path_of(schedule_id)}/pause", nothing)


def resume(schedule_id: str) -> Operation[None]:
    """Resume a schedule."""
    return Operation("PATCH", f"{_path_of(schedule_id)}/resume", nothing)


def _path_of(schedule_id: str) -> str:
    return f"{_PATH}/{segment(schedule_id, 'schedule_id')}"


class ScheduleApi:
    """Schedules. A schedule publishes a message at every tick of its cron expression."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def create(self, *, destination: str, cron: str, body: Body = None, **options: Unpack[ScheduleKeywords]) -> str:
        """Create a schedule and return its id. An existing schedule with this `schedule_id` is replaced completely.

        `destination` is a URL or the name of a URL group. `cron` has five fields, in UTC or in the zone of a prefix
        ``CRON_TZ=Europe/Berlin ``.
        """
        return self._http.run(create(destination, cron, body, options, repeating=self._http.repeats))

    def create_json(self, *, destination: str, cron: str, body: Any = None, **options: Unpack[ScheduleKeywords]) -> str:
        """As `create`, with a body that is encoded as JSON."""
        text, arguments = as_json(body, options)
        return self._http.run(create(destination, cron, text, arguments, repeating=self._http.repeats))

    def get(self, schedule_id: str) -> Schedule:
        """Get a schedule. Raises ApiError (404) for an unknown id."""
        return self._http.run(get(schedule_id))

    def list(self) -> builtins.list[Schedule]:
        """Get all schedules."""
        return self._http.run(list_all())

    def delete(self, schedule_id: str) -> None:
        """Delete a schedule. Messages that it has created are still delivered."""
        self._http.run(delete(schedule_id))

    def pause(self, schedule_id: str) -> None:
        """Pause a schedule: ticks during the pause create no messages, and are not repeated later."""
        self._http.run(pause(schedule_id))

    def resume(self, schedule_id: str) -> None:
        """Resume a schedule: it runs at its next tick."""
        self._http.run(resume(schedule_id))
