"""The manifest: what a dispatcher says of its tasks, and to whom; how the broker asks for it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel

from qtasks import QTasks, TaskContext, injected
from qtasks.broker.console.manifests import FRESH_S, MAX_TASKS, MAX_VALUES, Manifests
from qtasks.broker.console.signed_questions import DispatcherQuestions
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.protocol import signing, strict_json
from qtasks.protocol.messages import Response
from qtasks.testing.fakes.virtual_clock import SeededRandom
from tests.support.broker import ACCOUNT, ScriptedTransport, VirtualClock
from tests.support.process import soon
from tests.support.servers import BrokerServer, Dispatcher
from tests.support.tasks import BASE_URL, KEYS, application

pytestmark = pytest.mark.anyio
URL = f"{BASE_URL}/_manifest"


class User(BaseModel):
    id: int
    name: str = ""


def tasks() -> QTasks:
    tasks = application(allow_pickle=True, secret_key="a-secret-that-is-long-enough-for-the-tests")

    @tasks.task(retries=5, queue="sums", aliases=["plus"])
    async def add(
        a: int,
        /,
        b: int = 9007199254740993,
        *,
        kind: Literal["x", "y"] = "x",
        user: User | None = None,
        password: str = "hunter2",
        ctx: TaskContext = injected,
    ) -> int:
        """Add two numbers.

        And say no more."""
        return a + b

    @tasks.cron("0 9 * * *", tz="Europe/Berlin")
    def report(days: int = 3) -> None: ...

    @tasks.task(unique=True)
    def once(n: int) -> None: ...

    @tasks.task(serializer="pickle")
    def pickled(value: object) -> None: ...

    @tasks.task(encrypt=True)
    def secret(text: str) -> None: ...

    return tasks


def served(tasks: QTasks) -> TestClient:
    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    return TestClient(app, base_url="https://app.example.com")


def signature(url: str = URL) -> dict[str, str]:
    token = signing.sign(KEYS.current, url=url, body=b"", now_s=int(time.time()), jti="jwt_of_the_test")
    return {"Upstash-Signature": token}


def described() -> dict[str, Any]:
    with served(tasks()) as client:
        answer = client.post(URL, headers=signature())
    assert answer.status_code == 200
    return {task["name"]: task for task in answer.json()["tasks"]}


def test_each_task_is_described_once_with_its_parameters_and_without_its_secrets() -> None:
    add = described()["add"]
    assert (add["kind"], add["aliases"], add["queue"]) == ("task", ["plus"], "sums")
    assert add["doc"].splitlines()[0] == "Add two numbers."
    assert [parameter["name"] for parameter in add["parameters"]] == ["a", "b", "kind", "user", "password"]
    a, b, kind, user, password = add["parameters"]
    assert (a["required"], a["byPosition"], a["schema"]) == (True, True, {"type": "integer"})
    assert (b["required"], b["default"]) == (False, 9007199254740993)
    assert kind["schema"]["enum"] == ["x", "y"]
    assert user["default"] is None
    assert "User" in user["schema"]["$defs"]
    assert "default" not in password
    assert "hunter2" not in json.dumps(add)
    assert "***" in add["signature"]


def test_a_task_whose_calls_only_its_application_can_make_says_why() -> None:
    refusals = {name: task["refusal"] for name, task in described().items()}
    assert refusals["add"] is None
    assert "unique" in refusals["once"]
    assert "JSON" in refusals["pickled"]
    assert "encrypted" in refusals["secret"]


def test_a_declared_schedule_has_the_id_and_the_labels_that_a_sync_would_give_it() -> None:
    application = tasks()
    [schedule] = described()["report"]["schedules"]
    [declared] = application.tasks["report"].declared
    desired = declared.desired(BASE_URL)
    assert schedule["id"] == desired.id
    assert tuple(schedule["labels"]) == desired.options.labels
    assert schedule["cron"] == "CRON_TZ=Europe/Berlin 0 9 * * *"


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Measured(BaseModel):
    value: float = float("nan")


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else []


@pytest.mark.parametrize(
    "default",
    [float("inf"), float("nan"), "\x00", "\udcff", 10**4310, nested(40), Unspeakable(), Measured()],
    ids=["infinity", "nan", "nul", "surrogate", "digits", "deep", "repr", "field"],
)
def test_a_default_that_json_cannot_carry_takes_no_task_from_the_manifest(default: Any) -> None:
    application = tasks()

    @application.task
    def wait(seconds: Any = default) -> None: ...

    @application.task
    def measure(measured: Measured) -> None: ...

    told = manifest(application)
    assert {"add", "report", "measure"} <= told.keys()
    assert told["add"]["parameters"][1]["default"] == 9007199254740993
    assert "default" not in told.get("wait", {"parameters": [{}]})["parameters"][0]


def test_a_task_that_cannot_be_described_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    application = tasks()

    def broken() -> None: ...

    broken.__doc__ = "Half of a pair: \udcff"
    application.task(broken)
    told = manifest(application)
    assert "add" in told
    assert "broken" not in told
    assert "broken is not in the manifest" in caplog.text


def manifest(application: QTasks) -> dict[str, Any]:
    """The tasks that the broker reads from the answer of an application, by name."""
    with served(application) as client:
        answer = client.post(URL, headers=signature())
    assert answer.status_code == 200
    content: Any = strict_json.loads(answer.content, big_integers=True)
    return {task["name"]: task for task in content["tasks"]}


@pytest.mark.parametrize("headers", [{}, signature(f"{BASE_URL}/add"), {"Upstash-Signature": "x.y.z"}])
def test_a_stranger_learns_nothing(headers: dict[str, str]) -> None:
    with served(tasks()) as client:
        answer = client.post(URL, headers=headers)
    assert answer.status_code == 401
    assert "add" not in answer.text


def test_a_task_that_is_declared_later_is_in_the_next_manifest() -> None:
    application = tasks()
    with served(application) as client:
        before = client.post(URL, headers=signature()).json()["tasks"]
        application.task(name="later")(later)
        after = client.post(URL, headers=signature()).json()["tasks"]
    assert {task["name"] for task in after} - {task["name"] for task in before} == {"later"}


def later(n: int) -> None: ...


# --- the broker asks


class Asked:
    """Manifests over a transport that answers as `answer` says."""

    def __init__(self, answer: Callable[[DeliveryRequest], Response | Failure]) -> None:
        self.clock = VirtualClock()
        self.transport = ScriptedTransport(answer)
        self.manifests = Manifests(DispatcherQuestions(self.transport, _Keys(), self.clock, SeededRandom(1)))

    async def error(self) -> str | None:
        [answer] = await self.manifests.of(ACCOUNT, [f"{BASE_URL}/"])
        assert (answer.manifest is None) == (answer.error is not None)
        return answer.error


class _Keys(KeyRing):
    def __init__(self) -> None: ...

    async def of(self, account: int) -> Any:
        return KEYS


async def test_the_broker_signs_its_question_and_asks_again_after_a_while() -> None:
    asked = Asked(lambda _: Response(status=200, body=b'{"v":1,"tasks":[]}'))
    assert await asked.error() is None
    assert await asked.error() is None
    [request] = asked.transport.sent
    token = dict(request.headers)["Upstash-Signature"]
    signing.verify(token, body=b"", url=URL, keys=KEYS, now_s=asked.clock.now_ms() / 1000)
    asked.clock.advance(int(FRESH_S * 1000))
    await asked.error()
    assert len(asked.transport.sent) == 2


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Failure("timeout", "no answer within 5 s"), "no answer within 5 s"),
        (Response(status=401), "signing keys"),
        (Response(status=404), "no dispatcher"),
        (Response(status=418), "it answered 418"),
        (Response(status=200, body=b"<html>"), "not JSON"),
        (Response(status=200, body=b"[]"), "not a manifest"),
        (Response(status=200, body=b'{"v":2,"tasks":[]}'), "version 2"),
        (Response(status=200, body=b'{"v":1,"package":{},"tasks":[]}'), "not a manifest"),
        (Response(status=200, body=b'{"v":1,"tasks":[]}', truncated=True), "too large"),
        (Response(status=200, body=b'{"v":1,"tasks":[' + b"{}," * MAX_TASKS + b"{}]}"), f"more than {MAX_TASKS} tasks"),
        (Response(status=200, body=b'{"v":1,"tasks":[[' + b"[]," * MAX_VALUES + b"[]]]}"), "values"),
    ],
)
async def test_what_is_no_manifest_is_a_sentence(outcome: Response | Failure, error: str) -> None:
    assert error in (await Asked(lambda _: outcome).error() or "")


@pytest.mark.parametrize(
    "change",
    [
        {"doc": None},
        {"name": ["add"]},
        {"aliases": "plus"},
        {"searchable": [1]},
        {"headers": [["a", 1]]},
        {"schedules": [{"id": "x", "name": "x", "cron": 1, "labels": []}]},
        {"parameters": [{"name": "a", "type": "int", "required": True, "byPosition": False, "schema": {"enum": 1}}]},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_task_of_another_form_is_left_out_and_the_others_stay_as_they_are(change: dict[str, Any]) -> None:
    fit = described()
    tasks = [1, {"name": "nodoc"}, *fit.values(), {**fit["add"], **change}]
    content = json.dumps({"v": 1, "package": "1.0", "tasks": tasks}).encode()
    asked = Asked(lambda _: Response(status=200, body=content))
    [answer] = await asked.manifests.of(ACCOUNT, [f"{BASE_URL}/"])
    assert answer.manifest is not None
    assert json.loads(answer.manifest)["tasks"] == list(fit.values())


def test_the_console_tells_the_tasks_of_a_running_application_and_a_call_made_from_that_alone_runs(
    tmp_path: Path,
) -> None:
    (tmp_path / "tasks.py").write_text(
        "from qtasks import task\n\n@task\ndef double(n: int) -> int:\n    print('got', n)\n    return 2 * n\n"
    )
    with BrokerServer(tmp_path) as broker, Dispatcher(tmp_path, broker=broker.started()) as dispatcher:
        dispatcher.started()
        assert broker.ask("GET", "/console/api/tasks").json == {"dispatchers": []}
        dispatcher.send("double", "1")
        dispatcher.wait_for("got 1")

        def dispatchers() -> list[dict[str, Any]]:
            told: list[dict[str, Any]] = broker.ask("GET", "/console/api/tasks").json["dispatchers"]
            return told

        soon(lambda: dispatchers() != [], "the broker has read the answer, which follows the print")
        [known] = dispatchers()
        assert known["prefix"] == dispatcher.url("")
        [task] = known["manifest"]["tasks"]
        body = {**json.loads(task["envelope"]), "kwargs": {"n": 12345678901234567890}}
        lines = {name.replace("-", "_"): value for name, value in task["headers"]}
        broker.publish(known["prefix"] + task["name"], json.dumps(body).encode(), **lines)
        dispatcher.wait_for("got 12345678901234567890")
        [endpoint] = broker.ask("GET", "/console/api/endpoints").json
        assert endpoint["isDispatcher"] is True
