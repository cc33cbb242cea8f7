"""Sending calls to the broker, with the short patience that code waiting in a request has."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from qtasks.errors import ApiError, BrokerUnreachable
from qtasks.protocol.loopback import is_loopback_url
from qtasks.tasks.send import outgoing
from qtasks.tasks.send.outgoing import Outgoing, Refused
from qtasks.tasks.settings import Settings

if TYPE_CHECKING:
    from qtasks.qstash import AsyncQStash, QStash, Retry
    from qtasks.qstash.conversation.operation import Operation
    from qtasks.qstash.conversation.transport import AsyncTransport, SyncTransport
    from qtasks.qstash.operations.publishing import PublishResponse

T = TypeVar("T")

RETRIES = 3
RETRY_FOR_S = 1.0
"""A restarting broker is back within the second; a dead one is reported within two."""

NEAR_TIMEOUT_S = 1.8
FAR_TIMEOUT_S = 5.0
"""How long one attempt may take on this machine, and across a network."""

THREADS = 8
"""Publishing from async code goes through the synchronous client, which costs a tenth of httpx's asynchronous one."""


class Publisher:
    """Publishes to one service. Thread-safe; `settings` must name url, token and base_url."""

    def __init__(
        self,
        settings: Settings,
        *,
        transport: SyncTransport | None = None,
        async_transport: AsyncTransport | None = None,
    ) -> None:
        self._url, self._token, self._base_url = settings.sender()
        self._origin = settings.origin("url")
        self._timeout_s = NEAR_TIMEOUT_S if is_loopback_url(self._url) else FAR_TIMEOUT_S
        self._transport = transport
        self._async_transport = async_transport
        self._lock = threading.Lock()
        self._client: QStash | None = None
        self._async_client: AsyncQStash | None = None
        self._pool: ThreadPoolExecutor | None = None

    def publish(self, message: Outgoing) -> PublishResponse:
        """Publish a call. Raises BrokerUnreachable, saying what was tried and what to start, or ApiError."""
        try:
            http = self._opened().http
            return http.run(outgoing.call(message, self._base_url, http.new_retry_id()))
        except BrokerUnreachable as error:
            raise self._explained(message.task, error) from error

    async def apublish(self, message: Outgoing) -> PublishResponse:
        """As `publish`, without blocking the loop."""
        if self._async_transport is None:
            return await self._aside(lambda: self.publish(message))
        try:
            http = self._opened_async(self._async_transport).http
            return await http.run(outgoing.call(message, self._base_url, http.new_retry_id()))
        except BrokerUnreachable as error:
            raise self._explained(message.task, error) from error

    def publish_many(self, messages: Sequence[Outgoing]) -> list[PublishResponse | Refused]:
        """Publish calls in as few requests as they fit into. Raises as `publish`; some may be sent by then."""
        answers: list[PublishResponse | Refused] = []
        try:
            http = self._opened().http
            for portion in outgoing.portions(messages):
                taken = http.run(outgoing.batch(portion, self._base_url, http.new_retry_id))
                answers.extend(taken)
        except BrokerUnreachable as error:
            raise self._explained(_these(messages, len(answers)), error) from error
        return answers

    async def apublish_many(self, messages: Sequence[Outgoing]) -> list[PublishResponse | Refused]:
        """As `publish_many`, without blocking the loop."""
        if self._async_transport is None:
            return await self._aside(lambda: self.publish_many(messages))
        answers: list[PublishResponse | Refused] = []
        try:
            http = self._opened_async(self._async_transport).http
            for portion in outgoing.portions(messages):
                taken = await http.run(outgoing.batch(portion, self._base_url, http.new_retry_id))
                answers.extend(taken)
        except BrokerUnreachable as error:
            raise self._explained(_these(messages, len(answers)), error) from error
        return answers

    def cancel(self, message_id: str) -> bool:
        """Have a message not delivered any more; returns whether the broker still had it. Raises as `publish`."""
        try:
            self._opened().message.cancel(message_id)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return False
        except BrokerUnreachable as error:
            raise self._explained(f"the cancellation of {message_id}", error) from error
        return True

    def call(self, call: Operation[T], what: str) -> T:
        """Lead any other call of the API to its value; `what` names it in an error. Raises as `publish`."""
        try:
            return self._opened().http.run(call)
        except BrokerUnreachable as error:
            raise self._explained(what, error, missed="was not done") from error

    def close(self) -> None:
        """Close connections and threads. Idempotent."""
        with self._lock:
            client, self._client = self._client, None
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
        if client is not None:
            client.close()

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads(), work)

    def _opened(self) -> QStash:
        # Imported here: a process that only runs tasks never needs the client.
        from qtasks.qstash import QStash

        with self._lock:
            if self._client is None:
                self._client = QStash(
                    self._token,
                    base_url=self._url,
                    retry=_retry(),
                    transport=self._transport,
                    timeout_s=self._timeout_s,
                )
            return self._client

    def _opened_async(self, transport: AsyncTransport) -> AsyncQStash:
        from qtasks.qstash import AsyncQStash

        with self._lock:
            if self._async_client is None:
                self._async_client = AsyncQStash(
                    self._token, base_url=self._url, retry=_retry(), transport=transport, timeout_s=self._timeout_s
                )
            return self._async_client

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="qtasks-publish")
            return self._pool

    def _explained(self, what: str, error: BrokerUnreachable, *, missed: str = "was not queued") -> BrokerUnreachable:
        fix = (
            "start it with `qtasks dev`"
            if is_loopback_url(self._url)
            else "see whether it runs and can be reached from here"
        )
        return BrokerUnreachable(
            f"{what} {missed}: {error.message}",
            details={"tried": f"{self._url} (from {self._origin})"},
            sent=error.sent,
            fix=fix,
        )


def _these(messages: Sequence[Outgoing], sent: int) -> str:
    """What of a batch was not sent, in words."""
    return f"a batch of {len(messages) - sent} calls"


def _retry() -> Retry:
    from qtasks.qstash import Retry

    return Retry(retries=RETRIES, backoff=lambda retried: 100 * 2**retried, total_s=RETRY_FOR_S)
