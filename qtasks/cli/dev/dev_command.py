"""`qtasks dev`: the broker and the application in one terminal; without an application, a broker alone."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click

from qtasks.broker.broker import Broker
from qtasks.broker.events import MessageEvent
from qtasks.broker.server import event_loop
from qtasks.broker.server.api_server import ApiServer
from qtasks.broker.settings import LLM_VARIABLE, BrokerSettings, ConfiguredValue
from qtasks.broker.store.connection import MEMORY
from qtasks.broker.store.verbs import schedules
from qtasks.cli.configured import configuration
from qtasks.cli.dev import dev_file, greeting, stopping
from qtasks.cli.dev.json_events import JsonEventPrinter, json_line, json_speaker
from qtasks.cli.dev.reloader import ReloadingApplication
from qtasks.cli.dev.terminal import EventPrinter
from qtasks.cli.dev.upstash_console import UpstashConsole
from qtasks.cli.listening import listen_at
from qtasks.cli.loader import AppLocation, NoAppError, locate
from qtasks.cli.logs import LogOptions, log_to
from qtasks.cli.output import NonBlockingStream
from qtasks.cli.serving.child_process import StartedApp
from qtasks.cli.signals import StopRequests, stop_signals
from qtasks.errors import StoreError
from qtasks.protocol import development
from qtasks.protocol.messages import SigningKeys, State
from qtasks.tasks.dev_server import ServedApplication

HOST: Final = "127.0.0.1"
_DB: Final = str(dev_file.FOLDER / "dev.db")


@dataclass(frozen=True, slots=True)
class DevOptions:
    """The options of `qtasks dev`."""

    target: AppLocation | None
    """None: a broker without an application."""
    reason: str
    """Why there is no application; empty if there is one."""
    port: int
    app_port: int
    db: str
    results: str
    hosts: tuple[str, ...]
    logs: LogOptions
    configuration: tuple[ConfiguredValue, ...]


def run(
    app: str | None,
    *,
    no_app: bool,
    port: int,
    app_port: int,
    db: str | None,
    memory: bool,
    hosts: tuple[str, ...],
    logs: LogOptions,
) -> None:
    """Run until a signal, and end the process."""
    target, reason = (None, "--no-app") if no_app else _locate(app)
    dev_file.prepare()
    with tempfile.TemporaryDirectory(prefix="qtasks-") as scratch:
        folder = Path(scratch) if memory else dev_file.FOLDER.absolute()
        options = DevOptions(
            target=target,
            reason=reason,
            port=port,
            app_port=app_port,
            db=MEMORY if memory else db or _DB,
            results=os.environ.get("QTASKS_RESULTS") or f"sqlite:///{folder / 'results.db'}",
            hosts=hosts,
            logs=logs,
            configuration=configuration(click.get_current_context(), {LLM_VARIABLE: "echo"}, {"db": _DB}),
        )
        out, errors = NonBlockingStream(sys.stdout), NonBlockingStream(sys.stderr)
        log_to(errors, options.logs)
        event_loop.raise_descriptor_limit()
        try:
            sys.exit(event_loop.run(_dev(options, out, errors)))
        finally:
            out.close()
            errors.close()


def _locate(app: str | None) -> tuple[AppLocation | None, str]:
    """The application; or None, and what was looked for. Raises AppError for one that was named."""
    try:
        return locate(app, Path.cwd()), ""
    except NoAppError as error:
        return None, f"looked for {error.details['looked for']}"


async def _dev(options: DevOptions, out: NonBlockingStream, errors: NonBlockingStream) -> int:
    async with AsyncExitStack() as stack:
        broker_socket = listen_at(HOST, options.port, "--port")
        stack.callback(broker_socket.close)
        broker_url = _origin(broker_socket)
        settings = BrokerSettings(path=options.db, configuration=options.configuration)
        settings = settings.with_model(os.environ.get(LLM_VARIABLE))
        broker = await Broker.open(settings.listening_on(*broker_socket.getsockname()))
        stack.push_async_callback(broker.stop)
        is_json = options.logs.form == "json"
        printer_class = JsonEventPrinter if is_json else EventPrinter
        printer = printer_class(out, columns=out.columns, model=greeting.model_name(settings))
        say = json_speaker(errors.line, broker.clock.wall_ms) if is_json else errors.line
        broker.watchers.add(printer.print_event)
        server = ApiServer(
            broker, [broker_socket], around=UpstashConsole if options.target is None else lambda api: api
        )
        user = development.USERS[0]
        keys = await broker.keys.of(broker.accounts[user.name])
        session = _DevSession(options, broker, broker_url, keys, printer, say)
        application = None if options.target is None else await session.application(options.target, stack)
        await server.start()
        stack.push_async_callback(server.stop)
        stack.callback(dev_file.remove, os.getpid())
        started_app = await session.begin(application)
        stop = stack.enter_context(stop_signals(second_ends=False))
        if application is not None:
            stack.push_async_callback(application.stop)
        facts = {"event": "started", **session.facts(started_app)}
        printer.write([json_line(broker.clock.wall_ms(), **facts)] if is_json else session.greeting(started_app))
        broker.start()
        event_loop.tune_interpreter()
        status = await _until_stopped(stop, broker, application)
        # Running attempts need the application, so drain the broker before the application stops.
        is_quiet = await stopping.drain(broker, printer, stop, say)
        if application is not None:
            await stopping.end_application(application, stop, say, is_quiet=is_quiet)
    tally = printer.tally
    printer.write([json_line(broker.clock.wall_ms(), event="stopped", **asdict(tally)) if is_json else str(tally)])
    return status


def _origin(listener: socket.socket) -> str:
    return f"http://{HOST}:{listener.getsockname()[1]}"


@dataclass(frozen=True, slots=True)
class _DevSession:
    """What the broker and the application of one `qtasks dev` have in common."""

    options: DevOptions
    broker: Broker
    broker_url: str
    keys: SigningKeys
    printer: EventPrinter
    say: Callable[[str], None]
    """Prints a remark."""

    async def application(self, target: AppLocation, stack: AsyncExitStack) -> ReloadingApplication:
        """The application, on its socket; it is not started yet."""
        listener = listen_at(HOST, self.options.app_port, "--app-port")
        stack.callback(listener.close)
        os.set_inheritable(listener.fileno(), True)
        account = self.broker.accounts[development.USERS[0].name]
        existing = await self.broker.store.read(schedules.schedules, account)
        application = ReloadingApplication(
            target,
            listener,
            _origin(listener),
            self._environment(),
            self._note_start,
            self.say,
            may_have_schedules=bool(existing),
            hosts=self.options.hosts,
            logs=self.options.logs,
            note=self._note_report,
        )

        def note_attempt(event: MessageEvent) -> None:
            if event.state is State.ACTIVE:
                application.note_attempt()

        self.broker.watchers.add(note_attempt)
        return application

    async def begin(self, application: ReloadingApplication | None) -> StartedApp | None:
        """Start the application, and write the file in which others find it."""
        if application is not None:
            return await application.start()
        self._write_file(None)
        return None

    def greeting(self, started_app: StartedApp | None) -> list[str]:
        """The first lines that are printed."""
        target = self.options.target
        if target is None or started_app is None:
            return greeting.without_application(self.options.reason, self.broker, self.broker_url, self.keys)
        return greeting.with_application(target, started_app, self.broker, self.broker_url)

    def facts(self, started_app: StartedApp | None) -> dict[str, object]:
        """What the first line says if it is JSON."""
        return {
            "version": version("qstash-tasks"),
            "console": f"{self.broker_url}/",
            "broker": self.broker_url,
            "application": None if started_app is None else started_app.target,
            "baseUrl": None if started_app is None else started_app.base_url,
            "tasks": None if started_app is None else sorted(started_app.parameters),
            "store": self.options.db,
        }

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "QSTASH_URL": self.broker_url,
            "QSTASH_TOKEN": development.USERS[0].token,
            "QSTASH_CURRENT_SIGNING_KEY": self.keys.current,
            "QSTASH_NEXT_SIGNING_KEY": self.keys.next,
            "QTASKS_RESULTS": self.options.results,
            "QTASKS_DEV": "1",
        }

    def _note_start(self, started_app: StartedApp) -> None:
        self.printer.base_url, self.printer.parameters = started_app.base_url, started_app.parameters
        self.broker.questions.announce(self.broker.accounts[development.USERS[0].name], f"{started_app.base_url}/")
        self._write_file(started_app)

    def _note_report(self, report: dict[str, Any]) -> None:
        match report:
            case {"failure": {"message_id": str(message_id), "lines": list(lines)}}:
                self.printer.note_failure(message_id, lines)
            case {"request": {"method": method, "path": path, "status": status, "ms": took_ms}}:
                self.printer.print_request(method, path, status, took_ms, now_ms=self.broker.clock.wall_ms())

    def _write_file(self, started_app: StartedApp | None) -> None:
        target = self.options.target
        dev_file.DevFile(
            broker=self.broker_url,
            token=development.USERS[0].token,
            current_signing_key=self.keys.current,
            next_signing_key=self.keys.next,
            base_url=None if started_app is None else started_app.base_url,
            results=self.options.results,
            pid=os.getpid(),
            application=None
            if target is None
            else ServedApplication(str(target.folder), target.module, target.attribute),
        ).write()


async def _until_stopped(stop: StopRequests, broker: Broker, application: ReloadingApplication | None) -> int:
    """Return 0 after a stop signal, 1 if the application cannot be kept alive. Raises StoreError."""
    signalled = asyncio.create_task(stop.once.wait())
    broken = asyncio.create_task(broker.store.broken.wait())
    supervising = None if application is None else asyncio.create_task(application.supervise())
    waiting = [task for task in (signalled, broken, supervising) if task is not None]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    app_ended = supervising is not None and supervising.done()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    if broker.store.broken.is_set():
        await broker.deliverer.drain(0)  # no outcome can be stored
        raise StoreError(broker.store.failure or "the store failed")
    return supervising.result() if supervising is not None and app_ended else 0
