"""Flow control: get keys, pause them, pin their limits (docs/protocol.md 2.11)."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from qtasks.qstash.conversation.operation import Operation, answer, nothing, query, segment
from qtasks.qstash.conversation.transport import Reply
from qtasks.qstash.operations.options import check_names

if TYPE_CHECKING:
    from qtasks.qstash.conversation.sync_driver import HttpClient

_PATH = "/v2/flowControl"


@dataclass
class FlowControlInfo:
    """The current state of a flow-control key. A maximum of 0 means that there is no limit."""

    key: str
    """Name of the key."""
    wait_list_size: int
    """Messages in the wait list of the key."""
    parallelism_max: int
    """Limit of attempts that run at the same time."""
    parallelism_count: int
    """Attempts that are running."""
    rate_max: int
    """Limit of attempts that start within one period."""
    rate_count: int
    """Attempts that have started in the current period."""
    rate_period: int
    """Length of the period in seconds."""
    rate_period_start: int
    """Start of the current period, Unix seconds."""
    is_paused: bool
    """True if no message of the key starts."""
    is_pinned_parallelism: bool
    """True if messages cannot change the parallelism."""
    is_pinned_rate: bool
    """True if messages cannot change the rate and the period."""


@dataclass
class GlobalParallelismInfo:
    """Attempts of the whole account."""

    parallelism_max: int
    """Limit of attempts that run at the same time."""
    parallelism_count: int
    """Attempts that are running."""


class PinFlowControlOptions(TypedDict, total=False):
    """The limits to pin. Messages can still change the others."""

    parallelism: int
    """Limit of attempts that run at the same time."""
    rate: int
    """Limit of attempts that start within one period."""
    period: int
    """Length of the period in seconds."""


class UnpinFlowControlOptions(TypedDict, total=False):
    """The limits to unpin."""

    parallelism: bool
    """Unpin the parallelism."""
    rate: bool
    """Unpin rate and period."""


def parse_flow_control_info(content: Mapping[str, Any]) -> FlowControlInfo:
    """Read a key from the JSON of the service."""
    return FlowControlInfo(
        key=content["flowControlKey"],
        wait_list_size=content.get("waitListSize", 0),
        parallelism_max=content.get("parallelismMax", 0),
        parallelism_count=content.get("parallelismCount", 0),
        rate_max=content.get("rateMax", 0),
        rate_count=content.get("rateCount", 0),
        rate_period=content.get("ratePeriod", 0),
        rate_period_start=content.get("ratePeriodStart", 0),
        is_paused=content.get("isPaused", False),
        is_pinned_parallelism=content.get("isPinnedParallelism", False),
        is_pinned_rate=content.get("isPinnedRate", False),
    )


def get(flow_control_key: str) -> Operation[FlowControlInfo]:
    """Get one key."""
    return Operation("GET", _path_of(flow_control_key), lambda reply: parse_flow_control_info(answer(reply)))


def list_all(search: str | None) -> Operation[list[FlowControlInfo]]:
    """Get all keys, or those whose name contains `search`."""
    path = _PATH + query([("search", search)] if search else [])
    return Operation("GET", path, lambda reply: [parse_flow_control_info(content) for content in answer(reply)])


def get_global_parallelism() -> Operation[GlobalParallelismInfo]:
    """Get the account's parallelism."""
    return Operation("GET", "/v2/globalParallelism", _read_global)


def pause(flow_control_key: str) -> Operation[None]:
    """Pause a key."""
    return _act(flow_control_key, "pause")


def resume(flow_control_key: str) -> Operation[None]:
    """Resume a key."""
    return _act(flow_control_key, "resume")


def pin(flow_control_key: str, options: PinFlowControlOptions) -> Operation[None]:
    """Pin limits of a key."""
    check_names(options, PinFlowControlOptions, "pin()")
    return _act(flow_control_key, "pin", [(name, str(value)) for name, value in options.items()])


def unpin(flow_control_key: str, options: UnpinFlowControlOptions) -> Operation[None]:
    """Unpin limits of a key."""
    check_names(options, UnpinFlowControlOptions, "unpin()")
    return _act(flow_control_key, "unpin", [(name, str(value).lower()) for name, value in options.items()])


def reset_rate(flow_control_key: str) -> Operation[None]:
    """Start a new period."""
    return _act(flow_control_key, "resetRate")


def reset(flow_control_key: str) -> Operation[None]:
    """Set the counters of parallelism and rate to zero."""
    return _act(flow_control_key, "reset")


def _act(flow_control_key: str, action: str, pairs: list[tuple[str, str]] | None = None) -> Operation[None]:
    return Operation("POST", f"{_path_of(flow_control_key)}/{action}{query(pairs or [])}", nothing)


def _path_of(flow_control_key: str) -> str:
    return f"{_PATH}/{segment(flow_control_key, 'flow_control_key')}"


def _read_global(reply: Reply) -> GlobalParallelismInfo:
    content = answer(reply)
    return GlobalParallelismInfo(
        parallelism_max=content.get("parallelismMax", 0), parallelism_count=content.get("parallelismCount", 0)
    )


class FlowControlApi:
    """Flow-control keys. The first message with a key creates it."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def get(self, flow_control_key: str) -> FlowControlInfo:
        """Get a key. Raises ApiError (404) for an unknown key."""
        return self._http.run(get(flow_control_key))

    def list(self, *, search: str | None = None) -> builtins.list[FlowControlInfo]:
        """Get all keys, or those whose name contains `search`."""
        return self._http.run(list_all(search))

    def get_global_parallelism(self) -> GlobalParallelismInfo:
        """The limit of concurrent attempts of the account, and how many run now."""
        return self._http.run(get_global_parallelism())

    def pause(self, flow_control_key: str) -> None:
        """Pause a key: its messages wait."""
        self._http.run(pause(flow_control_key))

    def resume(self, flow_control_key: str) -> None:
        """Resume a paused key."""
        self._http.run(resume(flow_control_key))

    def pin(self, flow_control_key: str, options: PinFlowControlOptions) -> None:
        """Pin limits of a key: until `unpin`, the limits in new messages are ignored."""
        self._http.run(pin(flow_control_key, options))

    def unpin(self, flow_control_key: str, options: UnpinFlowControlOptions) -> None:
        """Allow messages to change the limits of a key again."""
        self._http.run(unpin(flow_control_key, options))

    def reset_rate(self, flow_control_key: str) -> None:
        """Start a new period now, with no attempts counted."""
        self._http.run(reset_rate(flow_control_key))

    def reset(self, flow_control_key: str) -> None:
        """Set the counters of parallelism and rate to zero."""
        self._http.run(reset(flow_control_key))
