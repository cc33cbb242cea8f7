"""The stop of `qtasks dev`: what is waited for is said at once, and at the end what was interrupted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

from qtasks.broker.broker import Broker
from qtasks.broker.store.connection import MEMORY
from qtasks.cli.dev.reloader import ReloadingApplication
from qtasks.cli.dev.terminal import EventPrinter
from qtasks.cli.serving.child_process import DRAIN_S, STOP_S
from qtasks.cli.signals import SECOND, StopRequests

NOTICE_S: Final = 0.3
"""Seconds after which a stop says what it waits for."""
INTERRUPTED_S: Final = 0.5
"""Seconds that the application may take to end when its tasks were interrupted."""
_NAMES: Final = 5
"""Names that are listed at most."""


async def drain(broker: Broker, printer: EventPrinter, stop: StopRequests, say: Callable[[str], None]) -> bool:
    """Wait for the running attempts, or interrupt them at the second request to stop; False if any was interrupted."""
    drain_s = broker.settings.drain_s
    if printer.running:
        running = names_in_words(printer.running.values())
        say(f"stopping: waiting up to {drain_s:g} s for {running}; {SECOND}")
    draining = asyncio.create_task(broker.deliverer.drain(drain_s))
    if not await _ended_before(draining, stop):
        draining.cancel()
        await asyncio.wait({draining})
        await broker.deliverer.drain(0)
    if not (interrupted := broker.deliverer.interrupted):
        return True
    names = names_in_words(printer.running.values())
    follows = (
        "gone, because nothing is kept (--memory)"
        if broker.settings.path == MEMORY
        else "they run again at the next start"
    )
    say(f"{interrupted} interrupted: {names}; {follows}")
    return False


async def end_application(
    application: ReloadingApplication, stop: StopRequests, say: Callable[[str], None], *, is_quiet: bool
) -> None:
    """End the application. Not `is_quiet`: tasks were interrupted, so it gets little time."""
    ending = asyncio.create_task(application.stop(STOP_S if is_quiet else INTERRUPTED_S))
    await asyncio.wait({ending}, timeout=NOTICE_S if is_quiet else INTERRUPTED_S)
    if not ending.done() and is_quiet:
        say(f"stopping: waiting up to {DRAIN_S:g} s for requests to your application; {SECOND}")
    if not await _ended_before(ending, stop):
        await application.stop(0)
    await ending


async def _ended_before(work: asyncio.Task[Any], stop: StopRequests) -> bool:
    """Wait for `work`, or for the second request to stop; True if `work` has ended."""
    second = asyncio.create_task(stop.twice.wait())
    await asyncio.wait({work, second}, return_when=asyncio.FIRST_COMPLETED)
    second.cancel()
    return work.done()


def names_in_words(names: Iterable[str]) -> str:
    """The names, each once, with their numbers: ``charge (2), mail``."""
    counted = Counter(names).most_common()
    words = [name if count == 1 else f"{name} ({count})" for name, count in counted[:_NAMES]]
    return ", ".join(words) + (", ..." if len(counted) > _NAMES else "")
