"""Failures in operation: stops, kills, reloads, slow clients, dead destinations, output without a reader."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from qtasks.broker.server import http_protocol
from qtasks.broker.server.connection_watch import ConnectionLimits
from qtasks.broker.settings import BrokerSettings, DeliveryLimits
from qtasks.cli.dev.reloader import MIN_LIFETIME_S
from qtasks.cli.serving.uvicorn_server import OVERTIME_S
from qtasks.protocol.messages import State
from tests.support.dev import Dev
from tests.support.hostile import Behaviour, Connection, HostileServer
from tests.support.process import PATIENCE_S, QTASKS, Process, ask, environment, soon
from tests.support.running import Endpoint, RunningBroker
from tests.support.servers import SECRETS, TOKEN, BrokerServer, Dispatcher, free_port, half_a_request

TASKS = """
import asyncio
import os
import time
from pathlib import Path
from qtasks import task

def mark(file: str, text: object) -> None:
    with open(file, "a") as marks:
        marks.write(f"{text}\\n")

@task
async def note(file: str, text: str) -> None:
    mark(file, text)

@task
async def wait_for(file: str, go: str) -> str:
    mark(file, os.getpid())
    while not Path(go).exists():
        await asyncio.sleep(0.01)
    mark(file, "done")
    return "done"

