"""Sends calls in the requests that suit the service: alone, in company, and in batches.

Concurrent calls share requests only with our broker, which says in an answer that it is one. Every other service gets
one request for each call, and batches of moderate size.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from qtasks.forks import per_process
from qtasks.protocol.headers import BROKER_HEADER
from qtasks.tasks.send.async_coalescer import AsyncCoalescer
from qtasks.tasks.send.coalescer import Coalescer
from qtasks.tasks.send.departures import IN_FLIGHT, MAX_BYTES, MAX_ITEMS, CallInCompany
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.prepared_call import CallPreparer, PreparedCall
from qtasks.threads import DaemonThreadPool

if TYPE_CHECKING:
    from qtasks.qstash.conversation.operation import Operation
    from qtasks.qstash.conversation.transport import Reply
    from qtasks.qstash.operations.publishing import BatchError, BatchResponse, PublishResponse

T = TypeVar("T")

BATCH_ITEMS: Final = 100
BATCH_BYTES: Final = 1024 * 1024
"""The limits of a batch for a service that is not known to be our broker, unless a single message is larger."""

ITEMS_PER_S: Final = 1000
"""A batch has a second more than other requests for so many items."""

Answers: TypeAlias = "list[PublishResponse | BatchError]"
BatchAnswers: TypeAlias = "list[BatchResponse | BatchError]"


class Client(Protocol):
    """Runs operations against one service."""

    def run(self, operation: Operation[T]) -> T:
        """Run an operation. Raises BrokerUnreachable, ApiError."""
        ...

    async def arun(self, operation: Operation[T]) -> T:
        """As `run`, without blocking the event loop."""
        ...


class CallSender:
    """Sends calls through `client`. Thread-safe.

    `timeout_s` is the limit of one attempt, `longest_s` that of all attempts of one request. `is_foreign` is True if
    the service is known not to be our broker.
    """

    def __init__(
        self,
        client: Client,
        preparer: CallPreparer,
        *,
        timeout_s: float,
        longest_s: float,
        is_foreign: bool,
    ) -> None:
        self._client = client
        self._preparer = preparer
        self._timeout_s = timeout_s
        self._longest_s = longest_s
        self._is_foreign = is_foreign
        self._is_ours = False
        """True once the service has said that it is our broker."""
        self._coalescer = Coalescer(self, longest_s=longest_s)
        per_process(self._begin)

    def _begin(self) -> None:
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncCoalescer] = WeakKeyDictionary()

    def send(self, message: Outgoing) -> PublishResponse:
        """Send a call. Raises BrokerUnreachable, ApiError."""
        call = self._prepared(message)
        if self._is_ours and call.template.is_shareable:
            return self._coalescer.send(call)
        return self.send_alone(call)

    async def asend(self, message: Outgoing) -> PublishResponse:
        """As `send`, without blocking the event loop."""
        call = self._prepared(message)
        if self._is_ours and call.template.is_shareable:
            return await self._coalescer_of_loop().send(call)
        return await self.asend_alone(call)

    def send_many(self, messages: Sequence[Outgoing], answers: Answers) -> None:
        """Send calls in as few requests as they fit into, and add one answer for each, in order. Raises as `send`.

        To our broker two requests are under way at a time, so it reads one while it stores another. If the order of the
        calls matters, and to any other service, each begins when the one before it has its answer. The next one is made
        meanwhile.
        """
        if len(messages) <= BATCH_ITEMS:
            for batch in self._batches(messages):
                answers += self._run_batch(batch)
            return
        is_ordered = _are_ordered(messages)
        ahead = DaemonThreadPool(IN_FLIGHT, "qtasks-batch")
        under_way: deque[Future[BatchAnswers]] = deque()
        try:
            for batch in self._batches(messages):
                if len(under_way) == self._most_under_way(is_ordered):
                    answers += under_way.popleft().result()
                under_way.append(ahead.submit(self._run_batch, batch))
                if self._may_learn_who_answers:
                    answers += under_way.popleft().result()
            while under_way:
                answers += under_way.popleft().result()
        finally:
            ahead.shutdown(wait=False)

    async def asend_many(self, messages: Sequence[Outgoing], answers: Answers) -> None:
        """As `send_many`, without blocking the event loop."""
        is_ordered = _are_ordered(messages)
        under_way: deque[asyncio.Task[BatchAnswers]] = deque()
        try:
            for batch in self._batches(messages):
                if len(under_way) == self._most_under_way(is_ordered):
                    answers += await under_way[0]
                    under_way.popleft()
                under_way.append(asyncio.create_task(self._arun_batch(batch)))
                await asyncio.sleep(0)  # the request begins
                if self._may_learn_who_answers:
                    answers += await under_way[0]
                    under_way.popleft()
            while under_way:
                answers += await under_way[0]
                under_way.popleft()
        finally:
            for running in under_way:
                running.cancel()
                running.add_done_callback(_forget)

    def _most_under_way(self, is_ordered: bool) -> int:
        """How many requests of one map are under way at a time."""
        return IN_FLIGHT if self._is_ours and not is_ordered else 1

    @property
    def _may_learn_who_answers(self) -> bool:
        """True if an answer may say that the service is our broker: the size of the next batch depends on it."""
        return not (self._is_ours or self._is_foreign)

    def _run_batch(self, batch: Operation[BatchAnswers]) -> BatchAnswers:
        return self._client.run(batch)

    async def _arun_batch(self, batch: Operation[BatchAnswers]) -> BatchAnswers:
        return await self._client.arun(batch)

    def send_alone(self, call: PreparedCall) -> PublishResponse:
        """See `Requests`."""
        return self._client.run(self._noted(call.operation()))

    def send_together(self, calls: Sequence[CallInCompany]) -> Sequence[PublishResponse | None]:
        """See `Requests`."""
        return _accepted(self._run_batch(self._batch(calls, self._timeout_s)))

    async def asend_alone(self, call: PreparedCall) -> PublishResponse:
        """See `AsyncRequests`."""
        return await self._client.arun(self._noted(call.operation()))

    async def asend_together(self, calls: Sequence[CallInCompany]) -> Sequence[PublishResponse | None]:
        """See `AsyncRequests`."""
        return _accepted(await self._arun_batch(self._batch(calls, self._timeout_s)))

    def _prepared(self, message: Outgoing) -> PreparedCall:
        from qtasks.qstash.conversation.request_builder import new_retry_id

        return self._preparer.prepared(message, new_retry_id())

    def _coalescer_of_loop(self) -> AsyncCoalescer:
        loop = asyncio.get_running_loop()
        if (coalescer := self._by_loop.get(loop)) is None:
            coalescer = self._by_loop[loop] = AsyncCoalescer(self, longest_s=self._longest_s)
        return coalescer

    def _batches(self, messages: Sequence[Outgoing]) -> Iterator[Operation[BatchAnswers]]:
        """The requests for `messages`. Each is made when it is sent, because the first answers may say who answers."""
        group: list[CallInCompany] = []
        size = 0
        for message in messages:
            call = CallInCompany(self._prepared(message))
            limits = (MAX_ITEMS, MAX_BYTES) if self._is_ours else (BATCH_ITEMS, BATCH_BYTES)
            if group and (len(group) == limits[0] or size + call.size > limits[1]):
                yield self._batch(group, self._timeout_s + len(group) / ITEMS_PER_S)
                group, size = [], 0
            group.append(call)
            size += call.size
        if group:
            yield self._batch(group, self._timeout_s + len(group) / ITEMS_PER_S)

    def _batch(self, calls: Sequence[CallInCompany], timeout_s: float) -> Operation[BatchAnswers]:
        from qtasks.qstash.operations import publishing

        items, retry_ids = [each.item for each in calls], [each.call.has_retry_id for each in calls]
        return self._noted(publishing.batch_items(items, retry_ids, timeout_s=timeout_s))

    def _noted(self, operation: Operation[T]) -> Operation[T]:
        """The same operation; its answer may say that the service is our broker."""
        if not self._may_learn_who_answers:
            return operation

        def read(reply: Reply) -> T:
            self._is_ours = self._is_ours or reply.header(BROKER_HEADER) is not None
            return operation.read(reply)

        return replace(operation, read=read)


def _forget(running: asyncio.Task[BatchAnswers]) -> None:
    """Read the error of a request for which no caller waits any more, so that asyncio does not log it."""
    if not running.cancelled():
        running.exception()


def _are_ordered(messages: Sequence[Outgoing]) -> bool:
    """True if the order of the calls matters: they have a place in a queue, or behind others of their key."""
    return any(message.queue is not None or message.options.flow_control is not None for message in messages)


def _accepted(answers: BatchAnswers) -> Sequence[PublishResponse | None]:
    from qtasks.qstash.operations.publishing import BatchError

    return [None if isinstance(answer, BatchError) else answer for answer in answers]
