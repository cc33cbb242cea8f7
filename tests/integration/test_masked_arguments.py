"""Secrets in the arguments of calls are not shown by commands, also those that were passed by position."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest

from tests.support.commands import Run, in_process
from tests.support.dev import Dev
from tests.support.process import qtasks
from tests.support.servers import TOKEN, BrokerServer

TASKS = """
from qtasks import NonRetryable, QTasks

tasks = QTasks()

@tasks.task(aliases=("signin",))
def login(user: str, password: str, note: str = "") -> str:
    raise NonRetryable(f"refused: {user} with {password}")
"""


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    folder = tmp_path_factory.mktemp("masked")
    (folder / "tasks.py").write_text(TASKS)
    with Dev(folder, "tasks.py", "--memory") as running:
        running.started()
        yield running


@pytest.fixture(scope="module")
def sent(dev: Dev) -> str:
    """The id of a call that has failed for good."""
    done = qtasks("send", "login", '"ada"', '"hunter2"', "--kwargs", '{"note": "by phone"}', folder=dev.folder)
    assert done.status == 0, done.err
    dev.wait_for("kept in the dead letters")
    return done.out.split()[0]


@pytest.fixture
def run(dev: Dev, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(dev.folder)
    return in_process(monkeypatch, capfd, {"QSTASH_URL": "", "QSTASH_TOKEN": ""})


def body_in(content: str) -> object:
    return json.loads(content)["args"]


def test_a_message_and_a_dead_letter_show_no_secret_that_was_passed_by_position(run: Run, sent: str) -> None:
    shown = run("messages", "show", sent)
    assert "  arguments     'ada', '***', note='by phone'" in shown.out.splitlines()
    [letter] = run("dlq", "list", "task:login", "--json").json["deadLetters"]
    dead = run("dlq", "show", letter["deadLetterId"]).out
    assert "'ada', '***'" in dead
    assert "refused: ada with ***" in dead
    assert "hunter2" not in shown.out + dead
    revealed = run("messages", "show", sent, "--reveal").out
    assert '["ada","hunter2"]' in revealed


def test_as_json_neither_the_message_nor_its_log_has_it(run: Run, sent: str) -> None:
    document = run("messages", "show", sent, "--json").json
    assert body_in(document["message"]["body"]) == ["ada", "***"]
    entries = [*document["log"], *run("logs", sent, "--json").json["entries"]]
    bodies = [base64.b64decode(entry["body"]).decode() for entry in entries if "body" in entry]
    assert bodies
    assert all(body_in(body) == ["ada", "***"] for body in bodies)
    [letter] = run("dlq", "list", "task:login", "--json").json["deadLetters"]
    letter = run("dlq", "show", letter["deadLetterId"], "--json").json
    assert body_in(letter["body"]) == ["ada", "***"]
    assert "hunter2" not in letter["responseBody"]
    assert "hunter2" not in run("logs", sent).out


def test_a_call_under_an_earlier_name_of_the_task_is_masked_as_well(run: Run, dev: Dev) -> None:
    url = f"{dev.started_already()['base_url']}/signin"
    call = {"v": 1, "id": "call_alias", "args": ["ada", "hunter3"], "kwargs": {}}
    script = (
        "from qtasks.qstash import QStash; import json, sys; from qtasks.protocol import development as d\n"
        f"client = QStash(d.USERS[0].token, base_url={dev.started_already()['broker']!r})\n"
        f"print(client.message.publish(url={url!r}, body={json.dumps(call)!r}, delay='1h').message_id)"
    )
    message_id = dev.run(script).strip()
    assert "'ada', '***'" in run("messages", "show", message_id).out


def test_where_the_names_are_not_known_named_arguments_are_masked(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    body = {"v": 1, "id": "call_1", "args": ["ada", "hunter2"], "kwargs": {"api_token": "s3cret"}}
    with BrokerServer(tmp_path_factory.mktemp("unnamed")) as broker:
        broker.started()
        message_id = broker.publish("http://127.0.0.1:9/login", json.dumps(body).encode(), Upstash_Delay="1h")
        service = {"QSTASH_URL": broker.url, "QSTASH_TOKEN": TOKEN}
        assert "'ada', 'hunter2', api_token='***'" in run("messages", "show", message_id, **service).out
        [entry] = run("logs", message_id, "--json", **service).json["entries"]
        assert json.loads(base64.b64decode(entry["body"]))["kwargs"] == {"api_token": "***"}
