"""What a filter of the console asks for, as values. Pure; `console/filter_text` reads them from a text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from qtasks.broker.core import wall_times
from qtasks.broker.core.observed.statuses import Status, with_word
from qtasks.protocol.labels import argument_labels


class Kind(StrEnum):
    """What a condition is about; the value is its word in a filter."""

    TASK = "task"
    URL = "url"
    STATUS = "status"
    ERROR = "error"
    ID = "id"
    QUEUE = "queue"
    KEY = "key"
    LABEL = "label"
    SCHEDULE = "schedule"
    ARGUMENT = "arg"
    ANY = ""
    """A word alone: an id, or a part of a task's name or of a destination."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds for a message if any of `values` fits it; `negated`: if none does."""

    kind: Kind
    values: tuple[str, ...]
    negated: bool = False
    path: tuple[str, ...] = ()
    """Of an argument: its name or position, and the members in it."""

    @property
    def has_labels(self) -> bool:
        """True for an argument that messages may have labels of."""
        return self.kind is Kind.ARGUMENT and len(self.path) == 1 and argument_labels.is_name(self.path[0])

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of messages that have the argument."""
        return tuple(argument_labels.label_of(self.path[0], value) for value in self.values)


@dataclass(frozen=True, slots=True)
class ConsoleFilter:
    """Holds for a message if all conditions do, and it was published in the given time (Unix ms, both included)."""

    conditions: tuple[Condition, ...] = ()
    after_ms: int | None = None
    before_ms: int | None = None

    def of(self, *kinds: Kind) -> tuple[Condition, ...]:
        """The conditions about one of `kinds`."""
        return tuple(condition for condition in self.conditions if condition.kind in kinds)

    def asks_for(self, *kinds: Kind) -> tuple[Condition, ...]:
        """The same without the negated ones."""
        return tuple(condition for condition in self.of(*kinds) if not condition.negated)

    def searchable(self) -> Condition | None:
        """The condition about an argument that may have labels, by which messages are found; None without one.

        Ids leave fewer messages than any label.
        """
        if self.asks_for(Kind.ID):
            return None
        return next((each for each in self.asks_for(Kind.ARGUMENT) if each.has_labels), None)

    def statuses(self) -> tuple[Status, ...]:
        """The statuses that a message may have."""
        allowed = [*Status]
        for condition in self.of(Kind.STATUS):
            named = {status for word in condition.values for status in with_word(word)}
            allowed = [status for status in allowed if (status in named) is not condition.negated]
        return tuple(allowed)

    def in_broker_time(self, offset_ms: int) -> ConsoleFilter:
        """The same filter; its times were wall times."""
        return replace(
            self,
            after_ms=wall_times.added(self.after_ms, -offset_ms),
            before_ms=wall_times.added(self.before_ms, -offset_ms),
        )
