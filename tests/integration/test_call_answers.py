"""What a dispatcher tells of one call and its flow, and how the console shows it with the messages of the broker."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from qtasks import NonRetryable, QTasks, TaskContext, chain, group, injected
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.settings import BrokerSettings
from qtasks.errors import TaskFailed
from qtasks.protocol.dispatcher_questions import MAX_QUESTION, MAX_RESULT
from qtasks.protocol.messages import State
from qtasks.tasks.results.backend import ResultRecord, ResultStatus
from qtasks.tasks.results.flow_plan import FlowPlan, planned_call
from tests.support.bundles import behind_uvicorn
from tests.support.commands import Run, in_process
from tests.support.console import Browser, add_tokens
from tests.support.running import PATIENCE_S, Endpoint, RunningBroker
from tests.support.tasks import BASE_URL, KEYS, application, signature

URL = f"{BASE_URL}/_call"
CALL_ID = "call_of_the_test"


class Told:
    """An application, and what its dispatcher tells; results are recorded by hand."""

    def __init__(self, **settings: Any) -> None:
        self.tasks = application(**settings)
        self.tasks.task(name="hidden", redact=True)(_work)
        app = FastAPI()
        app.include_router(self.tasks.router, prefix="/qtasks")
        self.client = TestClient(app, base_url="https://app.example.com")

    def record(self, status: ResultStatus, *, task: str = "work", **fields: Any) -> None:
        record = ResultRecord(
            call_id=CALL_ID, message_id="msg_1", task=task, status=status, attempt=2, updated_ms=1_000, **fields
        )
        self.tasks.runtime.results().write([record])

    def ask(self, call_id: str = CALL_ID, **more: Any) -> Any:
        answer = self.post(json.dumps({"v": 1, "id": call_id, **more}).encode())
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, body: bytes, signed: str | None = None) -> Any:
        headers = {"Upstash-Signature": signature(URL, body) if signed is None else signed}
        return self.client.post(URL, content=body, headers=headers)

    def result(self) -> Any:
        return self.ask()["call"]["result"]


def _work() -> None: ...


def test_a_result_is_told_with_every_digit_and_without_the_values_of_secret_names() -> None:
    told = Told()
    told.record(ResultStatus.SUCCEEDED, value='{"id": 12345678901234567890, "price": 1.10}')
    assert told.result()["text"] == '{"id": 12345678901234567890, "price": 1.10}'
    told.record(ResultStatus.SUCCEEDED, value='{"user": [{"api_key": "sesame", "id": 12345678901234567890}]}')
    assert json.loads(told.result()["text"]) == {"user": [{"api_key": "***", "id": 12345678901234567890}]}
    call = told.ask("msg_1")["call"]
    assert (call["id"], call["task"], call["state"], call["attempt"]) == (CALL_ID, "work", "succeeded", 2)


@pytest.mark.parametrize(
    ("text", "form"), [("sealed1:abc", "encrypted"), ("pickle1:abc", "pickle"), ("codec1:z.ab", "coded")]
)
def test_what_only_the_application_can_read_is_not_opened(text: str, form: str) -> None:
    told = Told()
    told.record(ResultStatus.SUCCEEDED, value=text)
    assert told.result() == {"form": form, "bytes": len(text)}


def test_the_result_of_a_task_that_redacts_its_calls_is_not_report() -> None:
    told = Told()
    told.record(ResultStatus.SUCCEEDED, task="hidden", value='"the result"')
    assert told.result() == {"form": "redacted", "bytes": 12}


def test_only_the_beginning_of_a_large_result_is_report() -> None:
    told = Told()
    told.record(ResultStatus.SUCCEEDED, value=json.dumps("ü" * MAX_RESULT, ensure_ascii=False))
    result = told.result()
    assert result["isCut"]
    assert MAX_RESULT - 4 < len(result["text"].encode()) <= MAX_RESULT
    assert result["bytes"] == 2 * MAX_RESULT + 2


def test_a_running_call_tells_its_progress_and_a_failed_one_its_error() -> None:
    told = Told()
    told.record(ResultStatus.RUNNING, progress='{"done": 3, "total": 10, "note": "token=sesame"}')
    assert told.ask()["call"]["progress"] == {"done": 3, "total": 10, "note": "token=***"}
    told.record(ResultStatus.FAILED, error="KeyError: password=sesame")
    call = told.ask()["call"]
    assert (call["error"], call["result"]) == ("KeyError: password=***", None)


def test_code_is_told_only_to_whom_the_signing_keys_belong() -> None:
    told = Told()
    url, body = f"{BASE_URL}/_source", json.dumps({"v": 1, "at": ["nowhere.py:1 in work"]}).encode()
    for signed, status in ((signature(url, body), 200), (signature(URL, body), 401), ("", 401)):
        answer = told.client.post(url, content=body, headers={"Upstash-Signature": signed})
        assert answer.status_code == status
        assert (status == 401) or answer.json() == {"v": 1, "frames": []}
    refused = told.client.post(url, content=b"{}", headers={"Upstash-Signature": signature(url, b"{}")})
    assert (refused.status_code, "not a question about places" in refused.text) == (400, True)


def test_without_a_record_or_a_result_backend_the_answer_says_so() -> None:
    assert Told().ask("call_unknown") == {"v": 1, "results": True, "call": None, "flow": None}
    without = Told(results=None)
    assert without.ask() == {"v": 1, "results": False, "call": None, "flow": None}


def test_a_stranger_learns_nothing_and_an_unreadable_question_is_refused() -> None:
    told = Told()
    told.record(ResultStatus.SUCCEEDED, value='"sesame"')
    question = json.dumps({"v": 1, "id": CALL_ID}).encode()
    for signed in ("", "x.y.z", signature(f"{BASE_URL}/_manifest", question), signature(URL, b"{}")):
        answer = told.post(question, signed)
        assert (answer.status_code, "sesame" in answer.text) == (401, False)
    for body in (
        b"",
        b"[]",
        b'{"v":1}',
        b'{"v":2,"id":"call_1"}',
        b'{"v":1,"id":"a b"}',
        b" " * MAX_QUESTION + question,
    ):
        assert told.post(body).status_code == 400, body


@pytest.mark.parametrize("name", ["_bundle", "_call", "_manifest", "_source"])
def test_a_publisher_gets_no_answer_of_what_only_the_broker_asks(name: str) -> None:
    told = Told()
    told.record(ResultStatus.SUCCEEDED, value='"sesame"')
    url, published = f"{BASE_URL}/{name}", json.dumps({"v": 1, "id": CALL_ID}).encode()
    headers = {"Upstash-Signature": signature(url, published), "Upstash-Message-Id": "msg_1"}  # as of every message
    answer = told.client.post(url, content=published, headers=headers)
    assert (answer.status_code, "sesame" in answer.text) == (403, False)


def planned(task: str, number: int) -> dict[str, str]:
    return planned_call(task, f"call_{number}")


def test_a_long_flow_is_told_in_a_few_parts_that_count_the_rest() -> None:
    told = Told()
    members = [planned("store", number) for number in range(5_000)]
    plan = FlowPlan([planned("fetch", 9_000), members, planned("report", 9_001)])
    states = dict.fromkeys(range(4000), ResultStatus.SUCCEEDED) | {70: ResultStatus.FAILED}
    records = [call.ended(states[n], "", 1, kept=True) for n, call in enumerate(plan.calls[1:]) if n in states]
    told.tasks.runtime.results().write([*records, plan.record(ResultStatus.RUNNING, 1)])
    begun_s = time.perf_counter()
    flow = told.ask("call_4321", flow=plan.flow_id)["flow"]
    assert time.perf_counter() - begun_s < 2
    first, chord, last = flow["sequence"]
    assert (first["task"], last["id"], flow["state"]) == ("fetch", "call_9001", "running")
    shown = [member[0]["id"] for member in chord["members"] if "id" in member[0]]
    assert shown == [*(f"call_{number}" for number in range(5)), "call_70", "call_4321"]
    counts = [member[0]["leftOut"] for member in chord["members"] if "leftOut" in member[0]]
    assert counts == [{"succeeded": 65}, {"succeeded": 3_929, "queued": 321}, {"queued": 678}]


def test_a_call_is_not_told_the_flow_of_another_call() -> None:
    told = Told()
    plan = FlowPlan([planned("fetch", 1), planned("report", 2)])
    told.tasks.runtime.results().write([plan.record(ResultStatus.RUNNING, 1)])
    assert told.ask("call_3", flow=plan.flow_id)["flow"] is None
    assert told.ask("call_2")["flow"]["id"] == plan.flow_id, "the last call names its flow"


# --- the console asks


class Shop:
    """A broker with a console, and an application whose tasks it calls."""

    def __init__(self, broker: RunningBroker, tasks: QTasks, gate: threading.Event) -> None:
        self.broker, self.tasks, self.gate = broker, tasks, gate
        add_tokens(broker)
        self.browsers = {role: Browser(broker.url, role) for role in ("operator", "metadata")}

    def see(self, message_id: str, role: str = "operator") -> Any:
        answer = self.browsers[role].ask("GET", f"messages/{message_id}/call")
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    results = f"sqlite:///{tmp_path_factory.mktemp('shop') / 'results.db'}"
    credentials = AccountCredentials("shop", "token-of-the-shop", KEYS)
    broker = RunningBroker(BrokerSettings(path=":memory:", credentials=(credentials,)))
    app, gate = FastAPI(), threading.Event()
    try:
        with behind_uvicorn(app) as served:
            tasks = application(url=broker.url, token="token-of-the-shop", base_url=served.url, results=results)
            app.include_router(tasks.router, prefix="/qtasks")

            @tasks.task
            def double(n: int) -> int:
                return 2 * n

            @tasks.task(retries=0)
            def refuse(n: int) -> int:
                raise NonRetryable("token=sesame is wrong")

            @tasks.task
            def total(numbers: list[int]) -> int:
                return sum(numbers)

            @tasks.task
            def wait(ctx: TaskContext = injected) -> None:
                ctx.progress(1, 4, "password: sesame")
                gate.wait()

            yield Shop(broker, tasks, gate)
            gate.set()
            broker.stop()
            tasks.close()
    finally:
        gate.set()


def test_the_console_shows_a_result_and_not_to_those_who_see_no_payloads(shop: Shop) -> None:
    call = shop.tasks.tasks["double"].delay(10**20)
    call.get(timeout=10)
    seen = shop.see(str(call.message_id))
    assert (seen["error"], seen["hasResults"], seen["flow"]) == (None, True, None)
    assert seen["call"]["result"]["text"] == str(2 * 10**20)
    assert (seen["call"]["callId"], seen["call"]["state"]) == (call.id, "succeeded")
    without = shop.see(str(call.message_id), "metadata")
    assert (without["call"]["state"], without["call"]["result"]) == ("succeeded", None)


def test_the_text_for_an_assistant_has_the_code_around_the_place_where_a_call_failed(shop: Shop) -> None:
    call = shop.tasks.tasks["refuse"].delay(1)
    with pytest.raises(TaskFailed):
        call.get(timeout=10)
    message_id = str(call.message_id)
    shop.broker.wait_for(State.FAILED, message_id)
    answer = shop.browsers["operator"].ask("GET", f"messages/{message_id}/assistant")
    [line] = [each for each in answer.json()["text"].splitlines() if each.startswith("  > ")]
    assert line.endswith('|                 raise NonRetryable("token=*** is wrong")')
    assert "|             def refuse(n: int) -> int:" in answer.json()["text"]
    assert shop.browsers["metadata"].ask("GET", f"messages/{message_id}/assistant").status_code == 403


def test_each_step_of_a_flow_has_its_state_and_its_message(shop: Shop) -> None:
    task = shop.tasks.tasks
    flow = chain(task["double"].s(1), group(task["double"].s(), task["refuse"].s()), task["total"].s()).delay()
    with pytest.raises(TaskFailed):
        flow.get(timeout=10)
    assert flow.parent.wait(timeout=10)
    [failed] = [event.message for event in shop.broker.events if event.message.url.endswith("/refuse")][-1:]
    shop.broker.wait_for(State.FAILED, failed.id)
    seen = shop.see(failed.id)
    first, forked, last = seen["flow"]["sequence"]
    [[doubled], [refused]] = forked["members"]
    assert [first["status"], doubled["status"], refused["status"]] == ["delivered", "delivered", "failed"]
    assert (refused["isThis"], refused["messageId"]) == (True, failed.id)
    assert (last["task"], last["status"], last["messageId"]) == ("total", "failed", None)
    by_call = shop.see(refused["callId"])
    assert by_call["call"]["error"] == "NonRetryable: token=*** is wrong"
    hidden = shop.see(failed.id, "metadata")
    assert [step["task"] for step in hidden["flow"]["sequence"] if "task" in step] == ["double", "total"]
    assert "sesame" not in json.dumps(hidden) + json.dumps(by_call)
    assert "wrong" not in json.dumps(hidden)


def test_a_step_that_is_not_sent_yet_waits_and_has_no_message(shop: Shop) -> None:
    task = shop.tasks.tasks
    flow = chain(task["double"].using(delay="1h").s(1), task["double"].s()).delay()
    first, last = shop.see(flow.parent.id)["flow"]["sequence"]
    assert (first["status"], first["isThis"]) == ("scheduled", True)
    assert (last["status"], last["messageId"]) == ("waiting", None)


def test_the_progress_of_a_running_call_is_seen_without_its_note_by_those_who_see_no_payloads(shop: Shop) -> None:
    call = shop.tasks.tasks["wait"].delay()
    results, changed = shop.tasks.runtime.results(), threading.Event()
    with results.watchers.watching(call.id, changed.set):
        while (record := results.read(call.id)) is None or record.progress is None:
            assert changed.wait(PATIENCE_S)
            changed.clear()
    seen = shop.see(str(call.message_id))["call"]
    assert (seen["state"], seen["progress"]) == ("running", {"done": 1, "total": 4, "note": "password: ***"})
    assert shop.see(str(call.message_id), "metadata")["call"]["progress"]["note"] == ""


def test_the_result_of_a_redacted_call_is_not_shown(shop: Shop) -> None:
    call = shop.tasks.tasks["double"].using(redact=True).delay(2)
    call.get(timeout=10)
    assert shop.see(str(call.message_id))["call"]["result"] == {"form": "redacted", "bytes": 1}


def test_the_console_says_why_nothing_is_known(shop: Shop) -> None:
    endpoint = Endpoint(answer=lambda received: (404, {}, b""))
    try:
        assert asked_about(shop, None)["error"] == "only the call of a task has a result: this message is not one"
        asked = asked_about(shop, f"{endpoint.url}/tasks/_end?task=add&call=call_9&flow=flow_9")
        assert "no dispatcher serves this prefix" in asked["error"]
        assert asked["prefix"] == f"{endpoint.url}/tasks/"
        [question] = endpoint.wait_for(1)
        assert question.path == "/tasks/_call"
        assert json.loads(question.body) == {"v": 1, "id": "call_9", "flow": "flow_9"}
        endpoint.answer = lambda received: (200, {}, b'{"v": 1, "results": true, "call": {"id": 7}}')
        assert "call.id is not a str" in asked_about(shop, f"{endpoint.url}/b/_end?task=add")["error"]
    finally:
        endpoint.close()
    assert "refused" in asked_about(shop, "http://127.0.0.1:9/gone/_end?task=add")["error"]
    assert shop.browsers["operator"].ask("GET", "messages/msg_none/call").status_code == 404


def asked_about(shop: Shop, end_callback: str | None) -> Any:
    """What is seen of the call of a message that waits, whose end is to be reported at `end_callback`."""
    lines = {"Authorization": "Bearer operator", "Upstash-Delay": "1h"}
    if end_callback is not None:
        lines["Qtasks-End-Callback"] = end_callback
    published = httpx.post(f"{shop.broker.url}/v2/publish/http://127.0.0.1:9/tasks/add", headers=lines)
    return shop.see(published.json()["messageId"])


# --- the command line


@pytest.fixture
def run(shop: Shop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return in_process(monkeypatch, capfd, {"QSTASH_URL": shop.broker.url, "QSTASH_TOKEN": "token-of-the-shop"})


def test_the_command_line_shows_the_result_and_the_flow(shop: Shop, run: Run) -> None:
    task = shop.tasks.tasks
    flow = chain(task["double"].s(10**20), group(task["double"].s(), task["refuse"].si(1)), task["total"].s()).delay()
    with pytest.raises(TaskFailed):
        flow.get(timeout=10)
    assert flow.parent.wait(timeout=10)
    doubled, refused = flow.parent.calls
    shown = run("messages", "show", doubled.id)
    assert shown.status == 0, shown.err
    assert f"  call is       succeeded, attempt 1\n  result        {4 * 10**20}\n" in shown.out
    assert "  flow          failed, 2 of 4 calls delivered\n      delivered     double  call_" in shown.out
    assert f"    - delivered     double  {doubled.id}  (this call)\n" in shown.out
    assert f"      failed        total  {flow.id}\n" in shown.out
    assert "  its error     NonRetryable: token=*** is wrong\n" in run("messages", "show", refused.id).out
    document = run("messages", "show", doubled.id, "--json").json["call"]
    assert document["call"]["result"]["text"] == str(4 * 10**20)


def test_the_command_line_says_that_the_application_does_not_answer(shop: Shop, run: Run) -> None:
    lines = {"Authorization": "Bearer operator", "Upstash-Delay": "1h"}
    gone = {**lines, "Qtasks-End-Callback": "http://127.0.0.1:9/tasks/_end?task=add"}
    published = httpx.post(f"{shop.broker.url}/v2/publish/http://127.0.0.1:9/tasks/add", headers=gone)
    shown = run("messages", "show", published.json()["messageId"])
    assert shown.status == 0
    assert "  application   says nothing about the call: connection refused" in shown.out
    assert "  result  " not in shown.out, "an application that cannot be asked is not a result"
    plain = httpx.post(f"{shop.broker.url}/v2/publish/http://127.0.0.1:9/other", headers=lines)
    assert "result" not in run("messages", "show", plain.json()["messageId"]).out
