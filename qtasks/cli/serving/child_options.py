"""How a parent starts a child process that serves the application: the options, and the signal that retires it."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

RETIRE: Final = signal.SIGUSR1
"""The signal to a child that is replaced: answer the requests that are still arriving, then end."""


@dataclass(frozen=True)
class ChildOptions:
    """The options of a child process: the application to serve, and how to serve it."""

    folder: str
    module: str
    attribute: str | None
    origin: str
    """``http://host:port`` of the listening socket."""
    listener: int
    """File descriptor of the listening socket."""
    report: int
    """File descriptor for reports."""
    lifeline: int
    """File descriptor of a pipe whose other end the parent holds: end of file means that the parent has ended."""
    drain_s: float
    """Seconds that running tasks may continue at a stop."""
    production: bool
    """True under `qtasks run`: log with times, and always linger before the end, not only when it is replaced."""
    may_have_schedules: bool
    """True if the broker may have schedules of an earlier version of the code."""
    log_level: str | None = None
    log_format: Literal["text", "json"] = "text"
    hosts: Sequence[str] = ()
    """Under `qtasks dev`: host names to which the application answers, in addition to those of this machine."""

    def dump(self) -> str:
        """The options as one argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> ChildOptions:
        """Read what `dump` has written."""
        return cls(**json.loads(text))
