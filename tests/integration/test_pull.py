"""`qtasks pull`: what failed at one broker runs once more in the `qtasks dev` of this folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Run, in_process
from tests.support.dev import Dev
from tests.support.process import ask, soon
from tests.support.running import Endpoint
from tests.support.servers import TOKEN, BrokerServer

TASKS = """
from qtasks import QTasks, TaskContext, injected

tasks = QTasks()

@tasks.task(retries=5, timeout="1s")
def charge(order: int, *, api_token: str, ctx: TaskContext = injected) -> str:
    if order < 0:
        raise ValueError("no such order")
    return f"charged {order} with {len(api_token)} letters, last={ctx.is_last_attempt}"

@tasks.task
def login(user: str, password: str) -> str:
    return "in"
"""
GONE = "http://127.0.0.1:9/production"
"""Where nothing listens: the production that has failed."""
ORDER = 12345678901234567890


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerServer]:
    with BrokerServer(tmp_path_factory.mktemp("production")) as running:
        yield running.started()


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    folder = tmp_path_factory.mktemp("here")
    (folder / "tasks.py").write_text(TASKS)
    with Dev(folder, "tasks.py") as running:
        running.started()
        yield running


@pytest.fixture
def run(production: BrokerServer, dev: Dev, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command beside `qtasks dev`, with the token of production at hand."""
    monkeypatch.chdir(dev.folder)
    return in_process(monkeypatch, capfd, {"QSTASH_URL": production.url, "QSTASH_TOKEN": TOKEN})