@task
def hang(file: str) -> None:
    mark(file, os.getpid())
    time.sleep(3600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """What the tasks have written, a line each."""
    return tmp_path / "marks"


def envelope(number: int, *args: object) -> bytes:
    return json.dumps({"v": 1, "id": f"call_{number}", "args": args, "kwargs": {}}).encode()


def lines(file: Path) -> list[str]:
    return file.read_text().split("\n")[:-1] if file.exists() else []


def ended_within(process: Process, limit_s: float) -> int:
    began = time.monotonic()
    status = process.finish()
    took = time.monotonic() - began
    assert took <= limit_s, f"took {took:.2f} s; {process.output}"
    return status


HALVES = {
    "header": b"POST /v2/publish/http://127.0.0.1:9/ HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthori",
    "body": b"POST /v2/publish/http://127.0.0.1:9/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n"
    b"Authorization: Bearer token-of-the-operator\r\n\r\nabc",
}


# -- stopping


def test_a_broker_stops_in_time_while_clients_hold_half_a_request_and_loses_nothing(folder: Path) -> None:
    with BrokerServer(folder, "--drain", "20") as broker, contextlib.ExitStack() as open_still:
        broker.started()
        for half in HALVES.values():
            open_still.enter_context(half_a_request(broker.port, half))
        accepted = [broker.publish("http://127.0.0.1:9/", Upstash_Delay="1h") for _ in range(5)]
        broker.process.send_signal(signal.SIGTERM)
        assert ended_within(broker, 1.5) == 0
        assert "Traceback" not in broker.output
    with BrokerServer(folder) as broker:
        assert "5 waiting" in broker.wait_for("running")
        port = int(broker.lines[-1].split()[5].rpartition(":")[2])
        for message_id in accepted:
            answer = ask("GET", f"http://127.0.0.1:{port}/v2/messages/{message_id}", token=broker.token)
            assert answer.status == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_dispatcher_stops_in_time_while_clients_hold_half_a_request(folder: Path, workers: str) -> None:
    with (
        Dispatcher(folder, "--drain", "20", "--workers", workers) as dispatcher,
        contextlib.ExitStack() as open_still,
    ):
        dispatcher.started()
        for half in HALVES.values():
            half = half.replace(b"/v2/publish/http://127.0.0.1:9/", b"/qtasks/note")
            connection = open_still.enter_context(half_a_request(dispatcher.port, half))
        dispatcher.process.send_signal(signal.SIGTERM)
        assert ended_within(dispatcher, 2) == 0
        assert b"qtasks-interrupted: draining" in connection.recv(65536)
        assert "Traceback" not in dispatcher.output


def test_a_broker_that_stops_lets_an_attempt_under_way_end(folder: Path) -> None:
    arrived, go = threading.Event(), threading.Event()

    def slow(_: object) -> tuple[int, dict[str, str], bytes]:
        arrived.set()
        assert go.wait(PATIENCE_S)
        return 200, {}, b"done"

    endpoint = Endpoint(answer=slow)
    with contextlib.closing(endpoint):
        with BrokerServer(folder) as broker:
            message_id = broker.started().publish(endpoint.url)
            assert arrived.wait(PATIENCE_S)
            broker.process.send_signal(signal.SIGTERM)
            soon(partial(refuses, broker.port), "the broker takes nothing more")
            go.set()
            assert broker.finish() == 0
        with BrokerServer(folder) as broker:
            assert broker.started().states(message_id) == ["CREATED", "ACTIVE", "DELIVERED"]


def test_an_attempt_that_does_not_end_in_time_is_handed_to_the_next_start(folder: Path) -> None:
    arrived, go = threading.Event(), threading.Event()

    def first_hangs(_: object) -> tuple[int, dict[str, str], bytes]:
        if not arrived.is_set():
            arrived.set()
            go.wait(PATIENCE_S)
        return 200, {}, b""

    endpoint = Endpoint(answer=first_hangs)
    with contextlib.closing(endpoint):
        with BrokerServer(folder, "--drain", "0.3") as broker:
            message_id = broker.started().publish(endpoint.url)
            assert arrived.wait(PATIENCE_S)
            broker.process.send_signal(signal.SIGTERM)
            assert ended_within(broker, 1.3) == 0
            waits = "stopping: waiting up to 0.3 s for deliveries in flight: 1; a second Ctrl-C stops now"
            assert f"{waits}, and they are sent again at the next start" in broker.output
            assert "stopped before all attempts had ended: the next start makes them again (1)" in broker.output
        with BrokerServer(folder) as broker:
            broker.started()
            soon(lambda: broker.states(message_id)[-1] == "DELIVERED", "it is delivered by the next start")
            assert broker.states(message_id) == ["CREATED", "ACTIVE", "ERROR", "RETRY", "ACTIVE", "DELIVERED"]
            go.set()


def test_a_dispatcher_that_stops_lets_a_task_under_way_end(folder: Path, marks: Path) -> None:
    go = folder / "go"
    with BrokerServer(folder) as broker, Dispatcher(folder, broker=broker.started()) as dispatcher:
        dispatcher.started()
        message_id = broker.publish(dispatcher.url("wait_for"), envelope(1, str(marks), str(go)))
        soon(lambda: len(lines(marks)) == 1, "the task has begun")
        dispatcher.process.send_signal(signal.SIGTERM)
        soon(partial(refuses, dispatcher.port), "the dispatcher takes nothing more")
        go.touch()
        assert dispatcher.finish() == 0
        soon(lambda: broker.states(message_id)[-1] == "DELIVERED", "the answer has arrived")
        assert lines(marks) == [str(dispatcher.process.pid), "done"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_task_that_does_not_end_holds_up_no_stop_and_goes_back_to_the_broker(
    folder: Path, marks: Path, workers: str
) -> None:
    """It runs in a thread, which ends only with the process."""
    with BrokerServer(folder) as broker:
        with Dispatcher(folder, "--drain", "0.5", "--workers", workers, broker=broker.started()) as dispatcher:
            dispatcher.started()
            message_id = broker.publish(dispatcher.url("hang"), envelope(1, str(marks)))
            soon(lambda: len(lines(marks)) == 1, "the task has begun")
            dispatcher.process.send_signal(signal.SIGTERM)
            assert ended_within(dispatcher, 0.5 + OVERTIME_S) == 0
            assert "Traceback" not in dispatcher.output
            assert "WARNING stopping: waiting up to 0.5 s for running tasks: 1" in dispatcher.output
            assert "a second Ctrl-C stops now, and the broker sends the tasks that run once more" in dispatcher.output
            assert "WARNING stopped before all tasks had ended: the broker sends them again (1)" in dispatcher.output
        soon(lambda: broker.states(message_id)[-1] == "RETRY", "the broker knows")


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_broker_at_once(folder: Path, second: signal.Signals) -> None:
    arrived, go = threading.Event(), threading.Event()

    def hanging(_: object) -> tuple[int, dict[str, str], bytes]:
        arrived.set()
        go.wait(PATIENCE_S)
        return 200, {}, b""

    endpoint = Endpoint(answer=hanging)
    with contextlib.closing(endpoint), BrokerServer(folder, "--drain", "60") as broker:
        broker.started().publish(endpoint.url)
        assert arrived.wait(PATIENCE_S)
        broker.process.send_signal(signal.SIGTERM)
        soon(partial(refuses, broker.port), "the broker takes nothing more")
        broker.process.send_signal(second)
        assert ended_within(broker, 1.0) == -second
        go.set()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_signal_ends_a_dispatcher_at_once(folder: Path, marks: Path, workers: str) -> None:
    with (
        BrokerServer(folder) as broker,
        Dispatcher(folder, "--drain", "60", "--workers", workers, broker=broker.started()) as dispatcher,
    ):
        dispatcher.started()
        broker.publish(dispatcher.url("hang"), envelope(1, str(marks)))
        soon(lambda: len(lines(marks)) == 1, "the task has begun")
        [worker] = lines(marks)
        dispatcher.process.send_signal(signal.SIGTERM)
        soon(partial(stopping, dispatcher.process.pid), "the first signal has been taken")
        dispatcher.process.send_signal(signal.SIGTERM)
        assert ended_within(dispatcher, 1.0) == -signal.SIGTERM
        soon(lambda: not Path(f"/proc/{worker}").exists(), "the worker has ended with it", 2.0)


def stopping(pid: int) -> bool:
    """Whether the process no longer handles SIGTERM itself: its next one is the kernel's business."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return not int(caught.split()[1], 16) & (1 << (signal.SIGTERM - 1))


def test_workers_end_with_the_process_that_started_them(folder: Path) -> None:
    with Dispatcher(folder, "--workers", "2") as dispatcher:
        dispatcher.started()
        dispatcher.process.kill()
        dispatcher.finish()  # the workers hold the other end of the output, which ends with them
        # A process that ends closes its output first and its socket a moment later.
        soon(lambda: refuses(dispatcher.port), "the port is closed")


def test_a_worker_that_is_killed_is_replaced(folder: Path, marks: Path) -> None:
    with (
        BrokerServer(folder) as broker,
        Dispatcher(folder, "--workers", "2", broker=broker.started()) as dispatcher,
    ):
        dispatcher.started()
        broker.publish(dispatcher.url("hang"), envelope(1, str(marks)), Upstash_Retry_Delay="100")
        [first] = wait_for_marks(marks, 1)
        os.kill(int(first), signal.SIGKILL)
        dispatcher.wait_for("a worker ended with status -9; a new one replaces it")
        assert wait_for_marks(marks, 2)[1] != first


def test_a_broker_that_stops_or_cannot_store_is_not_ready(slow_broker: RunningBroker) -> None:
    """A load balancer sees it on connections that are still open; new ones are refused."""
    assert ask("GET", slow_broker.url + "/readyz").status == 200
    assert slow_broker.call(slow_broker.broker.deliverer.drain(1))
    stopping = ask("GET", slow_broker.url + "/readyz")
    assert (stopping.status, stopping.json) == (503, {"status": "stopping"})
    assert ask("GET", slow_broker.url + "/healthz").status == 200


def test_a_broker_whose_storage_fails_is_alive_but_not_ready(slow_broker: RunningBroker) -> None:
    slow_broker.call(slow_broker.broker.store.close())
    failing = ask("GET", slow_broker.url + "/readyz")
    assert (failing.status, failing.json) == (503, {"status": "not ready", "error": "the store is closed"})
    assert ask("GET", slow_broker.url + "/healthz").status == 200


# -- a dispatcher that is killed


def test_a_killed_dispatcher_is_noticed_at_once_and_what_it_held_is_run_again(folder: Path, marks: Path) -> None:
    go = folder / "go"
    with BrokerServer(folder) as broker:
        with Dispatcher(folder, broker=broker.started()) as dispatcher:
            dispatcher.started()
            # More retries than pass while the second dispatcher starts, also on a machine under load.
            message_id = broker.publish(
                dispatcher.url("wait_for"),
                envelope(1, str(marks), str(go)),
                Upstash_Retry_Delay="500",
                Upstash_Retries="99",
            )
            soon(lambda: len(lines(marks)) == 1, "the task has begun")
            killed_ms = time.time() * 1000
            dispatcher.process.kill()
            soon(lambda: "ERROR" in broker.states(message_id), "the broker knows", 2.0)
        error = next(entry for entry in broker.log(message_id) if entry["state"] == "ERROR")
        assert "closed it without a response" in error["error"]
        assert error["time"] - killed_ms < 1000
        go.touch()
        with Dispatcher(folder, broker=broker, port=dispatcher.port) as again:
            again.started()
            soon(lambda: broker.states(message_id)[-1] == "DELIVERED", "it is run again")
        assert lines(marks)[-1] == "done"
        assert broker.states(message_id)[:5] == ["CREATED", "ACTIVE", "ERROR", "RETRY", "ACTIVE"]


# -- reload


def publish(facts: dict[str, str], task: str, body: bytes, **headers: str) -> None:
    """To a running `qtasks dev`; header names with underscores for hyphens."""
    url = f"{facts['broker']}/v2/publish/{facts['base_url']}/{task}"
    lines = {name.replace("_", "-"): value for name, value in headers.items()}
    assert ask("POST", url, token=facts["token"], body=body, headers=lines).status == 201


def test_an_edit_within_the_same_second_that_keeps_the_size_is_loaded(folder: Path, marks: Path) -> None:
    code = folder / "tasks.py"
    with Dev(folder, "tasks.py", PYTHONDONTWRITEBYTECODE="") as dev:
        facts = dev.started()
        for version in "12":
            saved = code.stat()
            code.write_text(TASKS.replace("mark(file, text)", f"mark(file, {version})"))
            os.utime(code, ns=(saved.st_atime_ns, saved.st_mtime_ns))
            dev.wait_for("reloaded tasks: 3 tasks")
            publish(facts, "note", envelope(int(version), str(marks), "text"))
            soon(partial(lambda count: len(lines(marks)) == count, int(version)), "it has run")
    assert lines(marks) == ["1", "2"]


def test_reloads_under_load_lose_no_task_and_run_none_twice(folder: Path, marks: Path) -> None:
    with Dev(folder, "tasks.py") as dev:
        facts = dev.started()
        stop = threading.Event()
        sent: list[int] = []

        def send() -> None:
            broker = http.client.HTTPConnection(facts["broker"].removeprefix("http://"), timeout=PATIENCE_S)
            while not stop.wait(0.005):
                body = envelope(len(sent), str(marks), str(len(sent)))
                headers = {"Authorization": f"Bearer {facts['token']}"}
                broker.request("POST", f"/v2/publish/{facts['base_url']}/note", body, headers)
                assert broker.getresponse().read()
                sent.append(len(sent))
            broker.close()

        publisher = threading.Thread(target=send)
        publisher.start()
        try:
            for version in range(2):
                before = len(lines(marks))
                soon(partial(lambda count: len(lines(marks)) > count, before), "tasks are running")
                code = TASKS.replace("mark(file, text)", f"mark(file, f'{{text}} v{version}')")
                (folder / "tasks.py").write_text(code)
                dev.wait_for("reloaded tasks: 3 tasks")
                soon(partial(lambda mark: mark in marks.read_text(), f"v{version}"), "the new code runs")
        finally:
            stop.set()
            publisher.join()
        soon(lambda: len(lines(marks)) >= len(sent), "all have run")
        assert dev.stop() == 0
    assert sorted(int(line.split()[0]) for line in lines(marks)) == sent
    assert {line.partition(" ")[2] for line in lines(marks)} == {"", "v0", "v1"}
    assert dev.lines[-1] == f"{len(sent)} done, 0 retried, 0 failed"


def test_a_reload_lets_a_long_task_end_where_it_began(folder: Path, marks: Path) -> None:
    go = folder / "go"
    with Dev(folder, "tasks.py") as dev:
        facts = dev.started()
        publish(facts, "wait_for", envelope(1, str(marks), str(go)))
        wait_for_marks(marks, 1)
        (folder / "tasks.py").write_text(TASKS + "\n@task\ndef fresh() -> str:\n    return 'fresh'\n")
        dev.wait_for("reloaded tasks: 4 tasks")
        # The new version takes deliveries while the old one still works: one may be waiting for the other.
        publish(facts, "fresh", envelope(2))
        dev.wait_for("'fresh'")
        assert lines(marks)[1:] == []
        go.touch()
        dev.wait_for("'done'")
        assert lines(marks)[1:] == ["done"]
        dev.stop()
        assert dev.lines[-1] == "2 done, 0 retried, 0 failed"


def test_a_broken_import_keeps_the_last_version_that_worked(folder: Path, marks: Path) -> None:
    with Dev(folder, "tasks.py") as dev:
        facts = dev.started()
        (folder / "tasks.py").write_text("import json\njson.loads('{')\n" + TASKS)
        dev.wait_for("QT603 tasks cannot be imported")
        lines_before = len(dev.lines)
        dev.wait_for("meanwhile   the last working version continues to run")
        assert len(dev.lines) - lines_before + 1 <= 6
        assert any("tasks.py:2  json.loads('{')" in line for line in dev.lines[lines_before:])
        publish(facts, "note", envelope(1, str(marks), "still here"))
        soon(lambda: lines(marks) == ["still here"], "the old version works")
        (folder / "tasks.py").write_text(TASKS)
        dev.wait_for("reloaded tasks: 3 tasks")
        assert dev.stop() == 0


def test_an_application_that_dies_is_started_again(folder: Path, marks: Path) -> None:
    go = folder / "go"
    with Dev(folder, "tasks.py") as dev:
        publish(dev.started(), "wait_for", envelope(1, str(marks), str(go)), Upstash_Retry_Delay="100")
        [pid] = wait_for_marks(marks, 1)
        # One that dies within its first second is not started again.
        serving_since_s = (folder / ".qtasks" / "dev.json").stat().st_mtime
        soon(lambda: time.time() - serving_since_s > MIN_LIFETIME_S, "it is older than the minimum lifetime")
        os.kill(int(pid), signal.SIGKILL)
        dev.wait_for("the application ended with status -9; restarting it")
        go.touch()
        dev.wait_for("'done'")
        assert dev.stop() == 0


def wait_for_marks(marks: Path, count: int) -> list[str]:
    soon(lambda: len(lines(marks)) == count, f"{count} marks")
    return lines(marks)


DYING = """
import os
import threading
from contextlib import asynccontextmanager

from fastapi import FastAPI

from qtasks import QTasks

@asynccontextmanager
async def lifespan(app):
    threading.Timer(0.3, os._exit, (3,)).start()
    yield

tasks = QTasks()
app = FastAPI(lifespan=lifespan)
app.include_router(tasks.router, prefix="/qtasks")
"""


def test_an_application_that_dies_at_once_is_not_started_for_ever(folder: Path) -> None:
    (folder / "tasks.py").write_text(DYING)
    with Dev(folder, "tasks.py") as dev:
        assert dev.finish() == 1
        assert "the application ended with status 3" in dev.output
        assert "restarting it" not in dev.output


# -- slow clients


@pytest.fixture
def slow_broker() -> Iterator[RunningBroker]:
    """Its patience with clients is a fraction of a second."""
    limits = ConnectionLimits(head_s=0.4, body_idle_s=0.4, look_s=0.05)
    running = RunningBroker(BrokerSettings(path=":memory:"), limits)
    yield running
    running.stop()


def answer_on(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = bytearray()
    with connection:
        while piece := connection.recv(65536):
            received += piece
    return bytes(received)


def test_slow_clients_are_closed_and_others_do_not_notice(slow_broker: RunningBroker) -> None:
    port = int(slow_broker.url.rpartition(":")[2])
    user = slow_broker.new_user()
    unfinished = HALVES["body"].replace(b"token-of-the-operator", (user.token or "").encode())
    silent = [half_a_request(port, b"") for _ in range(50)]
    headers = [half_a_request(port, HALVES["header"]) for _ in range(50)]
    bodies = [half_a_request(port, unfinished) for _ in range(50)]
    slowest = 0.0
    for _ in range(50):
        began = time.monotonic()
        url = f"{slow_broker.url}/v2/publish/http://127.0.0.1:9/"
        assert ask("POST", url, token=user.token, body=b"", headers={"Upstash-Delay": "1h"}).status == 201
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.5
    assert [answer_on(connection) for connection in silent] == [b""] * 50
    for connection in headers:
        answer = answer_on(connection)
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"no complete header within 0.4 s" in answer
    for connection in bodies:
        answer = answer_on(connection)
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"no data for 0.4 s while reading the body" in answer


def test_a_byte_now_and_then_does_not_prolong_a_header(slow_broker: RunningBroker) -> None:
    port = int(slow_broker.url.rpartition(":")[2])
    began = time.monotonic()
    connection = half_a_request(port, b"GET / HTTP/1.1\r\nX: ")
    connection.settimeout(0.05)
    answer = b""
    while not answer:
        with contextlib.suppress(TimeoutError, BrokenPipeError):
            connection.sendall(b"x")
            answer = connection.recv(4096)
        assert time.monotonic() - began < 5
    assert answer.startswith(b"HTTP/1.1 408 ")
    connection.close()


def test_a_second_request_on_a_connection_has_no_more_time_than_the_first(slow_broker: RunningBroker) -> None:
    port = int(slow_broker.url.rpartition(":")[2])
    connection = half_a_request(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    connection.sendall(b"GET /healthz HT")
    assert b"408 Request Timeout" in answer_on(connection)


def test_a_header_without_end_is_refused_before_it_is_kept(slow_broker: RunningBroker) -> None:
    port = int(slow_broker.url.rpartition(":")[2])
    connection = half_a_request(port, b"GET / HTTP/1.1\r\nX: " + b"x" * http_protocol.MAX_HEAD)
    answer = answer_on(connection)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"error":"header too large' in answer


# -- destinations that hold on to what they are given


async def hang(connection: Connection) -> None:
    while await connection.request() is not None:
        await asyncio.get_running_loop().create_future()


async def dribble(connection: Connection) -> None:
    await connection.request()
    await connection.dribble(b"HTTP/1.1 200 OK\r\nX-Never: ending")


async def endless(connection: Connection) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await connection.flood(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


@contextlib.contextmanager
def hostile(behave: Behaviour) -> Iterator[str]:
    """A hostile server on a thread of its own; its URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> HostileServer:
        return await HostileServer(behave).__aenter__()

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
    try:
        yield server.url
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("behave", [hang, dribble, endless], ids=["hang", "dribble", "endless"])
def test_a_destination_that_holds_on_costs_its_own_slots_alone(tmp_path: Path, behave: Behaviour) -> None:
    limits = DeliveryLimits(in_flight=64, per_host=4)
    broker = RunningBroker(BrokerSettings(path=str(tmp_path / "b.db"), limits=limits, drain_s=0.1))
    endpoint = Endpoint()
    with hostile(behave) as bad:
        try:
            user = broker.new_user()

            def accepted(url: str) -> str:
                headers = {"Upstash-Timeout": "1s", "Upstash-Retries": "0"}
                answer = ask("POST", f"{broker.url}/v2/publish/{url}", token=user.token, body=b"x", headers=headers)
                return str(answer.json["messageId"])

            held = [accepted(bad) for _ in range(20)]
            for message_id in held[:4]:
                broker.wait_for(State.ACTIVE, message_id)
            took: list[float] = []
            for _ in range(10):
                began = time.monotonic()
                broker.wait_for(State.DELIVERED, accepted(endpoint.url))
                took.append(time.monotonic() - began)
            assert max(took) < 0.5, took
            # Each holds its slot until its deadline, or until the answer has grown beyond what is kept.
            for message_id in held[:4]:
                ended = broker.wait_for(State.FAILED if behave is not endless else State.DELIVERED, message_id)
                assert ended.duration_ms is not None
                assert ended.duration_ms < 1500
        finally:
            endpoint.close()
            broker.stop()


# -- output without a reader


PIPE = 4096
"""Bytes that a pipe of ours holds: the least there is."""


@pytest.fixture
def unread() -> Iterator[tuple[int, int]]:
    """A pipe that is soon full; its ends."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
    yield reader, writer
    os.close(reader)


def started_with_output_to(writer: int, folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [QTASKS, *arguments], cwd=folder, env=environment(**variables), stdout=writer, stderr=writer
    )
    os.close(writer)
    return process


def serves(port: int) -> bool:
    with contextlib.suppress(OSError):
        return ask("GET", f"http://127.0.0.1:{port}/readyz").status == 200
    return False


def works_and_stops(process: subprocess.Popen[bytes], port: int) -> None:
    """The broker accepts messages and stops on request, even if its output is broken."""
    url = f"http://127.0.0.1:{port}/v2/publish/http://127.0.0.1:9/"
    assert ask("POST", url, token=TOKEN, body=b"", headers={"Upstash-Delay": "1h"}).status == 201
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


def complain(port: int) -> None:
    """Make the broker log more than the pipe holds: one line for each invalid request."""
    for _ in range(2 * PIPE // 64):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_a_broker_whose_output_nobody_reads_goes_on(folder: Path, unread: tuple[int, int]) -> None:
    reader, writer = unread
    port = free_port()
    process = started_with_output_to(writer, folder, "broker", "--port", str(port), **SECRETS)
    soon(partial(serves, port), "it serves")
    complain(port)
    works_and_stops(process, port)
    assert b"qtasks broker is running" in os.read(reader, PIPE)


def test_a_broker_whose_output_is_closed_goes_on(folder: Path) -> None:
    reader, writer = os.pipe()
    port = free_port()
    process = started_with_output_to(writer, folder, "broker", "--port", str(port), **SECRETS)
    soon(partial(serves, port), "it serves")
    os.close(reader)
    complain(port)
    works_and_stops(process, port)


def test_a_broker_without_any_output_goes_on(folder: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        ["sh", "-c", f"exec {QTASKS} broker --port {port} <&- >&- 2>&-"], cwd=folder, env=environment(**SECRETS)
    )
    soon(partial(serves, port), "it serves")
    complain(port)
    works_and_stops(process, port)


def test_tasks_run_in_development_while_nobody_reads_about_them(
    folder: Path, marks: Path, unread: tuple[int, int]
) -> None:
    _, writer = unread
    process = started_with_output_to(writer, folder, "dev", "tasks.py", "--port", "0", "--app-port", "0")
    file = folder / ".qtasks" / "dev.json"
    soon(file.exists, "it serves")
    facts = json.loads(file.read_text())
    for number in range(60):
        publish(facts, "note", envelope(number, str(marks), "x" * 100))
    soon(lambda: len(lines(marks)) == 60, "all have run")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0
