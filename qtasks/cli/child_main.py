"""The application in a process of its own, below `qtasks dev`: on a socket it is handed, ending with its parent.

Started as ``python -m qtasks.cli.child_main``; what it is to do comes as JSON in its first argument. It reports
as lines of JSON on the report descriptor: where it serves, or why it cannot; and later that it takes no more requests.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from qtasks.cli.dev_schedules import sync
from qtasks.cli.loader import AppLocation, load
from qtasks.cli.output import NonBlockingStream, log_to
from qtasks.cli.uvicorn_server import FAILED, UvicornServer, serve
from qtasks.errors import QTasksError

RETIRE: Final = signal.SIGUSR1
"""Another one takes over: answer what is still on its way here, then end."""


@dataclass(frozen=True)
class ChildOptions:
    """What the parent wants."""

    folder: str
    module: str
    attribute: str | None
    origin: str
    """``http://host:port`` of the socket."""
    listener: int
    report: int
    lifeline: int
    """A pipe whose other end the parent holds: its end of file is the parent's end."""
    drain_s: float
    """For running tasks at a stop."""
    production: bool
    """Whether it logs lines with times, and lingers before it ends even when it is not replaced."""
    may_have_schedules: bool
    """Whether the broker may have schedules of an earlier version."""

    def dump(self) -> str:
        """As one argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> ChildOptions:
        """The inverse of `dump`."""
        return cls(**json.loads(text))


def main() -> None:
    """Serve until told to end."""
    orders = ChildOptions.load(sys.argv[1])
    # Ctrl-C goes to the whole foreground group; the parent alone decides what follows from it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(orders.lifeline,), daemon=True).start()
    if not orders.production:
        # Compiled code is taken for current by the second and the size of its source: a quick second edit would not be
        # seen. So the code that is being worked on leaves none.
        sys.dont_write_bytecode = True
        sys.exit(_serve(orders))
    errors = NonBlockingStream(sys.stderr)
    log_to(errors)
    try:
        sys.exit(_serve(orders))
    finally:
        errors.close()


def _serve(orders: ChildOptions) -> int:
    """Serve until a signal; the exit status."""
    try:
        loaded = load(AppLocation(Path(orders.folder), orders.module, orders.attribute, ""))
        if not orders.production:
            # The parent chose the port, the application its prefix: together the address that deliveries are signed
            # for. What stands in the environment of a laptop may be the address of production.
            os.environ["QTASKS_BASE_URL"] = orders.origin + loaded.prefix
        settings = loaded.tasks.settings
        settings.receiver()
        loaded.tasks.schedules.check()
    except QTasksError as error:
        _report(orders.report, {"error": str(error), "code": error.code})
        return FAILED

    def serving() -> None:
        count = len(loaded.tasks.schedules)
        synced = "" if orders.production or not (count or orders.may_have_schedules) else sync(loaded.tasks)
        facts = {
            "target": loaded.target,
            "base_url": settings.base_url,
            "parameters": {name: task.parameters.positional for name, task in loaded.tasks.tasks.items()},
        }
        _report(orders.report, {**facts, "schedules": count, "synced": synced})

    def retired() -> None:
        _report(orders.report, {"retired": True})

    server = UvicornServer(
        loaded.app,
        drain_s=orders.drain_s,
        started=serving,
        retired=retired,
        below=True,
        lingers=orders.production,
    )
    signal.signal(RETIRE, server.retire)
    return serve(server, socket.socket(fileno=orders.listener))


def _report(descriptor: int, facts: dict[str, Any]) -> None:
    with suppress(OSError):  # the parent may have gone
        os.write(descriptor, json.dumps(facts).encode() + b"\n")


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