def failed(production: BrokerServer, body: object, task: str = "charge", **headers: str) -> str:
    """A message that is a dead letter of production; its id."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    message_id = production.publish(f"{GONE}/{task}", content, Upstash_Retries="0", **headers)
    soon(lambda: production.states(message_id)[-1] == "FAILED", "it has failed")
    return message_id


def a_call(order: int = ORDER, **members: object) -> dict[str, object]:
    call_id = f"call_{os.urandom(8).hex()}"
    return {"v": 1, "id": call_id, "args": [order], "kwargs": {"api_token": "s3cret"}, "retries": 5, **members}


def dead_letters(production: BrokerServer, message_id: str) -> list[str]:
    page = production.ask("GET", f"/v2/dlq?messageId={message_id}").json
    return [letter["dlqId"] for letter in page["messages"]]


def test_a_dead_letter_of_production_runs_here_as_often_as_it_is_pulled(
    run: Run, production: BrokerServer, dev: Dev
) -> None:
    # Its time is over, and it was on its way to another call: neither keeps it from running here, alone.
    call = a_call(expires_ms=1_700_000_000_000, timeout_ms=1)
    dead = failed(production, call, Upstash_Forward_X_Tenant="acme", Upstash_Label="pulled")
    [letter] = dead_letters(production, dead)
    for name in (dead, letter):
        pulled = run("pull", name)
        assert pulled.status == 0, pulled.err
        new_id, *facts = pulled.out.splitlines()
        assert new_id.startswith("msg_")
        assert f"  copy of       {dead}, dead letter {letter} at {production.url}, which keeps it" in facts
        assert f"  arguments     {ORDER}, api_token='***'" in facts
        assert "  answer        none" in facts
        assert "s3cret" not in pulled.out + pulled.err
        dev.wait_for(f"'charged {ORDER} with 6 letters, last=True'")
    assert dead_letters(production, dead) == [letter]

    local = dev.started_already()
    message = ask("GET", f"{local['broker']}/v2/messages/{new_id}", token=local["token"]).json
    assert message["url"] == f"{local['base_url']}/charge"
    assert (message["maxRetries"], message["labels"]) == (0, ["pulled"])
    assert message["header"]["X-Tenant"] == ["acme"]


def test_a_failure_here_is_a_dead_letter_here_alone(run: Run, production: BrokerServer, dev: Dev) -> None:
    before = len(production.ask("GET", "/v2/dlq").json["messages"])
    dead = failed(production, a_call(-1))
    facts = run("pull", dead, "--retries", "2", "--json").json
    assert facts["source"] == {
        "url": production.url,
        "messageId": dead,
        "deadLetterId": dead_letters(production, dead)[0],
    }
    assert (facts["task"], facts["method"], facts["retries"]) == ("charge", "POST", 2)
    assert "1/3  ValueError: no such order" in dev.wait_for("retry in")
    assert run("messages", "cancel", facts["messageId"], "--yes", QSTASH_TOKEN="", QSTASH_URL="").status == 0
    assert len(production.ask("GET", "/v2/dlq").json["messages"]) == before + 1


def test_a_dry_run_publishes_nothing(run: Run, production: BrokerServer, dev: Dev) -> None:
    local = dev.started_already()

    def count() -> int:
        return len(ask("GET", f"{local['broker']}/v2/events", token=local["token"]).json["events"])

    dead, before = failed(production, a_call()), count()
    looked = run("pull", dead, "--dry-run")
    assert looked.status == 0
    assert "nothing was changed" in looked.err
    assert f"  delivered to  POST {local['base_url']}/charge" in looked.out.splitlines()
    assert run("pull", dead, "--dry-run", "--json").json["messageId"] is None
    assert count() == before


def test_what_is_pulled_shows_no_secret_that_was_passed_by_position(run: Run, production: BrokerServer) -> None:
    dead = failed(production, {**a_call(), "args": ["ada", "hunter2"], "kwargs": {}}, "login")
    pulled = run("pull", dead, "--dry-run")
    assert "  arguments     'ada', '***'" in pulled.out.splitlines()


def test_what_is_no_task_of_this_folder_is_delivered_where_the_user_says(
    run: Run, production: BrokerServer, dev: Dev
) -> None:
    plain = failed(production, b"\xff\x00 any bytes", "hook", Upstash_Method="PUT", Content_Type="image/png")
    refused = run("pull", plain)
    assert (refused.status, refused.out) == (2, "")
    assert f"is not a call of a task: it goes to {GONE}/hook" in refused.err
    unknown = run("pull", failed(production, a_call(), "chrage"))
    assert unknown.status != 0
    assert "has no task 'chrage'; did you mean 'charge'?" in unknown.err

    endpoint = Endpoint()
    try:
        pulled = run("pull", plain, "--to", f"{endpoint.url}/hook?x=1")
        assert pulled.status == 0, pulled.err
        [received] = endpoint.wait_for(1)
    finally:
        endpoint.close()
    assert (received.method, received.path, received.body) == ("PUT", "/hook?x=1", b"\xff\x00 any bytes")
    assert received.headers["Content-Type"] == "image/png"
    assert "Upstash-Signature" in received.headers


def test_what_cannot_be_pulled_ends_with_a_sentence(
    run: Run, production: BrokerServer, dev: Dev, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redacted = run("pull", failed(production, a_call(), Upstash_Redact_Fields="body"))
    assert redacted.status == 2
    assert "is redacted" in redacted.err
    assert run("pull", "msg_unknown").status == 6
    refused = run("pull", "msg_x", QSTASH_TOKEN="wrong")
    assert refused.status == 4
    for variables, text in (
        ({"QSTASH_TOKEN": ""}, "QSTASH_TOKEN is not set"),
        ({"QSTASH_URL": dev.started_already()["broker"]}, "is the broker of this folder"),
    ):
        done = run("pull", "msg_x", **variables)
        assert done.status == 3
        assert text in done.err
    assert run("pull", "msg_x", "--token-env", "OTHER", OTHER=TOKEN).status == 6
    monkeypatch.chdir(tmp_path)
    alone = run("pull", "msg_x")
    assert alone.status == 3
    assert "no `qtasks dev` runs in this folder" in alone.err
