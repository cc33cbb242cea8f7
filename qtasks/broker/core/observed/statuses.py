"""The status of a message, one word for people (docs/console.md). Pure."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from qtasks.broker.core.rules import Stage


class Status(IntEnum):
    """What the console says of a message. The numbers are in the database."""

    SCHEDULED = 1
    """Its time has not come."""
    WAITING = 2
    RUNNING = 3
    RETRYING = 4
    """An attempt failed, or was interrupted, and another follows."""
    DELIVERED = 5
    FAILED = 6
    """Failed, and its dead letter is gone."""
    DEAD = 7
    """Failed, and among the dead letters."""
    CANCELED = 8

    @property
    def word(self) -> str:
        """The word that people see, the same for `FAILED` and `DEAD`."""
        return "failed" if self is Status.DEAD else self.name.lower()


COUNTED: Final = (Status.SCHEDULED, Status.WAITING, Status.RUNNING, Status.RETRYING, Status.DEAD)
"""Those of which it is known at any time how many messages have them."""
WORDS: Final = tuple(dict.fromkeys(status.word for status in Status))
"""The words of all statuses."""
_OF_FINAL: Final = {
    Stage.DELIVERED: Status.DELIVERED,
    Stage.FAILED: Status.FAILED,
    Stage.CANCELED: Status.CANCELED,
}


def with_word(word: str) -> tuple[Status, ...]:
    """The statuses that people call `word`; none if it is no such word."""
    return tuple(status for status in Status if status.word == word)


def of_stage(stage: int, *, due_ms: int, claim_token: int, is_quiet: bool, now_ms: int) -> Status:
    """The status of a stored message; see the columns of table ``messages``.

    An attempt without an entry in the log (`is_quiet`) repeats an interrupted one: it counts as retrying.
    """
    if stage in _OF_FINAL:
        return _OF_FINAL[Stage(stage)]
    if stage == Stage.ACTIVE and not is_quiet:
        return Status.RUNNING
    if claim_token:
        return Status.RETRYING
    return Status.SCHEDULED if stage == Stage.DUE and due_ms > now_ms else Status.WAITING
