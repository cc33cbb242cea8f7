"""Many calls in one request: ``with tasks.batch(): ...``."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qtasks.errors import PartlyRefused
from qtasks.tasks.send.outgoing import Outgoing, Refused
from qtasks.tasks.send.send_middleware import Passage

if TYPE_CHECKING:
    from typing import Self

    from qtasks.qstash.operations.publishing import PublishResponse
    from qtasks.tasks.results.task_result import TaskResult
    from qtasks.tasks.send.runtime_port import Runtime

_open: ContextVar[tuple[Batch, ...]] = ContextVar("qtasks_batches", default=())


class Batch:
    """Calls made inside are sent together at its end, and none of them if an exception leaves it.

    Until then their results have no `message_id`. Leaving it raises what `.delay()` raises, and PartlyRefused when the
    broker took some of them only. Works as ``with`` and as ``async with``.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._held: list[tuple[Passage, TaskResult[Any]]] = []
        self._lost: list[TaskResult[Any]] = []
        """Handles on unique calls that were not sent: their keys are free again."""
        self._token: Token[tuple[Batch, ...]] | None = None

    @classmethod
    def of(cls, runtime: Runtime) -> Batch | None:
        """The innermost batch that is open here for this application."""
        return next((batch for batch in reversed(_open.get()) if batch.serves(runtime)), None)

    def serves(self, runtime: Runtime) -> bool:
        """Whether calls through `engine` belong in here."""
        return self._runtime is runtime

    def hold(self, passage: Passage, result: TaskResult[Any]) -> None:
        """Take a call along."""
        self._held.append((passage, result))

    def __len__(self) -> int:
        """How many calls wait."""
        return len(self._held)

    def __enter__(self) -> Self:
        self._token = _open.set((*_open.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._send(self._ended(error))
        finally:
            for result in self._lost:
                result.unlock()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._asend(self._ended(error))
        finally:
            for result in self._lost:
                await asyncio.to_thread(result.unlock)

    def _send(self, messages: list[Outgoing]) -> None:
        if not messages:
            return
        try:
            answers = self._runtime.publisher().publish_many(messages)
        except BaseException as failure:
            self._fail(failure)
            raise
        self._note(answers)

    async def _asend(self, messages: list[Outgoing]) -> None:
        if not messages:
            return
        try:
            publisher = await self._runtime.apublisher()
            answers = await publisher.apublish_many(messages)
        except BaseException as failure:
            self._fail(failure)
            raise
        self._note(answers)

    def _ended(self, error: BaseException | None) -> list[Outgoing]:
        """What is to be sent, if anything."""
        assert self._token is not None
        _open.reset(self._token)
        if error is not None:
            self._fail(error)
            return []
        return [passage.message for passage, _ in self._held]

    def _fail(self, error: BaseException) -> None:
        self._lost.extend(result for _, result in self._held if result.has_lock)
        for passage, _ in self._held:
            passage.fail(error)

    def _note(self, answers: list[PublishResponse | Refused]) -> None:
        refused: dict[str, str] = {}
        for (passage, result), answer in zip(self._held, answers, strict=True):
            if isinstance(answer, Refused):
                refused[passage.message.call_id] = answer.error
                self._lost.extend([result] if result.has_lock else [])
                passage.fail(PartlyRefused(answer.error, refused={passage.message.call_id: answer.error}))
            else:
                result.accepted(answer.message_id, deduplicated=answer.deduplicated)
                passage.leave(result)
        if refused:
            first = next(iter(refused.values()))
            raise PartlyRefused(
                f"{len(refused)} of {len(answers)} calls were refused, the first one with: {first}", refused=refused
            )
