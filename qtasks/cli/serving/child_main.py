"""The main program of a child process that serves the application, under `qtasks dev` or `qtasks run --workers`.

The parent starts ``python -m qtasks.cli.serving.child_main`` with `ChildOptions` as JSON in the first argument. The
child serves on the socket that it inherits and ends with its parent. It writes reports to the report descriptor, one
line of JSON each: where it serves or why it cannot, and later that it takes no more requests.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from qtasks.cli.loader import AppLocation, load
from qtasks.cli.output import NonBlockingStream, log_to
from qtasks.cli.serving.dev_guard import DevGuard
from qtasks.cli.serving.dev_schedules import sync
from qtasks.cli.serving.uvicorn_server import FAILED, UvicornServer, serve
from qtasks.errors import QTasksError
from qtasks.tasks.ports import ASGIApp
from qtasks.tasks.web.gateway import Outermost, SocketGateway

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
    hosts: Sequence[str] = ()
    """Under `qtasks dev`: host names to which the application answers, in addition to those of this machine."""

    def dump(self) -> str:
        """The options as one argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> ChildOptions:
        """Read what `dump` has written."""
        return cls(**json.loads(text))


def main() -> None:
    """Serve until a signal."""
    options = ChildOptions.load(sys.argv[1])
    # The terminal sends Ctrl-C to the parent and to its children; only the parent decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(options.lifeline,), daemon=True).start()
    if not options.production:
        # Python compares compiled code with its source by the modification time in seconds and by the size, so it would
        # miss a second quick edit. Do not write compiled code during development.
        sys.dont_write_bytecode = True
        sys.exit(_serve(options))
    errors = NonBlockingStream(sys.stderr)
    log_to(errors)
    try:
        sys.exit(_serve(options))
    finally:
        errors.close()


def _serve(options: ChildOptions) -> int:
    """Serve until a signal; return the exit status."""
    try:
        loaded = load(AppLocation(Path(options.folder), options.module, options.attribute, ""))
        if not options.production:
            # Deliveries are signed for the origin that the parent chose and the prefix that the application chose.
            # QTASKS_BASE_URL in the environment of a developer may be the address of production.
            os.environ["QTASKS_BASE_URL"] = options.origin + loaded.prefix
        settings = loaded.tasks.settings
        settings.receiver()
        loaded.tasks.schedules.check()
    except QTasksError as error:
        _report(
            options.report,
            {"error": {"message": error.message, "details": error.details, "fix": error.fix, "code": error.code}},
        )
        return FAILED

    def report_started() -> None:
        count = len(loaded.tasks.schedules)
        synced = "" if options.production or not (count or options.may_have_schedules) else sync(loaded.tasks)
        facts = {
            "target": loaded.target,
            "base_url": settings.base_url,
            "parameters": {name: task.parameters.positional for name, task in loaded.tasks.tasks.items()},
        }
        _report(options.report, {**facts, "schedules": count, "synced": synced})

    def report_retired() -> None:
        _report(options.report, {"retired": True})

    app: ASGIApp = Outermost(loaded.app, loaded.tasks.lifespan_if_missing)
    server = UvicornServer(
        app if options.production else DevGuard(SocketGateway(app, loaded.prefix), options.hosts),
        drain_s=options.drain_s,
        hand_back=loaded.tasks.runtime.hand_back,
        started=report_started,
        retired=report_retired,
        is_child=True,
        lingers=options.production,
    )
    signal.signal(RETIRE, server.retire)
    return serve(server, socket.socket(fileno=options.listener))


def _report(descriptor: int, facts: dict[str, Any]) -> None:
    with suppress(OSError):  # the parent may have ended
        os.write(descriptor, json.dumps(facts).encode() + b"\n")


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
