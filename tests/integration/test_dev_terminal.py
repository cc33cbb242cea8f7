"""What a developer reads in the terminal of `qtasks dev`: one line an event, and what a stop waits for."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dev import Dev
from tests.support.process import ask
from tests.support.running import Endpoint
from tests.support.servers import free_port

TASKS = """
import time
from pathlib import Path

from fastapi import FastAPI

from qtasks import QTasks
from qtasks.llm import user

app = FastAPI()
tasks = QTasks()
app.include_router(tasks.router, prefix="/qtasks")

def look_up(name):
    return {}[name]

@tasks.task(retries=0)
def broken(name: str, password: str = "") -> None:
    try:
        look_up(name)
    except KeyError as error:
        raise ValueError(f"nothing for {password}\\nsecond line") from error

@tasks.task
def slow(mark: str) -> None:
    Path(mark).touch()
    time.sleep(60)

@tasks.llm(model="small", retries=0)
def summarise(text: str):
    return [user(text)]

@app.get("/page")
def page() -> str:
    return "mine"
"""


def clean(line: str) -> str:
    """A line without its time and its message id."""
    return re.sub(r"^\d\d:\d\d:\d\d  |msg_\.\.\w{6}", "", line)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text(TASKS)
    return tmp_path


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "main.py").write_text(TASKS)
    with Dev(folder, "--memory") as running:
        running.wait_for("  model    the built-in echo (QTASKS_LLM_URL names another)")
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.output


def test_a_failure_is_one_line_with_the_users_frames_under_it_and_no_secret(dev: Dev) -> None:
    dev.run("from main import broken; broken.delay('Ada', password='hunter2')")
    line = dev.wait_for("kept in the dead letters")
    assert clean(line) == "✗  broken              1/1  ValueError: nothing for ***  kept in the dead letters"
    dev.run(
        "import urllib.request, json; f = json.load(open('.qtasks/dev.json')); "
        "urllib.request.urlopen(f['base_url'].removesuffix('/qtasks') + '/page?token=hunter2').read()"
    )
    assert clean(dev.wait_for("GET /page")).startswith("·  GET /page         200  ")
    below = dev.lines[dev.lines.index(line) + 1 : -1]
    assert below == [
        '             main.py:22 in broken: raise ValueError(f"nothing for {password}\\nsecond line") from error',
        "             caused by KeyError: 'Ada'",
        "             main.py:20 in broken: look_up(name)",
        "             main.py:15 in look_up: return {}[name]",
    ]
    assert "hunter2" not in dev.output


def test_it_says_which_language_model_is_asked_and_shows_its_words(dev: Dev) -> None:
    dev.run("from main import summarise; summarise.delay('hello')")
    assert clean(dev.wait_for("asks small")) == "→  summarise           asks small at the echo"
    assert "  'This is the built-in echo model of qtasks" in dev.wait_for("✓  summarise")
    assert "choices" not in dev.output


def test_a_model_that_refuses_has_one_line_and_no_tick(folder: Path) -> None:
    answer = json.dumps({"error": {"message": "no such model", "type": "invalid_request_error"}}).encode()
    model = Endpoint(answer=lambda received: (404, {"Content-Type": "application/json"}, answer))
    with contextlib.closing(model), Dev(folder, "--memory", QTASKS_LLM_URL=model.url) as dev:
        place = model.url.removeprefix("http://")
        dev.wait_for(f"  model    {place} (QTASKS_LLM_URL)")
        # Its end reaches the caller after the callbacks that report it.
        dev.run(
            "from main import summarise; from qtasks.errors import TaskFailed\n"
            "try: summarise.delay('hello').get(timeout=10)\n"
            "except TaskFailed: pass\n"
        )
        assert clean(dev.wait_for("kept in the dead letters")) == (
            "✗  summarise           1/1  no such model  kept in the dead letters"
        )
        dev.stop()
        assert "✓" not in dev.output
        assert dev.output.count("no such model") == 1
        assert dev.lines[-1] == "0 done, 0 retried, 1 failed"


def test_ctrl_c_says_what_is_waited_for_and_the_second_one_what_was_interrupted(folder: Path) -> None:
    with Dev(folder) as dev:
        dev.started()
        dev.run(f"from main import slow; slow.delay({str(folder / 'mark')!r})")
        dev.wait_for("→  slow")
        while not (folder / "mark").exists():
            pass
        dev.process.send_signal(signal.SIGINT)
        dev.wait_for("stopping: waiting up to 10 s for slow; a second Ctrl-C stops now")
        began_s = time.monotonic()
        dev.process.send_signal(signal.SIGINT)
        assert dev.finish() == 0
        assert time.monotonic() - began_s < 5
        assert dev.lines[-2:] == [
            "1 interrupted: slow; they run again at the next start",
            "0 done, 0 retried, 0 failed",
        ]
        assert "Traceback" not in dev.output
        assert "Cancel" not in dev.output
    with Dev(folder) as dev:
        assert "1 waiting, 1 of them interrupted" in dev.wait_for("  found ")


# -- without an application


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with Dev(tmp_path_factory.mktemp("alone"), "--memory") as running:
        running.wait_for("QSTASH_NEXT_SIGNING_KEY=")
        yield running


CONSOLE = "https://console.upstash.com"


def test_without_an_application_it_is_a_qstash_development_server(alone: Dev) -> None:
    assert "no application (looked for [tool.qtasks] app in pyproject.toml, tasks.py, app.py" in alone.lines[1]
    printed = dict(line.split("=", 1) for line in alone.lines if line.startswith("QSTASH_"))
    assert alone.lines[0] == f"console at {printed['QSTASH_URL']}/"
    assert alone.lines[2] == f"  running at {printed['QSTASH_URL']}"
    # As the official JavaScript SDK looks whether it runs.
    answer = ask("GET", f"{printed['QSTASH_URL']}/v2/keys", token=printed["QSTASH_TOKEN"])
    assert answer.json == {
        "current": printed["QSTASH_CURRENT_SIGNING_KEY"],
        "next": printed["QSTASH_NEXT_SIGNING_KEY"],
    }
    fourth = "eyJVc2VySUQiOiJ0ZXN0VXNlcjMiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9"
    assert ask("GET", f"{printed['QSTASH_URL']}/v2/keys", token=fourth).status == 200


def test_the_console_of_upstash_may_show_it_and_no_other_page(alone: Dev) -> None:
    facts = alone.started_already()
    url, token = f"{facts['broker']}/v2/queues", facts["token"]
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,content-type"}
    network = {"Access-Control-Request-Private-Network": "true"}
    preflight = ask("OPTIONS", url, headers={"Origin": CONSOLE, **asked, **network})
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == CONSOLE
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    assert preflight.headers["access-control-allow-private-network"] == "true"
    answer = ask("GET", url, token=token, headers={"Origin": CONSOLE})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, CONSOLE)
    for origin in ("https://evil.example", "https://console.upstash.com.evil.example", "null"):
        refused = ask("OPTIONS", url, headers={"Origin": origin, **asked})
        assert refused.status == 401
        assert "access-control-allow-origin" not in refused.headers
        assert "access-control-allow-origin" not in ask("GET", url, token=token, headers={"Origin": origin}).headers
    rebound = ask("OPTIONS", url, headers={"Origin": CONSOLE, "Host": "evil.example", **asked})
    assert rebound.status == 421


def test_its_port_is_that_of_the_official_one(folder: Path) -> None:
    port = free_port()
    with Dev(folder, "--memory", "--no-app", port=None, QSTASH_DEV_PORT=str(port)) as dev:
        dev.wait_for("no application (--no-app)")
        assert dev.wait_for("running at") == f"  running at http://127.0.0.1:{port}"
