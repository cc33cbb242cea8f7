"""Changes that a person or a program asks for, as the audit keeps them. A publish is not one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

API: Final = "api"
CONSOLE: Final = "console"
COMMAND_LINE: Final = "command line"
"""The origins of a change; `COMMAND_LINE` is a command that opens the database itself."""

DEVELOPER: Final = "development"
"""The name of everyone where the public development credentials are valid."""
CONFIGURED: Final = "the configured token"
"""The name of a token that is not in the store."""
LONGEST_NOTE: Final = 200
"""Characters of a note at most."""
_LONGEST_NAME: Final = 150
_LONGEST_SUBJECT: Final = 300
_SHOWN_IDS: Final = 5
_JOINERS: Final = "\u200c\u200d"
"""Signs without a width that some scripts need within a word."""


class Actor(NamedTuple):
    """Who asks for a change, and from where."""

    name: str
    origin: str = API


UNKNOWN: Final = Actor("unknown")


@dataclass(slots=True, kw_only=True)
class OperatorChange:
    """A change that is about to be made. Its row is written with it; a change in portions has one row, which grows."""

    account: int
    actor: Actor
    what: str
    subject: str
    now_ms: int
    note: str | None = None
    is_payload: bool = False
    """True if `subject` may hold values of messages: those who see no payloads do not see it."""
    is_certain: bool = False
    """True: there is a row also if nothing is counted, such as for a queue without messages."""
    row: int | None = None
    """`n` of the row, once it is stored."""

    def __post_init__(self) -> None:
        self.actor = self.actor._replace(name=_readable(self.actor.name))
        if len(self.subject) > _LONGEST_SUBJECT:
            self.subject = f"{self.subject[: _LONGEST_SUBJECT - 1]}…"


def _readable(name: str) -> str:
    """A name that a person has chosen, in one line of bounded length without signs that control what shows it."""
    line = "".join(sign if sign.isprintable() or sign in _JOINERS else "\ufffd" for sign in name)
    return line if len(line) <= _LONGEST_NAME else f"{line[: _LONGEST_NAME - 1]}…"


class AuditEntry(NamedTuple):
    """A row of the audit; the fields are the names of the columns."""

    n: int
    time_ms: int
    who: str
    origin: str
    what: str
    subject: str
    is_payload: int
    how_many: int
    note: str | None


def several(ids: Sequence[str]) -> str:
    """The subject of a change of many things: the first of their ids."""
    shown = ", ".join(ids[:_SHOWN_IDS])
    return shown if len(ids) <= _SHOWN_IDS else f"{shown} and {len(ids) - _SHOWN_IDS} more"
