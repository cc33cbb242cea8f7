"""Which exceptions a task has raised itself, and which ones end the code that runs it."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

Running = asyncio.Task[Any] | None


def running_task() -> Running:
    """The asyncio task that runs here; None outside of an event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def comes_from_outside(error: BaseException, running: Running, *, in_thread: bool = False) -> bool:
    """True if `error`, caught in the asyncio task `running`, was not raised by the code that runs there.

    That is the cancellation of the task, the end of its coroutine, or Ctrl-C: all three must go on. Every other
    exception is a failure of the code, of any class: the panic of a Rust extension is not an `Exception`, and asyncio
    would end its loop for a `KeyboardInterrupt` or `SystemExit` that leaves a task. With `in_thread` the code
    runs in a thread, where no Ctrl-C arrives.
    """
    if isinstance(error, asyncio.CancelledError):
        return running is not None and running.cancelling() > 0
    if isinstance(error, GeneratorExit):  # a coroutine is closed after its task has ended
        return running_task() is not running
    if isinstance(error, KeyboardInterrupt):
        return not in_thread and _is_interrupted_by_ctrl_c()
    return False


def _is_interrupted_by_ctrl_c() -> bool:
    """True if Ctrl-C raises KeyboardInterrupt here: on the main thread, where no server handles the signal itself."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    return on_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
