"""The synchronous driver: performs what a conversation asks for, by blocking."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from qtasks.errors import BrokerUnreachable
from qtasks.qstash.conversation import request_builder
from qtasks.qstash.conversation.credentials import resolve
from qtasks.qstash.conversation.exchange import (
    DEFAULT_TIMEOUT_S,
    Conversation,
    ExchangeStep,
    Manner,
    Outcome,
    Pause,
    Retry,
    RetryConfig,
    attempts,
    exchange,
    is_success,
)
from qtasks.qstash.conversation.httpx_transport import HttpxTransport
from qtasks.qstash.conversation.operation import Operation
from qtasks.qstash.conversation.transport import Reply, Request, Streamed, SyncStreaming, SyncTransport

T = TypeVar("T")


def sleep(seconds: float) -> None:
    """Wait; a signal interrupts it."""
    threading.Event().wait(seconds)


class HttpClient:
    """Runs operations against one service. Thread-safe."""

    def __init__(
        self,
        token: str | None = None,
        retry: RetryConfig | Retry | bool | None = None,
        base_url: str | None = None,
        *,
        transport: SyncTransport | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        sleep: Callable[[float], None] = sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.credentials = resolve(token, base_url, os.environ)
        self._transport = transport or HttpxTransport()
        self._manner = Manner(Retry.of(retry), timeout_s, monotonic)
        self._sleep = sleep

    def run(self, call: Operation[T]) -> T:
        """Run an operation and return its value. Raises QStashError and its subclasses."""
        return self._lead(
            exchange(call, request_builder.of(call, self.credentials), self._manner), self._transport.send
        )

    def open(self, call: Operation[Any]) -> Streamed:
        """Run an operation up to the headers of a successful response; the caller reads the body and closes it."""
        opened: list[Streamed] = []

        def begin(request: Request, timeout_s: float) -> Reply:
            streamed = self._begin(request, timeout_s)
            if not is_success(streamed.status):
                return streamed.collect()
            opened.append(streamed)
            return Reply(streamed.status, streamed.headers, b"")

        self._lead(attempts(call, request_builder.of(call, self.credentials), self._manner), begin)
        return opened[0]

    def request(
        self,
        *,
        path: str,
        method: request_builder.HttpMethod,
        headers: Mapping[str, str] | None = None,
        body: str | bytes | None = None,
        params: Mapping[str, Any] | None = None,
        parse_response: bool = True,
        base_url: str | None = None,
        token: str | None = None,
    ) -> Any:
        """Call any path of the API: its JSON, or its text when `parse_response` is False.

        For endpoints that have no method of their own. `token` is the whole value of the header, ``Bearer ...``. A
        GET is repeated like other reads; any other method only when the service certainly did nothing.
        """
        return self.run(
            request_builder.custom(
                path=path,
                method=method,
                headers=headers,
                body=body,
                params=params,
                parse_response=parse_response,
                base_url=base_url,
                token=token,
            )
        )

    @property
    def repeats(self) -> bool:
        """Whether this client repeats calls at all."""
        return self._manner.retry.retries > 0

    def new_retry_id(self) -> str | None:
        """A deduplication id for the client's own retries; None if the client does not retry."""
        return request_builder.new_retry_id() if self.repeats else None

    def close(self) -> None:
        """Close the connections. Calling it again does nothing."""
        self._transport.close()

    def _begin(self, request: Request, timeout_s: float) -> Streamed:
        if isinstance(self._transport, SyncStreaming):
            return self._transport.stream(request, timeout_s)
        reply = self._transport.send(request, timeout_s)
        return Streamed(reply.status, reply.headers, iter([reply.body]), lambda: None)

    def _lead(self, conversation: Conversation[T], send: Callable[[Request, float], Reply]) -> T:
        step = next(conversation)
        while True:
            outcome = self._perform(step, send)
            try:
                step = conversation.send(outcome)
            except StopIteration as end:
                value: T = end.value
                return value

    def _perform(self, step: ExchangeStep, send: Callable[[Request, float], Reply]) -> Outcome | None:
        if isinstance(step, Pause):
            self._sleep(step.seconds)
            return None
        try:
            return send(step.request, step.timeout_s)
        except BrokerUnreachable as error:
            return error
