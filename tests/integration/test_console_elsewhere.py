"""The console mounted in a FastAPI application, and before any QStash service by `qtasks console`."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.testclient import TestClient

from qtasks import QTasks
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.settings import BrokerSettings
from qtasks.console import console_router
from qtasks.embedded import Embedded
from qtasks.tasks.results.backend import ResultRecord, ResultStatus
from tests.support.bundles import behind_uvicorn
from tests.support.process import Process
from tests.support.running import RunningBroker

TOKEN = "token-that-no-browser-sees"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    path = tmp_path_factory.mktemp("remote") / "broker.db"
    broker = RunningBroker(BrokerSettings(path=str(path), credentials=(AccountCredentials("default", TOKEN),)))
    yield broker
    broker.stop()


class ConsoleProcess(Process):
    """A running `qtasks console`."""

    def __init__(self, folder: Path, url: str, *arguments: str) -> None:
        super().__init__(
            folder, "console", "--url", url, "--token-env", "THE_TOKEN", "--port", "0", *arguments, THE_TOKEN=TOKEN
        )
        self.address = self.wait_for("console at").split()[2].rstrip("/")
        self.csrf = self.get("session").json()["csrf"]

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.address}/console/api/{path}", headers=headers)

    def post(self, path: str, body: Any = None, csrf: str | None = None) -> httpx.Response:
        lines = {"QTasks-CSRF": self.csrf if csrf is None else csrf}
        return httpx.post(f"{self.address}/console/api/{path}", headers=lines, json=body)


# -- in an application


def admin(request: Request) -> None:
    if request.headers.get("x-user") != "admin":
        raise HTTPException(403)


@pytest.fixture
def mounted() -> Iterator[TestClient]:
    tasks = QTasks(embedded=Embedded(":memory:"))

    @tasks.task
    def add(a: int, b: int) -> int:
        return a + b

    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    app.include_router(
        console_router(tasks, user=lambda request: request.headers.get("x-mail")),
        prefix="/jobs",
        dependencies=[Depends(admin)],
    )
    app.state.add = add
    with TestClient(app, headers={"x-user": "admin"}) as client:
        yield client


def test_the_mounted_console_is_behind_the_applications_dependency(mounted: TestClient) -> None:
    for path in ("/jobs/", "/jobs/console/static/app.js", "/jobs/console/api/session", "/jobs/console/api/queues"):
        assert mounted.get(path, headers={"x-user": "guest"}).status_code == 403, path
        assert mounted.get(path).status_code == 200, path
    assert mounted.get("/jobs").url.path == "/jobs/", "the page is a folder, so that its links work below any path"


def test_the_mounted_console_shows_the_broker_in_the_process(mounted: TestClient) -> None:
    session = mounted.get("/jobs/console/api/session").json()
    assert (session["signedIn"], session["canSignOut"], session["role"]) == (True, False, "operator")
    assert session["service"] == {"kind": "broker", "url": None, "lacks": ["llm"]}
    result = mounted.app.state.add.delay(2, 3)  # type: ignore[attr-defined]
    assert result.get(timeout=10) == 5
    [row] = mounted.get("/jobs/console/api/messages").json()["messages"]
    assert (row["callId"], row["task"]) == (result.id, "add")
    page = mounted.get(f"/jobs/console/api/messages/{row['messageId']}").json()
    assert page["attempts"][0]["outcome"] in ("delivered", "running")


def test_the_mounted_console_changes_nothing_for_a_forged_request(mounted: TestClient) -> None:
    csrf = mounted.get("/jobs/console/api/session").json()["csrf"]
    path, body = "/jobs/console/api/v2/queues", {"queueName": "mails"}
    assert mounted.post(path, json=body).status_code == 403
    assert mounted.post(path, json=body, headers={"QTasks-CSRF": csrf, "Origin": "http://evil"}).status_code == 403
    assert mounted.post(path, json=body, headers={"QTasks-CSRF": csrf}).status_code == 200
    assert [queue["name"] for queue in mounted.get("/jobs/console/api/queues").json()] == ["mails"]


def test_the_audit_tells_of_the_application_and_of_its_user(mounted: TestClient) -> None:
    headers = {"QTasks-CSRF": mounted.get("/jobs/console/api/session").json()["csrf"], "Qtasks-Console-User": "forged"}
    path = "/jobs/console/api/v2/flowControl/openai"
    assert mounted.post(f"{path}/pause", headers=headers).status_code == 200
    assert mounted.post(f"{path}/resume", headers={**headers, "x-mail": "ada@example.com"}).status_code == 200
    changes = mounted.get("/jobs/console/api/audit").json()["changes"]
    assert [(change["who"], change["origin"]) for change in changes] == [
        ("ada@example.com (the configured token)", "console"),
        ("the application (the configured token)", "console"),
    ]


def test_the_mounted_console_has_the_live_events_of_the_broker_in_the_process() -> None:
    tasks = QTasks(embedded=Embedded(":memory:"))

    @tasks.task
    def add(a: int, b: int) -> int:
        return a + b

    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    app.include_router(console_router(tasks), prefix="/jobs")
    with (
        behind_uvicorn(app) as served,
        httpx.stream("GET", f"{served.url.removesuffix('/qtasks')}/jobs/console/api/events") as events,
    ):
        assert events.headers["content-type"].startswith("text/event-stream")
        lines = events.iter_lines()
        assert next(lines).startswith("retry:")
        call = add.delay(2, 3)
        delivered = next(line for line in lines if '"DELIVERED"' in line)
        assert str(call.message_id) in delivered


def test_a_read_only_console_only_looks() -> None:
    tasks = QTasks(embedded=Embedded(":memory:"))
    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    app.include_router(console_router(tasks, read_only=True), prefix="/console")
    with TestClient(app) as client:
        session = client.get("/console/console/api/session").json()
        assert session["role"] == "viewer"
        answer = client.post(
            "/console/console/api/v2/queues", json={"queueName": "x"}, headers={"QTasks-CSRF": session["csrf"]}
        )
        assert answer.status_code == 403
        for path in ("v2/keys", "V2/KEYS", "v2/keys/", "v2/keys?x=1"):
            answer = client.get(f"/console/console/api/{path}")
            assert answer.status_code == 403, "a signing key starts every task"
            assert "sig_" not in answer.text
        assert client.get("/console/console/api/v2/queues").status_code == 200


# -- before a broker of ours


def test_the_console_of_a_remote_broker(running: RunningBroker, tmp_path: Path) -> None:
    with ConsoleProcess(tmp_path, running.url) as console:
        session = console.get("session").json()
        assert session["service"] == {"kind": "remote-broker", "url": running.url, "lacks": ["llm"]}
        assert console.post("v2/queues", {"queueName": "mails", "parallelism": 3}).status_code == 200
        [queue] = console.get("queues").json()
        assert (queue["name"], queue["parallelism"]) == ("mails", 3)
        assert console.post("v2/queues", {"queueName": "forged"}, csrf="wrong").status_code == 403
        [change] = console.get("audit").json()["changes"]
        assert (change["what"], change["origin"]) == ("queue.set", "console")
        assert console.get("queues", Host="evil.example").status_code == 421
        assert console.get("queues", **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert console.get("../../v2/queues").status_code == 404
        page = httpx.get(f"{console.address}/")
        everything = page.text + json.dumps(session) + str(page.headers) + console.get("system").text
        assert TOKEN not in everything
        with httpx.stream("GET", f"{console.address}/console/api/events") as events:
            assert next(events.iter_text()).startswith("retry:")


def test_a_wrong_token_is_a_sentence(running: RunningBroker, tmp_path: Path) -> None:
    process = Process(
        tmp_path, "console", "--url", running.url, "--token-env", "THE_TOKEN", "--port", "0", THE_TOKEN="wrong"
    )
    with process:
        address = process.wait_for("console at").split()[2]
        answer = httpx.get(f"{address}console/api/session")
        assert answer.status_code in (401, 403)
        assert "token" in answer.json()["error"]


# -- before a service that has only the API of QStash


class HostedFake(ThreadingHTTPServer):
    """Answers as hosted QStash does; `asked` lists the requests."""

    daemon_threads = True
    answers: dict[str, Any] = {  # noqa: RUF012
        "/v2/queues": [{"name": "mails", "parallelism": 2, "lag": 7}],
        "/v2/flowControl": [],
        "/v2/schedules": [
            {
                "scheduleId": "scd_1",
                "cron": "0 9 * * *",
                "destination": "https://app.example/run",
                "nextScheduleTime": 1_800_000_000_000,
            }
        ],
        "/v2/logs": {
            "events": [
                {"time": 3, "state": "DELIVERED", "messageId": "msg_1", "url": "https://app.example/run?x=1"},
                {"time": 2, "state": "ACTIVE", "messageId": "msg_1", "url": "https://app.example/run?x=1"},
                {"time": 1, "state": "CREATED", "messageId": "msg_1", "url": "https://app.example/run?x=1"},
            ],
            "cursor": "next",
        },
        "/v2/dlq": {
            "messages": [{"dlqId": "1-0", "messageId": "msg_2", "url": "https://app.example/b", "responseStatus": 500}]
        },
    }

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                fake.asked.append((self.command, self.path))
                body = fake.answers.get(path, {} if self.command != "GET" else None)
                allowed = self.headers["Authorization"] == f"Bearer {TOKEN}"
                self.send_response(401 if not allowed else 404 if body is None else 200)
                content = json.dumps(body).encode()
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def test_the_console_of_a_service_that_knows_only_the_api(tmp_path: Path) -> None:
    hosted = HostedFake()
    try:
        with ConsoleProcess(tmp_path, hosted.url) as console:
            service = console.get("session").json()["service"]
            assert service["kind"] == "qstash"
            assert {"overview", "failures", "events"} <= set(service["lacks"])
            [row] = console.get("messages").json()["messages"]
            assert (row["messageId"], row["status"], row["destination"]) == (
                "msg_1",
                "delivered",
                "https://app.example/run",
            )
            [attempt] = console.get("messages/msg_1").json()["attempts"]
            assert (attempt["startedMs"], attempt["endedMs"], attempt["outcome"]) == (2, 3, "delivered")
            [schedule] = console.get("schedules").json()["schedules"]
            assert schedule["english"] == "every day at 09:00"
            assert len(schedule["nextMs"]) == 5
            assert console.get("queues").json()[0]["waiting"] == 7
            [letter] = console.get("dead-letters").json()["deadLetters"]
            assert (letter["deadLetterId"], letter["responseStatus"]) == ("1-0", 500)
            assert console.post("dead-letters/retry", {"ids": ["1-0"]}).json() == {"done": 1, "left": 0}
            assert ("POST", "/v2/dlq/retry/1-0") in hosted.asked
            assert console.get("messages?filter=arg.a%3A1").status_code == 200
            assert any(path.endswith("&label=qtasks.arg.a%3D1") for _, path in hosted.asked)
            unreadable = console.get("messages?filter=error%3Ax")
            assert unreadable.status_code == 422
            assert unreadable.json()["problems"][0]["length"] == len("error:x")
            assert console.get("overview").status_code == 404
    finally:
        hosted.shutdown()
        hosted.server_close()


def task_log() -> dict[str, Any]:
    """The log of a service with one delivered message, a call of the task ``add``."""
    envelope = {"v": 1, "id": "call_1", "args": [2, 3], "kwargs": {}}
    body = base64.b64encode(json.dumps(envelope).encode()).decode()
    url = "https://app.example/qtasks/add"
    entry = {"time": 1, "state": "DELIVERED", "messageId": "msg_1", "url": url, "body": body}
    return {"/v2/queues": [], "/v2/logs": {"events": [entry]}}


def test_an_application_shows_the_results_of_a_service_that_cannot_ask_for_them() -> None:
    hosted = HostedFake()
    hosted.answers = task_log()
    tasks = QTasks(url=hosted.url, token=TOKEN, base_url="https://app.example/qtasks", results="memory://")
    app = FastAPI()
    app.include_router(console_router(tasks), prefix="/jobs")
    try:
        record = ResultRecord(
            call_id="call_1",
            message_id="msg_1",
            task="add",
            status=ResultStatus.SUCCEEDED,
            attempt=1,
            updated_ms=1,
            value='{"sum": 5, "token": "sesame"}',
        )
        tasks.runtime.results().write([record])
        client = TestClient(app)
        page = client.get("/jobs/console/api/messages/msg_1").json()
        assert (page["row"]["task"], page["row"]["callId"]) == ("add", "call_1")
        assert json.loads(page["message"]["body"])["args"] == [2, 3]
        seen = client.get("/jobs/console/api/messages/msg_1/call").json()
        assert json.loads(seen["call"]["result"]["text"]) == {"sum": 5, "token": "***"}
        assert (seen["error"], seen["hasResults"], seen["call"]["state"]) == (None, True, "succeeded")
    finally:
        tasks.close()
        hosted.shutdown()
        hosted.server_close()


def test_a_console_of_its_own_says_that_the_service_does_not_tell_results(tmp_path: Path) -> None:
    hosted = HostedFake()
    hosted.answers = task_log()
    try:
        with ConsoleProcess(tmp_path, hosted.url) as console:
            seen = console.get("messages/msg_1/call").json()
            assert (seen["call"], seen["flow"]) == (None, None)
            assert "does not tell results; the console that an application mounts" in seen["error"]
    finally:
        hosted.shutdown()
        hosted.server_close()


def test_it_does_not_listen_for_other_machines_unless_asked(tmp_path: Path) -> None:
    from tests.support.process import qtasks

    done = qtasks("console", "--url", "http://127.0.0.1:1", "--host", "0.0.0.0", folder=tmp_path, QSTASH_TOKEN="x")
    assert done.status != 0
    assert "without a sign-in" in done.err
    assert "--allow-host" in done.err
    missing = qtasks("console", "--url", "http://127.0.0.1:1", "--token-env", "NOT_SET", folder=tmp_path)
    assert "the environment variable NOT_SET is not set" in missing.err
