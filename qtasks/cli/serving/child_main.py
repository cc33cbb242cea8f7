"""The main program of a child process that serves the application, under `qtasks dev` or `qtasks run --workers`.

The parent starts ``python -m qtasks.cli.serving.child_main`` with `ChildOptions` as JSON in the first argument. The
child serves on the socket that it inherits and ends with its parent. It writes reports to the report descriptor, one
line of JSON each: where it serves or why it cannot, later that it takes no more requests, and under `qtasks dev` what
`child_reports` reports.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Final

from qtasks.cli.loader import AppLocation, LoadedApp, load
from qtasks.cli.logs import LogOptions, log_by_default, log_to
from qtasks.cli.output import NonBlockingStream
from qtasks.cli.serving.child_options import RETIRE, ChildOptions
from qtasks.cli.serving.child_reports import FailureReports, OwnRequests, ReportPipe
from qtasks.cli.serving.dev_guard import DevGuard
from qtasks.cli.serving.dev_schedules import sync
from qtasks.cli.serving.uvicorn_server import FAILED, UvicornServer, serve
from qtasks.errors import QTasksError
from qtasks.tasks.ports import ASGIApp
from qtasks.tasks.web.gateway import Outermost, SocketGateway

_LIBRARIES: Final = ("qtasks.tasks.web.router", "qtasks.tasks.run.dispatcher", "qtasks.tasks.run.executor")
"""What every application needs."""


def main() -> None:
    """Serve until a signal."""
    options = ChildOptions.load(sys.argv[1])
    # The terminal sends Ctrl-C, and SIGHUP at its end, to the parent and to its children; only the parent acts on it.
    for ignored in {signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)}:
        signal.signal(ignored, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(options.lifeline,), daemon=True).start()
    if not options.production:
        for library in _LIBRARIES:
            importlib.import_module(library)  # so that their compiled code is kept
        # Python compares compiled code with its source by the modification time in seconds and by the size, so it would
        # miss a second quick edit. Do not write compiled code during development.
        sys.dont_write_bytecode = True
        logs = LogOptions(options.log_level, options.log_format)
        if logs.form == "json":
            log_to(sys.stderr, logs)
        else:
            log_by_default(logs)
        sys.exit(_serve(options, ReportPipe(options.report)))
    errors = NonBlockingStream(sys.stderr)
    log_to(errors, LogOptions(options.log_level, options.log_format))
    try:
        sys.exit(_serve(options, ReportPipe(options.report)))
    finally:
        errors.close()


def _serve(options: ChildOptions, reports: ReportPipe) -> int:
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
        facts = {"message": error.message, "details": error.details, "fix": error.fix, "code": error.code}
        reports.send({"error": facts})
        return FAILED

    def report_started() -> None:
        count = len(loaded.tasks.schedules)
        synced = "" if options.production or not (count or options.may_have_schedules) else sync(loaded.tasks)
        facts = {
            "target": loaded.target,
            "base_url": settings.base_url,
            "parameters": {name: task.parameters.positional for name, task in loaded.tasks.tasks.items()},
        }
        reports.send({**facts, "schedules": count, "synced": synced})

    def report_retired() -> None:
        reports.send({"retired": True})

    runtime = loaded.tasks.runtime
    server = UvicornServer(
        _guarded(loaded, options, reports),
        drain_s=options.drain_s,
        hand_back=runtime.hand_back,
        started=report_started,
        retired=report_retired,
        is_child=True,
        lingers=options.production,
        running=(lambda: runtime.running) if options.production else (lambda: 0),  # else the parent prints it
    )
    signal.signal(RETIRE, server.retire)
    return serve(server, socket.socket(fileno=options.listener))


def _guarded(loaded: LoadedApp, options: ChildOptions, reports: ReportPipe) -> ASGIApp:
    """The application to serve. Under `qtasks dev` it refuses strangers, and its requests and failures are reported."""
    app: ASGIApp = Outermost(loaded.app, loaded.tasks.lifespan_if_missing)
    if options.production:
        return app
    logging.getLogger("qtasks.dispatch").addFilter(FailureReports(reports, options.folder))
    return OwnRequests(DevGuard(SocketGateway(app, loaded.prefix), options.hosts), reports)


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
