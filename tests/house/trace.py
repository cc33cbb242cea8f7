"""How often a call changes files on its way: once as `.delay()`, once as a delivery.

Every call of a Python function whose code is in a file of `qtasks/` counts, and so does every resumption of a generator
or coroutine. A run of such calls in one file is a stay; "moves" is the number of stays. The calls are those of one
thread:

- `.delay()`: in the caller's thread, from the call to its return.
- delivery: on the application's event loop, from the ASGI call to its end. The calls in `broker/` and
  `embedded.py`, which take the place of a web server there, are left out.

Both go through the embedded broker, whose results are in memory, and are measured after two calls that warm it up.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, Final

import qtasks
from qtasks import Embedded, QTasks

_PACKAGE: Final = f"{Path(qtasks.__file__).parent}/"
_PATIENCE_S: Final = 20.0
"""How long a call may take before the measurement fails."""

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


@dataclass(frozen=True)
class Way:
    """The files that a call went through, one entry a call."""

    calls: tuple[str, ...]

    @property
    def files(self) -> int:
        return len(set(self.calls))

    @property
    def moves(self) -> int:
        return sum(1 for _ in groupby(self.calls))

    def without(self, *prefixes: str) -> Way:
        return Way(tuple(file for file in self.calls if not file.startswith(prefixes)))

    def __str__(self) -> str:
        return f"{len(self.calls)} Python calls in {self.files} files"


@contextmanager
def recorded(calls: list[str]) -> Iterator[None]:
    """Append the file of every call that this thread makes inside the package."""

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_PACKAGE):
            calls.append(frame.f_code.co_filename.removeprefix(_PACKAGE))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


class _TracedBroker(Embedded):
    """The embedded broker; `delivery` gets the calls of each delivery while it is a list."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.delivery: list[str] | None = None

    def start(self, app: Any, loop: Any) -> Any:
        return super().start(self._traced(app), loop)

    def _traced(self, app: App) -> App:
        async def traced(scope: Scope, receive: Any, send: Any) -> None:
            with nullcontext() if self.delivery is None else recorded(self.delivery):
                await app(scope, receive, send)

        return traced


def trace() -> tuple[Way, Way]:
    """The way of one `.delay()`, and of its delivery."""
    broker = _TracedBroker()
    with QTasks(embedded=broker) as tasks:

        @tasks.task
        def add(a: int, b: int) -> int:
            return a + b

        for _ in range(2):
            add.delay(2, 3).get(timeout=_PATIENCE_S)
        sent: list[str] = []
        broker.delivery = []
        with recorded(sent):
            result = add.delay(2, 3)
        result.get(timeout=_PATIENCE_S)
    return Way(tuple(sent)), Way(tuple(broker.delivery)).without("broker/", "embedded.py")
