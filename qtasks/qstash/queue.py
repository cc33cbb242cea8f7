"""Queues (docs/protocol.md 2.6)."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qtasks.qstash.conversation.operation import JSON_TYPE, Operation, answer, nothing, segment, to_json

if TYPE_CHECKING:
    from qtasks.qstash.conversation.sync_driver import HttpClient

_PATH = "/v2/queues"


@dataclass
class Queue:
    """A queue. Times are Unix milliseconds."""

    name: str
    """Name of the queue."""
    parallelism: int
    """Limit of messages that run at the same time; 1 keeps the messages in order."""
    created_at: int
    """Time of its creation."""
    updated_at: int
    """Time of its last change."""
    lag: int
    """Messages that are not finished yet."""
    paused: bool
    """True if it is paused: it accepts messages and starts none."""


def parse_queue(content: Mapping[str, Any]) -> Queue:
    """Read a queue from the JSON of the service."""
    return Queue(
        name=content["name"],
        parallelism=content["parallelism"],
        created_at=content["createdAt"],
        updated_at=content["updatedAt"],
        lag=content["lag"],
        paused=content["paused"],
    )


def upsert(queue: str, parallelism: int, paused: bool) -> Operation[None]:
    """Create or change a queue."""
    segment(queue, "queue")
    body = {"queueName": queue, "parallelism": parallelism, "paused": paused}
    return Operation("POST", _PATH, nothing, headers=JSON_TYPE, body=to_json(body))


def get(queue: str) -> Operation[Queue]:
    """Get one queue."""
    return Operation("GET", _path_of(queue), lambda reply: parse_queue(answer(reply)))


def list_all() -> Operation[list[Queue]]:
    """Get all queues."""
    return Operation("GET", _PATH, lambda reply: [parse_queue(content) for content in answer(reply)])


def delete(queue: str) -> Operation[None]:
    """Delete a queue."""
    return Operation("DELETE", _path_of(queue), nothing, absent_is_done=True)


def pause(queue: str) -> Operation[None]:
    """Pause a queue."""
    return Operation("POST", f"{_path_of(queue)}/pause", nothing)


def resume(queue: str) -> Operation[None]:
    """Resume a queue."""
    return Operation("POST", f"{_path_of(queue)}/resume", nothing)


def _path_of(queue: str) -> str:
    return f"{_PATH}/{segment(queue, 'queue')}"


class QueueApi:
    """Queues. A queue starts its messages in order, at most `parallelism` (default 1) at a time."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def upsert(self, queue: str, *, parallelism: int = 1, paused: bool = False) -> None:
        """Create a queue, or replace the settings of the existing queue."""
        self._http.run(upsert(queue, parallelism, paused))

    def get(self, queue: str) -> Queue:
        """Get a queue. Raises ApiError (404) for an unknown name."""
        return self._http.run(get(queue))

    def list(self) -> builtins.list[Queue]:
        """Get all queues."""
        return self._http.run(list_all())

    def delete(self, queue: str) -> None:
        """Delete a queue."""
        self._http.run(delete(queue))

    def pause(self, queue: str) -> None:
        """Pause a queue: it accepts messages and starts none. Running attempts finish."""
        self._http.run(pause(queue))

    def resume(self, queue: str) -> None:
        """Resume a queue."""
        self._http.run(resume(queue))
