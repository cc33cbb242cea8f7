"""`qtasks run`: the dispatcher as a production server."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Final, Literal

import click

from qtasks.broker.server.event_loop import raise_descriptor_limit
from qtasks.cli.listening import listen_at
from qtasks.cli.loader import load, locate
from qtasks.cli.logs import LogOptions, log_options, log_to
from qtasks.cli.option_types import PORT, app_argument
from qtasks.cli.output import NonBlockingStream
from qtasks.cli.public_credentials import refuse_public_credentials
from qtasks.cli.serving.child_process import counts_in_words
from qtasks.cli.serving.uvicorn_server import NO_LIMITS, UvicornServer, has_limits, serve
from qtasks.cli.serving.workers import WorkerPool
from qtasks.embedded import Embedded
from qtasks.tasks.web.gateway import Outermost

log = logging.getLogger("qtasks.run")

_OWN_KEYS: Final = "use the keys of your broker (`qtasks broker init` prints them) or of the hosted service's console"


@click.command("run")
@app_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=PORT, default=8000, show_default=True, help="Port to listen on; 0 picks a free one.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes; each runs tasks.")
@click.option(
    "--drain",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running tasks may continue at a stop.",
)
@click.option(
    "--embedded",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Run a broker inside this process, with its messages in FILE; nothing else is needed.",
)
@log_options(None)
def command(
    app: str | None,
    host: str,
    port: int,
    workers: int,
    drain: float,
    embedded: str | None,
    log_level: str | None,
    log_format: Literal["text", "json"],
) -> None:
    """Serve the tasks of APP to a QStash broker.

    APP is a file, a module, or module:object. Set QSTASH_CURRENT_SIGNING_KEY, QSTASH_NEXT_SIGNING_KEY and
    QTASKS_BASE_URL; tasks that send calls also need QSTASH_TOKEN (and QSTASH_URL). With --embedded none of these is
    needed or used.
    """
    if embedded is not None and workers > 1:
        raise click.UsageError("--embedded supports one process only: leave out --workers, or run `qtasks broker`")
    target = locate(app, Path.cwd())
    loaded = load(target)
    if embedded is not None:
        loaded.tasks.embed(Embedded(embedded, drain_s=drain))
        reached = f"by the embedded broker, {embedded}"
    else:
        keys, base_url = loaded.tasks.settings.receiver()
        refuse_public_credentials((keys.current, keys.next), host, fix=_OWN_KEYS)
        reached = f"as {base_url}"
    loaded.tasks.schedules.check()
    listener = listen_at(host, port, "--port")
    logs = LogOptions(log_level, log_format)
    shown = f"[{host}]" if ":" in host else host
    origin = f"http://{shown}:{listener.getsockname()[1]}"

    out, errors = NonBlockingStream(sys.stdout), NonBlockingStream(sys.stderr)

    def started() -> None:
        counts = counts_in_words(len(loaded.tasks.tasks), len(loaded.tasks.schedules))
        out.line(
            f"qtasks run {loaded.target} ({target.source})  {counts} at {origin}{loaded.prefix}  reached {reached}"
        )

    log_to(errors, logs)
    raise_descriptor_limit()
    if not has_limits():
        log.warning(NO_LIMITS)
    try:
        if workers == 1:
            runtime = loaded.tasks.runtime
            server = UvicornServer(
                Outermost(loaded.app, loaded.tasks.lifespan_if_missing),
                drain_s=drain,
                hand_back=runtime.hand_back,
                started=started,
                running=lambda: runtime.running,
                has_failed=lambda: runtime.broker_failure is not None,
            )
            sys.exit(serve(server, listener))
        sys.exit(WorkerPool(workers, target, listener, origin, drain_s=drain, started=started, logs=logs).serve())
    finally:
        out.close()
        errors.close()
