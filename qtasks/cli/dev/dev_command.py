"""`qtasks dev`: the broker and the application in one terminal."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click

from qtasks.broker.broker import Broker
from qtasks.broker.server import event_loop
from qtasks.broker.server.api_server import ApiServer
from qtasks.broker.server.listen import listen
from qtasks.broker.settings import LLM_VARIABLE, BrokerSettings
from qtasks.broker.store.connection import MEMORY
from qtasks.broker.store.verbs import schedules
from qtasks.cli.dev import dev_file
from qtasks.cli.dev.reloader import ReloadingApplication
from qtasks.cli.dev.terminal import EventPrinter
from qtasks.cli.loader import AppLocation, locate
from qtasks.cli.option_types import HostName
from qtasks.cli.output import NonBlockingStream, log_to
from qtasks.cli.serving.child_process import StartedApp
from qtasks.cli.signals import stop_signals
from qtasks.errors import StoreError
from qtasks.protocol import development
from qtasks.protocol.messages import SigningKeys, State

HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class DevOptions:
    """The options of `qtasks dev`."""

    target: AppLocation
    port: int
    app_port: int
    db: str
    results: str
    hosts: tuple[str, ...]


@click.command("dev")
@click.argument("app", required=False)
@click.option("--port", default=8080, show_default=True, help="Port of the broker; 0 picks a free one.")
@click.option("--app-port", default=8000, show_default=True, help="Port of your application; 0 picks a free one.")
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
def command(app: str | None, port: int, app_port: int, db: str | None, memory: bool, hosts: tuple[str, ...]) -> None:
    """Run the broker and APP, and print one line for each event.

    APP is a file (tasks.py), a module, or module:object; without it, qtasks looks for one.
    Both listen on this machine only, and refuse web pages that are not from this machine.
    """
    if memory and db is not None:
        raise click.UsageError("--memory and --db contradict each other: leave one out")
    target = locate(app, Path.cwd())
    dev_file.prepare()
    with tempfile.TemporaryDirectory(prefix="qtasks-") as scratch:
        folder = Path(scratch) if memory else dev_file.FOLDER.absolute()
        options = DevOptions(
            target=target,
            port=port,
            app_port=app_port,
            db=MEMORY if memory else db or str(dev_file.FOLDER / "dev.db"),
            results=os.environ.get("QTASKS_RESULTS") or f"sqlite:///{folder / 'results.db'}",
            hosts=hosts,
        )
        out, errors = NonBlockingStream(sys.stdout), NonBlockingStream(sys.stderr)
        log_to(errors)
        event_loop.raise_descriptor_limit()
        try:
            sys.exit(event_loop.run(_dev(options, out, errors)))
        finally:
            out.close()
            errors.close()


async def _dev(options: DevOptions, out: NonBlockingStream, errors: NonBlockingStream) -> int:
    async with AsyncExitStack() as stack:
        broker_socket = listen(HOST, options.port)
        stack.callback(broker_socket.close)
        app_socket = listen(HOST, options.app_port)
        stack.callback(app_socket.close)
        os.set_inheritable(app_socket.fileno(), True)
        broker_url, app_url = (f"http://{HOST}:{listener.getsockname()[1]}" for listener in (broker_socket, app_socket))

        settings = BrokerSettings(path=options.db).with_model(os.environ.get(LLM_VARIABLE))
        broker = await Broker.open(settings.listening_on(*broker_socket.getsockname()))
        stack.push_async_callback(broker.stop)
        printer = EventPrinter(out)
        broker.watchers.add(printer.print_event)
        server = ApiServer(broker, [broker_socket])
        await server.start()
        stack.push_async_callback(server.stop)

        user = development.USERS[0]
        keys = await broker.keys.of(broker.accounts[user.name])
        environment = _application_environment(broker_url, user.token, keys, options.results)

        def on_started(started_app: StartedApp) -> None:
            printer.base_url, printer.parameters = started_app.base_url, started_app.parameters
            dev_file.DevFile(
                broker=broker_url,
                token=user.token,
                current_signing_key=keys.current,
                next_signing_key=keys.next,
                base_url=started_app.base_url,
                results=options.results,
                pid=os.getpid(),
            ).write()

        stack.callback(dev_file.remove, os.getpid())
        existing = await broker.store.read(schedules.schedules, broker.accounts[user.name])
        application = ReloadingApplication(
            options.target,
            app_socket,
            app_url,
            environment,
            on_started,
            errors.line,
            may_have_schedules=bool(existing),
            hosts=options.hosts,
        )
        broker.watchers.add(lambda event: application.note_attempt() if event.state is State.ACTIVE else None)
        started_app = await application.start()
        stop = stack.enter_context(stop_signals())
        stack.push_async_callback(application.stop)
        # Running attempts need the application, so drain the broker before the application stops.
        stack.push_async_callback(broker.deliverer.drain, broker.settings.drain_s)
        _greet(out, options, broker, started_app, broker_url)
        broker.start()
        event_loop.tune_interpreter()
        status = await _until_stopped(stop, broker, application)
        errors.line("stopping: waiting for running tasks")
    out.line(str(printer.tally))
    return status


def _application_environment(broker_url: str, token: str, keys: SigningKeys, results: str) -> dict[str, str]:
    return {
        **os.environ,
        "QSTASH_URL": broker_url,
        "QSTASH_TOKEN": token,
        "QSTASH_CURRENT_SIGNING_KEY": keys.current,
        "QSTASH_NEXT_SIGNING_KEY": keys.next,
        "QTASKS_RESULTS": results,
        "QTASKS_DEV": "1",
    }


def _greet(out: NonBlockingStream, options: DevOptions, broker: Broker, app: StartedApp, broker_url: str) -> None:
    store = "in memory, nothing is kept" if options.db == MEMORY else f"{options.db} ({broker.store.promise})"
    out.line(f"console at {broker_url}/")
    out.line(f"qtasks {version('qstash-tasks')}  dev   app {app.target} ({options.target.source})   {app}")
    out.line(f"  broker   {broker_url}   QSTASH_TOKEN={development.USERS[0].token}")
    out.line(f"  app      {app.base_url}")
    out.line(f"  store    {store}")
    if broker.recovery.waiting:
        out.line(f"  found    {broker.recovery.waiting} waiting, {broker.recovery.interrupted} of them interrupted")
    if app.synced:
        out.line(f"  synced   {app.synced}")
    out.line(f"  reload   when code in {options.target.folder} changes")
    out.line()


async def _until_stopped(stop: asyncio.Event, broker: Broker, application: ReloadingApplication) -> int:
    """Return 0 after a stop signal, 1 if the application cannot be kept alive. Raises StoreError."""
    signalled = asyncio.create_task(stop.wait())
    supervising = asyncio.create_task(application.supervise())
    broken = asyncio.create_task(broker.store.broken.wait())
    waiting = (signalled, supervising, broken)
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    app_ended = supervising.done()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    if broker.store.broken.is_set():
        await broker.deliverer.drain(0)  # no outcome can be stored
        raise StoreError(broker.store.failure or "the store failed")
    return supervising.result() if app_ended else 0
