"""`qtasks dev --log-format json`: what a program reads in place of a person, one object a line."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.support.dev import Dev
from tests.support.process import QTASKS, ask, environment

TASKS = """
import logging

from fastapi import FastAPI

from qtasks import QTasks

app = FastAPI()
tasks = QTasks()
app.include_router(tasks.router, prefix="/qtasks")

@tasks.task(retries=1, retry_delay="10ms")
def halve(number: int, password: str = "") -> float:
    if number % 2:
        logging.getLogger("qtasks.mine").warning("odd")
        raise ValueError(f"{number} is odd, password={password}")
    return number / 2

@app.get("/page")
def page() -> str:
    return "mine"
"""


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
TABLE = PAGE[PAGE.index("| `event` |") : PAGE.index("## Commands for operators")]
ROWS = re.findall(r"^\| (`[^|]+`) \| (.*) \|$", TABLE, flags=re.MULTILINE)
MEMBERS = {event: set(re.findall(r"`(\w+)`", row)) for events, row in ROWS for event in re.findall(r"`(\w+)`", events)}
"""What the page says of each event."""


def with_event(dev: Dev, event: str) -> dict[str, Any]:
    """The next line of this event."""
    found: dict[str, Any] = json.loads(dev.wait_for(f'"event": "{event}"'))
    return found


def test_every_line_is_an_object_with_a_time(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    with Dev(tmp_path, "tasks.py", "--log-format", "json", "--memory") as dev:
        started = with_event(dev, "started")
        assert (started["application"], started["tasks"]) == ("tasks", ["halve"])
        base_url = started["baseUrl"]
        assert ask("GET", f"{started['broker']}/healthz").status == 200

        sent = dev.run("from tasks import halve; r = halve.delay(4); print(r.message_id, r.get(timeout=10))")
        message_id, _ = sent.split()
        created = with_event(dev, "created")
        assert (created["messageId"], created["task"], created["arguments"]) == (message_id, "halve", "4")
        delivered = with_event(dev, "delivered")
        assert (delivered["messageId"], delivered["status"], delivered["result"]) == (message_id, 200, "2.0")
        assert (delivered["attempt"], delivered["attempts"]) == (1, 2)
        assert delivered["durationMs"] >= 0

        dev.run("from tasks import halve; halve.delay(3, password='hunter2')")
        retry = with_event(dev, "retry")
        assert retry["error"] == "ValueError: 3 is odd, password=***"
        assert retry["frames"][0].startswith("tasks.py:")
        assert retry["nextMs"] > 0
        assert with_event(dev, "failed")["attempt"] == 2

        assert ask("GET", base_url.replace("/qtasks", "/page")).status == 200
        request = with_event(dev, "request")
        assert (request["method"], request["path"], request["status"]) == ("GET", "/page", 200)
        assert dev.stop() == 0
        lines = [json.loads(line) for line in dev.lines]
    assert {"event": "stopped", "done": 1, "retried": 1, "failed": 1}.items() <= lines[-1].items()
    assert all("time" in line for line in lines)
    events = [line for line in lines if "event" in line]
    assert {line["event"] for line in events} == MEMBERS.keys() - {"event", "canceled"}
    assert [line for line in events if not line.keys() <= {"time", "event"} | MEMBERS[line["event"]]] == []
    assert [line["message"] for line in lines if line.get("logger") == "qtasks.mine"] == ["odd", "odd"]
    assert "hunter2" not in dev.output


def test_a_start_that_fails_prints_nothing_that_is_not_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [QTASKS, "dev", "none.py", "--log-format", "json"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.py does not exist" in done.stderr
