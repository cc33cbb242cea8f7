"""Queues (docs/protocol.md 2.6)."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qtasks.qstash.conversation.operation import JSON_TYPE, Operation, answer, nothing, segment, to_json
from qtasks.qstash.conversation.sync_driver import HttpClient

_PATH = "/v2/queues"


@dataclass
class Queue:
    """A queue. Times are Unix milliseconds."""

    name: str
    """Its name."""
    parallelism: int
    """Messages of the queue that may be under way at once; 1 keeps them in order."""
    created_at: int
    """When it was created."""
    updated_at: int
    """When it was last changed."""
    lag: int
    """Messages that are not finished yet."""
    paused: bool
    """Whether it is paused: it takes messages and starts none."""


def parse_queue(content: Mapping[str, Any]) -> Queue:
    """A queue as the service describes it."""
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
    """Look at one queue."""
    return Operation("GET", _of(queue), lambda reply: parse_queue(answer(reply)))


def list_all() -> Operation[list[Queue]]:
    """Look at all queues."""
    return Operation("GET", _PATH, lambda reply: [parse_queue(content) for content in answer(reply)])


def delete(queue: str) -> Operation[None]:
    """Delete a queue."""
    return Operation("DELETE", _of(queue), nothing, absent_is_done=True)


def pause(queue: str) -> Operation[None]:
    """Pause a queue."""
    return Operation("POST", f"{_of(queue)}/pause", nothing)


def resume(queue: str) -> Operation[None]:
    """Resume a queue."""
    return Operation("POST", f"{_of(queue)}/resume", nothing)


def _of(queue: str) -> str:
    return f"{_PATH}/{segment(queue, 'queue')}"


class QueueApi:
    """Queues: messages of a queue are delivered one after another."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def upsert(self, queue: str, *, parallelism: int = 1, paused: bool = False) -> None:
        """Create a queue, or replace the settings of the one that has this name."""
        self._http.run(upsert(queue, parallelism, paused))

    def get(self, queue: str) -> Queue:
        """Look at a queue. Raises ApiError (404) for an unknown one."""
        return self._http.run(get(queue))

    def list(self) -> builtins.list[Queue]:
        """Look at all queues."""
        return self._http.run(list_all())

    def delete(self, queue: str) -> None:
        """Delete a queue."""
        self._http.run(delete(queue))

    def pause(self, queue: str) -> None:
        """Pause a queue: it takes messages and starts none. What is under way is finished."""
        self._http.run(pause(queue))

    def resume(self, queue: str) -> None:
        """Resume a queue."""
        self._http.run(resume(queue))
