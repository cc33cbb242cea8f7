"""What the handlers share: the store, the ports and the policy they were wired with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qtasks.broker.core.values import Accepted, Publication
from qtasks.broker.events import EventWatchers
from qtasks.broker.llm.language_model import LanguageModel
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.store.interface import Store
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.clock import Clock
from qtasks.randomness import Random


@dataclass(frozen=True, slots=True)
class ApiContext:
    """Given to every handler."""

    store: Store
    clock: Clock
    random: Random
    policy: DestinationPolicy
    keys: KeyRing
    watchers: EventWatchers
    wake: Callable[[], None]
    """Tell the delivery loop that something may be due."""
    wake_scheduler: Callable[[], None]
    """Tell the schedule loop that a schedule was made or changed."""
    llm: LanguageModel
    parallelism: int
    """Attempts in flight at most, over all accounts."""
    resolve_on_publish: bool = False

    async def accept(self, publications: Sequence[Publication], *, now_ms: int) -> list[Accepted]:
        """Store messages, all or none, with the delivery loop awake to claim them at once, and tell the watchers."""
        self.wake()
        accepted = await self.store.accept(publications, now_ms=now_ms)
        pairs = zip(publications, accepted, strict=True)
        self.watchers.notify_created([one.message for one, answer in pairs if not answer.deduplicated], now_ms=now_ms)
        return accepted
