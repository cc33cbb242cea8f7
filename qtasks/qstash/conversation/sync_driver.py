"""The synchronous driver: performs the steps of an exchange; each step blocks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from qtasks.errors import BrokerUnreachable, QStashError
from qtasks.qstash.conversation import request_builder
from qtasks.qstash.conversation.credentials import resolve
from qtasks.qstash.conversation.exchange import (
    DEFAULT_TIMEOUT_S,
    Exchange,
    ExchangeSettings,
    ExchangeStep,
    Outcome,
    Pause,
    Retry,
    RetryConfig,
    attempts,
    exchange,
    is_success,
)
from qtasks.qstash.conversation.operation import Operation
from qtasks.qstash.conversation.service_transport import ServiceTransport
from qtasks.qstash.conversation.transport import Reply, Request, Streamed, SyncStreaming, SyncTransport

T = TypeVar("T")


def sleep(seconds: float) -> None:
    """Wait; a signal can interrupt the wait."""
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
        self._transport = transport or ServiceTransport()
        self._settings = ExchangeSettings(Retry.of(retry), timeout_s, monotonic)
        self._sleep = sleep

    def run(self, operation: Operation[T]) -> T:
        """Run an operation and return its value. Raises QStashError and its subclasses."""
        return self._drive(
            exchange(operation, request_builder.of(operation, self.credentials), self._settings), self._transport.send
        )

    def open(self, operation: Operation[Any]) -> Streamed:
        """Run an operation up to the headers of a successful response; the caller reads the body and closes it."""
        opened: list[Streamed] = []

        def begin(request: Request, timeout_s: float) -> Reply:
            streamed = self._begin(request, timeout_s)
            if not is_success(streamed.status):
                return streamed.collect()
            opened.append(streamed)
            return Reply(streamed.status, streamed.headers, b"")

        self._drive(attempts(operation, request_builder.of(operation, self.credentials), self._settings), begin)
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
        """Send a request to any path of the API; return its JSON, or its text if `parse_response` is False.

        For endpoints without a method in this client. `token` is the whole value of the header, ``Bearer ...``. A
        GET is repeated like other reads; any other method only if the service certainly did nothing.
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
        """True if this client repeats requests at all."""
        return self._settings.retry.retries > 0

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

    def _drive(self, steps: Exchange[T], send: Callable[[Request, float], Reply]) -> T:
        step = next(steps)
        while True:
            outcome = self._perform(step, send)
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                value: T = end.value
                return value
            except QStashError as error:
                # The trace ends here: what the conversation was doing says less than the message.
                raise error.with_traceback(None)  # noqa: B904 - it is the same error

    def _perform(self, step: ExchangeStep, send: Callable[[Request, float], Reply]) -> Outcome | None:
        if isinstance(step, Pause):
            self._sleep(step.seconds)
            return None
        try:
            return send(step.request, step.timeout_s)
        except BrokerUnreachable as error:
            return error
