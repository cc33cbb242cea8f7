"""The options of `qtasks dev`. What it runs is loaded when it is called, so `--help` and completion stay quick."""

from __future__ import annotations

from typing import Literal

import click

from qtasks.cli.logs import LogOptions, log_options
from qtasks.cli.option_types import PORT, HostName, app_argument
from qtasks.protocol import development


@click.command("dev")
@app_argument
@click.option(
    "--port",
    type=PORT,
    envvar="QSTASH_DEV_PORT",
    default=development.PORT,
    show_default=True,
    help="Port of the broker; 0 picks a free one. [QSTASH_DEV_PORT]",
)
@click.option("--app-port", type=PORT, default=8000, show_default=True, help="Port of your application; 0: a free one.")
@click.option("--no-app", is_flag=True, help="Run a broker alone, also if there is an application.")
@click.option("--db", type=click.Path(dir_okay=False), default=None, help="Database of the broker. [.qtasks/dev.db]")
@click.option("--memory", is_flag=True, help="Keep nothing after the end.")
@click.option(
    "--allow-host",
    "hosts",
    type=HostName(),
    multiple=True,
    metavar="NAME",
    help="Also let your application answer to this host name, and to pages from it: that of a tunnel.",
)
@log_options(None, events=True)
def command(
    app: str | None,
    port: int,
    app_port: int,
    no_app: bool,
    db: str | None,
    memory: bool,
    hosts: tuple[str, ...],
    log_level: str | None,
    log_format: Literal["text", "json"],
) -> None:
    """Run the broker and APP, and print one line for each event.

    APP is a file (tasks.py), a module, or module:object; without it, qtasks looks for one. Without any, it is a
    development server of QStash: the official SDKs use it as they use theirs.
    Everything listens on this machine only, and refuses web pages that are not from this machine.
    """
    if memory and db is not None:
        raise click.UsageError("--memory and --db contradict each other: leave one out")
    if no_app and app is not None:
        raise click.UsageError("--no-app and APP contradict each other: leave one out")
    from qtasks.cli.dev.dev_command import run

    run(
        app,
        no_app=no_app,
        port=port,
        app_port=app_port,
        db=db,
        memory=memory,
        hosts=hosts,
        logs=LogOptions(log_level, log_format),
    )
