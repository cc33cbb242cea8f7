"""The work of the measurements: the same functions under every queue. Only the standard library: peers import this."""

from __future__ import annotations

import asyncio
import time

from benchmarks import ledger

NAP_S = 0.05
"""How long the sleeping tasks sleep."""

HOLD_S = 60.0
"""How long the first run of `hold` lasts if nobody kills it."""


def noop(task: int) -> None:
    """Nothing but the note that it ran."""
    book = ledger.current()
    book.start(task)
    book.finish(task)


async def anoop(task: int) -> None:
    """As `noop`, on an event loop."""
    noop(task)


def nap(task: int) -> None:
    """Wait as for a slow service, in a thread or process."""
    book = ledger.current()
    book.start(task)
    time.sleep(NAP_S)  # noqa: TID251 - sleeping is the work
    book.finish(task)


async def anap(task: int) -> None:
    """As `nap`, on an event loop."""
    book = ledger.current()
    book.start(task)
    await asyncio.sleep(NAP_S)
    book.finish(task)


async def ahold(task: int) -> None:
    """The first run hangs until its process is killed; a later one is done at once."""
    book = ledger.current()
    if book.has_started(task):
        book.finish(task)
        return
    book.start(task)
    await asyncio.sleep(HOLD_S)
