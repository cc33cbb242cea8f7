"""The objects that all request handlers share: store, ports, destination policy, functions that wake the loops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar

import apsw

from qtasks.broker.api.api_request import ApiRequest
from qtasks.broker.api.turns import Turns
from qtasks.broker.core.operator_changes import OperatorChange
from qtasks.broker.core.values import Accepted, Cancelled, Publication
from qtasks.broker.events import EventWatchers
from qtasks.broker.llm.language_model import LanguageModel
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.store.interface import Store
from qtasks.broker.store.verbs import audit
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.clock import Clock
from qtasks.counted_log import CountedLog
from qtasks.protocol.messages import Message
from qtasks.randomness import Random

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The first argument of every handler."""

    store: Store
    clock: Clock
    random: Random
    policy: DestinationPolicy
    keys: KeyRing
    watchers: EventWatchers
    wake: Callable[[], None]
    """Wake the delivery loop, because a message may be due."""
    wake_at: Callable[[int], None]
    """Tell the delivery loop when a message that was stored becomes due, Unix milliseconds."""
    wake_scheduler: Callable[[], None]
    """Wake the schedule loop, because a schedule was created or changed."""
    llm: LanguageModel
    parallelism: int
    """Limit of attempts in flight, over all accounts."""
    turns: Turns
    """For requests with long work."""
    resolve_on_publish: bool = False
    log: CountedLog = field(default_factory=lambda: CountedLog(logging.getLogger("qtasks.broker")))
    """For lines that requests cause."""

    def wall_ms(self) -> int:
        """The time as users know it, Unix milliseconds."""
        return self.clock.now_ms() + self.clock.offset_ms()

    async def accept(self, publications: Sequence[Publication], *, now_ms: int) -> list[Accepted]:
        """Store messages, all or none, and notify the watchers.

        The delivery loop is woken first, so that it claims them in the same transaction; if all are delayed, only for
        the first of them.
        """
        due_ms = min((_due_ms(publication.message) for publication in publications), default=now_ms)
        if due_ms <= now_ms:
            self.wake()
        accepted = await self.store.accept(publications, now_ms=now_ms)
        if due_ms > now_ms:
            self.wake_at(due_ms)
        created = [
            publication.message
            for publication, result in zip(publications, accepted, strict=True)
            if not result.deduplicated
        ]
        self.watchers.notify_created(created, now_ms=now_ms)
        return accepted

    def change_by(
        self, request: ApiRequest, account: int, what: str, subject: str, *, is_payload: bool = False
    ) -> OperatorChange:
        """The change that `request` asks for, such as ``queue.pause`` of the queue `subject`, for the audit."""
        return OperatorChange(
            account=account,
            actor=request.actor,
            what=what,
            subject=subject,
            now_ms=self.clock.now_ms(),
            note=request.note(),
            is_payload=is_payload,
        )

    async def write(
        self,
        change: OperatorChange,
        verb: Callable[Concatenate[apsw.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Write by `verb`, with the row of the audit in the same transaction."""
        result, change.row = await self.store.write(audit.audited(change, verb), *args, **kwargs)
        return result

    async def write_long(
        self,
        change: OperatorChange,
        verb: Callable[Concatenate[apsw.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """As `write`, for a verb that may take more than some milliseconds."""
        result, change.row = await self.store.write_long(audit.audited(change, verb), *args, **kwargs)
        return result

    async def cancel(
        self,
        change: OperatorChange,
        verb: Callable[Concatenate[apsw.Connection, P], Cancelled],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Cancelled:
        """Cancel messages by `verb`, and notify the watchers of their end callbacks.

        The delivery loop is woken: these callbacks are due, and slots may be free.
        """
        cancelled = await self.write(change, verb, *args, **kwargs)
        if cancelled.count:
            self.watchers.notify_created(cancelled.created, now_ms=self.clock.now_ms())
            self.wake()
        return cancelled


def _due_ms(message: Message) -> int:
    """When a message is due; 0, which is at once, for a wall time, which the store converts."""
    return message.not_before_ms if message.options.not_before_s is None else 0
