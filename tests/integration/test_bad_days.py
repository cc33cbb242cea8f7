"""Bad days as a ledger: kills, short drains, a refused port, a proxy in front of nothing, a dead host, a killed broker.

Processes record what they run, and hooks record what they are called for. At the end, every accepted call has the end
that its function has, and only functions that fail by themselves have failed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import random
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qtasks import group
from qtasks.errors import BrokerUnreachable, TaskFailed
from qtasks.tasks.results.backend import ResultStatus
from qtasks.tasks.results.task_result import TaskResult
from tests.support.process import ask
from tests.support.servers import BrokerServer, Dispatcher, free_port

TASKS = """
import asyncio, json, os, time
from qtasks import QTasks, TaskContext, injected

tasks = QTasks()

def note(file, **facts):
    line = (json.dumps(facts) + "\\n").encode()
    written = os.open(os.path.join(os.environ["LEDGER"], file), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(written, line)
    os.close(written)

def runs(ctx):
    note("runs.txt", call=ctx.call_id, task=ctx.task, attempt=ctx.attempt)

@tasks.task(retries=0)
async def waits(x: int = 0, seconds: float = 0.0, *, ctx: TaskContext = injected) -> int:
    runs(ctx)
    await asyncio.sleep(seconds)
    return x

@tasks.task(retries=0)
def blocks(x: int = 0, seconds: float = 0.0, *, ctx: TaskContext = injected) -> int:
    runs(ctx)
    time.sleep(seconds)
    return x

@tasks.task(retries=1, retry_delay="100ms")
async def fails(x: int = 0, *, ctx: TaskContext = injected) -> int:
    runs(ctx)
    raise ValueError("of its own")

@tasks.task(retries=0)
async def kills(x: int = 0, *, ctx: TaskContext = injected) -> int:
    runs(ctx)
    os._exit(9)

@tasks.task(retries=0, unique=True)
async def alone(x: int = 0, seconds: float = 0.0, *, ctx: TaskContext = injected) -> int:
    runs(ctx)
    await asyncio.sleep(seconds)
    return x

@tasks.task(retries=0)
def total(results: list[int], *, ctx: TaskContext = injected) -> int:
    runs(ctx)
    return sum(results)

@tasks.on_failure
def failed(event):
    note("failures.txt", call=event.context.call_id, task=event.context.task)
"""
PATIENCE_S = 60.0
SEED = 9


class EmptyProxy:
    """Answers 502 on the port of the application, as a proxy whose application is gone."""

    def __init__(self, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(502)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Ledger:
    """What was accepted, what ran, what the hooks were called for, and what the broker has among its dead letters."""

    succeeding: list[tuple[TaskResult[Any], int]] = field(default_factory=list)
    """Handles with the results that they must have."""
    failing: list[TaskResult[Any]] = field(default_factory=list)
    folder: Path = Path()
    dead_urls: list[str] = field(default_factory=list)
    interrupted: set[str] = field(default_factory=set)
    """The calls of which an attempt was interrupted, as the log of the broker says."""
    repeated: TaskResult[Any] | None = None
    """A unique call that was made again after the end of the first one."""

    def lines(self, file: str) -> list[dict[str, Any]]:
        path = self.folder / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class BadDays:
    """A broker, an application, and everything that happens to them, on fixed ports."""

    def __init__(self, folder: Path) -> None:
        (folder / "tasks.py").write_text(TASKS)
        self.folder = folder
        self.broker_port, self.port = free_port(), free_port()
        self.broker = self._new_broker()
        self.dispatcher = self._new_dispatcher()
        self._dead = socket.socket()  # listens and never answers: a dead host
        self._dead.bind(("127.0.0.1", 0))
        self._dead.listen(1)

    def _new_broker(self) -> BrokerServer:
        return BrokerServer(self.folder, "--db", "broker.db", "--port", str(self.broker_port)).started()

    def _new_dispatcher(self) -> Dispatcher:
        return Dispatcher(
            self.folder, "--drain", "0.3", broker=self.broker, port=self.port, LEDGER=str(self.folder)
        ).started()

    def flood_dead_host(self) -> None:
        """More messages than the broker has slots, to a host that never answers; without retries they end soon."""
        url = f"http://127.0.0.1:{self._dead.getsockname()[1]}/"
        items = [{"destination": url, "headers": {"Upstash-Timeout": "5s", "Upstash-Retries": "0"}}] * 300
        answer = self.broker.ask("POST", "/v2/batch", json.dumps(items).encode(), Content_Type="application/json")
        assert answer.status == 201, answer.body

    def kill_dispatcher(self) -> None:
        """`kill -9`, then a refused port until the next one serves."""
        self.dispatcher.process.kill()
        self.dispatcher.process.wait(PATIENCE_S)
        self.dispatcher = self._new_dispatcher()

    def deploy(self) -> None:
        """SIGTERM with a drain that is shorter than the tasks, then the next one."""
        self.dispatcher.process.send_signal(signal.SIGTERM)
        self.dispatcher.process.wait(PATIENCE_S)
        self.dispatcher = self._new_dispatcher()

    def lose_application_behind_proxy(self) -> None:
        """`kill -9`, then a proxy answers in place of the application."""
        self.dispatcher.process.kill()
        self.dispatcher.process.wait(PATIENCE_S)
        proxy = EmptyProxy(self.port)
        threading.Event().wait(0.5)  # deliveries meet the proxy
        proxy.close()
        self.dispatcher = self._new_dispatcher()

    def kill_broker(self) -> None:
        self.broker.process.kill()
        self.broker.process.wait(PATIENCE_S)
        self.broker = self._new_broker()

    def restart_after(self, poison: TaskResult[Any]) -> None:
        """Start the application again each time that the call kills it, until the call has ended and one serves.

        The broker knows of the end as soon as the last process is dead.
        """
        while not (poison.is_finished and self._serves()):
            with contextlib.suppress(Exception):
                self.dispatcher.process.wait(0.2)
                self.dispatcher = self._new_dispatcher()

    def _serves(self) -> bool:
        try:
            ask("GET", f"http://127.0.0.1:{self.port}/qtasks/")
        except OSError:
            return False
        return True

    def was_interrupted(self, call_id: str) -> bool:
        """True if the log of the broker has an interruption of the call."""
        message_id = self.broker.ask("GET", f"/v2/messages/{call_id}").json["messageId"]
        return any("interrupted" in entry.get("error", "") for entry in self.broker.log(message_id))

    def dead_urls(self) -> list[str]:
        """The URLs of the dead letters of this application."""
        urls: list[str] = []
        cursor = ""
        while True:
            page = self.broker.ask("GET", f"/v2/dlq?cursor={cursor}").json
            urls += [letter["url"] for letter in page["messages"]]
            if (cursor := page.get("cursor", "")) == "":
                return [url for url in urls if f":{self.port}/" in url]

    def close(self) -> None:
        for process in (self.dispatcher.process, self.broker.process):
            process.kill()
            process.wait(PATIENCE_S)
        self._dead.close()


class Producer(threading.Thread):
    """Makes calls of every kind, as fast as `limit_s` allows; a call that was not accepted is not in the ledger."""

    def __init__(self, jobs: Any, ledger: Ledger, stop: threading.Event, limit_s: float) -> None:
        super().__init__(daemon=True)
        self._jobs = jobs
        self._ledger = ledger
        self._stop_ = stop
        self._limit_s = limit_s
        self._chance = random.Random(SEED)

    def run(self) -> None:
        makers = (self._waits, self._blocks, self._fails, self._chain, self._broken_chain, self._chord)
        for number in range(1_000_000):
            if self._stop_.wait(self._limit_s):
                return
            with contextlib.suppress(BrokerUnreachable):  # not accepted, or unknown: nothing is promised
                makers[number % len(makers)](number)

    def _seconds(self) -> float:
        return self._chance.choice((0.0, 0.05, 0.6))

    def _waits(self, number: int) -> None:
        self._ledger.succeeding.append((self._jobs.waits.delay(number, self._seconds()), number))

    def _blocks(self, number: int) -> None:
        self._ledger.succeeding.append((self._jobs.blocks.delay(number, self._seconds()), number))

    def _fails(self, number: int) -> None:
        self._ledger.failing.append(self._jobs.fails.delay(number))

    def _chain(self, number: int) -> None:
        flow = self._jobs.waits.s(number, self._seconds()) | self._jobs.waits.s(self._seconds())
        self._ledger.succeeding.append((flow.delay(), number))

    def _broken_chain(self, number: int) -> None:
        self._ledger.failing.append((self._jobs.fails.s(number) | self._jobs.waits.s()).delay())

    def _chord(self, number: int) -> None:
        members = group(self._jobs.waits.s(number, self._seconds()), self._jobs.blocks.s(1, self._seconds()))
        self._ledger.succeeding.append(((members | self._jobs.total.s()).delay(), number + 1))


def jobs_of(folder: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the tasks, as a second process of the application imports it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("jobs_of_bad_days", folder / "tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Some seconds of bad days under load, then calm until every call has ended."""
    days = BadDays(tmp_path_factory.mktemp("bad_days"))
    ledger = Ledger(folder=days.folder)
    stop = threading.Event()
    with pytest.MonkeyPatch.context() as monkeypatch:
        jobs = jobs_of(days.folder, days.dispatcher.variables, monkeypatch)
        producer = Producer(jobs, ledger, stop, limit_s=0.05)
        try:
            days.flood_dead_host()
            unique = jobs.alone.delay(1, 1.0)
            producer.start()
            for bad_day in (
                days.kill_dispatcher,
                days.deploy,
                days.kill_broker,
                days.lose_application_behind_proxy,
                days.deploy,
            ):
                stop.wait(0.7)  # the load runs
                bad_day()
            stop.set()
            producer.join(PATIENCE_S)
            ledger.succeeding.append((unique, 1))
            for handle in [*ledger.failing, *(handle for handle, _ in ledger.succeeding)]:
                with contextlib.suppress(TaskFailed):
                    handle.get(timeout=PATIENCE_S)
            poison = jobs.kills.delay()
            ledger.failing.append(poison)
            days.restart_after(poison)
            ledger.repeated = jobs.alone.delay(1)
            ledger.succeeding.append((ledger.repeated, 1))
            ledger.repeated.get(timeout=PATIENCE_S)
            ledger.dead_urls = days.dead_urls()
            failed_calls = {line["call"] for line in ledger.lines("failures.txt")}
            ledger.interrupted = {call_id for call_id in failed_calls if days.was_interrupted(call_id)}
            yield ledger
        finally:
            stop.set()
            jobs.tasks.close()
            days.close()


def test_the_load_was_a_load(ledger: Ledger) -> None:
    assert len(ledger.succeeding) > 40
    assert len(ledger.failing) > 10
    runs = Counter(line["call"] for line in ledger.lines("runs.txt"))
    assert max(runs.values()) > 1, "some run was interrupted and began again"


def test_every_call_whose_function_succeeds_has_succeeded(ledger: Ledger) -> None:
    """None of them has a retry: a single attempt that a deployment or a crash had spent would be its end."""
    assert {handle.status for handle, _ in ledger.succeeding} == {ResultStatus.SUCCEEDED}
    assert all(handle.return_value == result for handle, result in ledger.succeeding)


def test_every_call_whose_function_fails_has_failed(ledger: Ledger) -> None:
    assert {handle.status for handle in ledger.failing} == {ResultStatus.FAILED}


def test_attempts_are_charged_for_failures_of_the_function_only(ledger: Ledger) -> None:
    attempts = {(line["task"], line["attempt"]) for line in ledger.lines("runs.txt")}
    assert attempts == {
        ("waits", 1),
        ("blocks", 1),
        ("alone", 1),
        ("total", 1),
        ("fails", 1),
        ("fails", 2),
        ("kills", 1),
    }


def test_the_failure_hook_was_called_for_each_call_that_failed_and_for_no_other(ledger: Ledger) -> None:
    """Once, or again if a kill came between the hook and the record of the failure."""
    hooks = Counter(line["call"] for line in ledger.lines("failures.txt"))
    assert set(hooks) == {line["call"] for line in ledger.lines("runs.txt") if line["task"] in ("fails", "kills")}
    assert {call_id for call_id, count in hooks.items() if count > 1} <= ledger.interrupted


def test_a_unique_key_is_free_once_its_call_has_ended(ledger: Ledger) -> None:
    assert ledger.repeated is not None
    assert not ledger.repeated.deduplicated


def test_the_dead_letters_are_those_that_failed_by_themselves(ledger: Ledger) -> None:
    assert {url.rpartition("/")[2] for url in ledger.dead_urls} == {"fails", "kills"}
