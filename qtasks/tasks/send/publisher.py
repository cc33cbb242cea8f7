"""Sends calls to the broker. It gives up after a few seconds, because the caller may be handling a request."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from qtasks.errors import ApiError, BrokerUnreachable
from qtasks.forks import per_process
from qtasks.protocol.loopback import is_loopback_url
from qtasks.tasks.closing import close_all
from qtasks.tasks.send.call_sender import CallSender
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.prepared_call import CallPreparer
from qtasks.tasks.settings import Settings
from qtasks.threads import DaemonThreadPool

if TYPE_CHECKING:
    from qtasks.qstash import AsyncQStash, QStash, Retry
    from qtasks.qstash.conversation.operation import Operation
    from qtasks.qstash.conversation.transport import AsyncTransport, SyncTransport
    from qtasks.qstash.operations.publishing import BatchError, PublishResponse

T = TypeVar("T")

RETRIES = 3
RETRY_FOR_S = 1.0
"""Retries, and the time in which they begin: a broker that restarts is back within a second. One that is down is
reported after this time and the timeout of one attempt."""

NEAR_TIMEOUT_S = 1.8
FAR_TIMEOUT_S = 5.0
"""The timeout of one attempt: on this machine, and across a network."""

THREADS = 8
"""To a service over https, async code publishes through the synchronous client in a thread: it costs a tenth of httpx's
asynchronous client."""


class Publisher:
    """Publishes to one service. Thread-safe; `settings` must have url, token and base_url."""

    def __init__(
        self,
        settings: Settings,
        *,
        transport: SyncTransport | None = None,
        async_transport: AsyncTransport | None = None,
    ) -> None:
        self._url, self._token, base_url = settings.sender()
        self._origin = settings.origin("url")
        self._timeout_s = NEAR_TIMEOUT_S if is_loopback_url(self._url) else FAR_TIMEOUT_S
        self._transport = transport
        self._async_transport = async_transport
        self._client: QStash | None = None
        self._async_client: AsyncQStash | None = None
        self._serves_loops: bool | None = None if transport is None else async_transport is not None
        """Whether async code publishes on its event loop; None: not known yet."""
        self._pool: DaemonThreadPool | None = None
        self._calls = CallSender(
            self,
            CallPreparer(base_url, settings.interrupted_for_ms),
            timeout_s=self._timeout_s,
            longest_s=RETRY_FOR_S + self._timeout_s,
            is_foreign=settings.is_hosted,
        )
        per_process(self._begin)

    def _begin(self) -> None:
        # The clients and the pool make their connections and threads anew themselves.
        self._lock = threading.Lock()

    def access(self) -> tuple[str, str, AsyncTransport]:
        """URL, token and transport of the service, for requests that are passed on as they are."""
        from qtasks.qstash.conversation.service_transport import AsyncServiceTransport

        return self._url, self._token, self._async_transport or AsyncServiceTransport()

    def publish(self, message: Outgoing) -> PublishResponse:
        """Publish a call. Raises BrokerUnreachable, which says what was tried and what to start, or ApiError."""
        try:
            return self._calls.send(message)
        except BrokerUnreachable as error:
            raise self._explained(message.task, error) from None

    async def apublish(self, message: Outgoing) -> PublishResponse:
        """As `publish`, without blocking the event loop."""
        try:
            return await self._calls.asend(message)
        except BrokerUnreachable as error:
            raise self._explained(message.task, error) from None

    def publish_many(self, messages: Sequence[Outgoing]) -> list[PublishResponse | BatchError]:
        """Publish calls in as few requests as they fit into; one answer for each, in order.

        Raises as `publish`; some of the calls may have been sent then.
        """
        answers: list[PublishResponse | BatchError] = []
        try:
            self._calls.send_many(messages, answers)
        except BrokerUnreachable as error:
            raise self._explained(_rest_of(messages, len(answers)), error) from None
        return answers

    async def apublish_many(self, messages: Sequence[Outgoing]) -> list[PublishResponse | BatchError]:
        """As `publish_many`, without blocking the event loop."""
        answers: list[PublishResponse | BatchError] = []
        try:
            await self._calls.asend_many(messages, answers)
        except BrokerUnreachable as error:
            raise self._explained(_rest_of(messages, len(answers)), error) from None
        return answers

    def cancel(self, message_id: str) -> bool:
        """Cancel a message. Returns False if the broker no longer has it. Raises as `publish`."""
        try:
            self._opened().message.cancel(message_id)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return False
        except BrokerUnreachable as error:
            raise self._explained(f"the cancellation of {message_id}", error) from None
        return True

    def call(self, call: Operation[T], what: str) -> T:
        """Make any other request of the API; `what` names it in an error. Raises as `publish`."""
        try:
            return self._opened().http.run(call)
        except BrokerUnreachable as error:
            raise self._explained(what, error, missed="was not done") from None

    def close(self) -> None:
        """Close connections and threads, each of them even if another cannot be closed. Idempotent.

        A transport for async code is closed on an event loop of its own: the loop that used it may be closed.
        """
        with self._lock:
            client, self._client = self._client, None
            async_client, self._async_client = self._async_client, None
            pool, self._pool = self._pool, None
        parts: list[Callable[[], object]] = []
        if pool is not None:
            parts.append(pool.shutdown)
        if client is not None:
            parts.append(client.close)
        if async_client is not None:
            parts.append(functools.partial(_run_in_thread, async_client.close))
        close_all(*parts)

    def run(self, operation: Operation[T]) -> T:
        """See `Client`."""
        return self._opened().http.run(operation)

    async def arun(self, operation: Operation[T]) -> T:
        """See `Client`."""
        if (client := self._opened_async()) is None:
            return await self._in_thread(lambda: self.run(operation))
        return await client.http.run(operation)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads(), work)

    def _opened(self) -> QStash:
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

    def _opened_async(self) -> AsyncQStash | None:
        """The client of async code; None if that publishes in threads."""
        from qtasks.qstash import AsyncQStash
        from qtasks.qstash.conversation.service_transport import is_plain

        with self._lock:
            if self._serves_loops is None:
                self._serves_loops = is_plain(self._url)
            if self._async_client is None and self._serves_loops:
                self._async_client = AsyncQStash(
                    self._token,
                    base_url=self._url,
                    retry=_retry(),
                    transport=self._async_transport,
                    timeout_s=self._timeout_s,
                )
            return self._async_client

    def _threads(self) -> DaemonThreadPool:
        with self._lock:
            if self._pool is None:
                self._pool = DaemonThreadPool(THREADS, "qtasks-publish")
            return self._pool

    def _explained(self, what: str, error: BrokerUnreachable, *, missed: str = "was not queued") -> BrokerUnreachable:
        from qtasks.qstash.conversation.failures import usual_fix

        fix = error.fix
        if fix in (None, usual_fix(self._url)):
            is_near = is_loopback_url(self._url)
            fix = _START_IT if is_near else "see whether it runs and can be reached from here"
        return BrokerUnreachable(
            f"{what} {missed}: {error.message}",
            details={"tried": f"{self._url} (from {self._origin})", **error.details},
            sent=error.sent,
            fix=fix,
        )


_START_IT = "start it: `qtasks dev` while you develop, `qtasks broker` for a broker of your own"


def _rest_of(messages: Sequence[Outgoing], sent: int) -> str:
    """The part of a batch that was not sent, for an error."""
    return f"a batch of {len(messages) - sent} calls"


def _run_in_thread(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine function to its end from any thread, one that runs an event loop included."""
    with DaemonThreadPool(1, "qtasks-close") as thread:
        thread.submit(lambda: asyncio.run(work())).result()


def _retry() -> Retry:
    from qtasks.qstash import Retry

    return Retry(retries=RETRIES, backoff=lambda retried: 100 * 2**retried, total_s=RETRY_FOR_S)
