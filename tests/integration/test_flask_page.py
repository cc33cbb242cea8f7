"""docs/guides/flask.md, done as its reader does it: Flask's own server calls, a dispatcher runs the task."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.support import page_code
from tests.support.dev import Dev
from tests.support.process import Process, ask
from tests.support.servers import free_port

PAGE = (page_code.DOCS / "guides" / "flask.md").read_text(encoding="utf-8")


class Flask(Process):
    """`flask`, as a process."""

    program = (sys.executable, "-m", "flask")


def test_a_view_calls_a_task_that_a_dispatcher_runs_in_the_application_context(tmp_path: Path) -> None:
    page_code.write_files(PAGE, tmp_path)
    assert "flask --app wsgi run --port 5000" in PAGE
    port = free_port()
    with (
        Dev(tmp_path, "tasks.py") as dev,
        Flask(tmp_path, "--app", "wsgi", "run", "--port", str(port)) as site,
    ):
        dev.started()
        site.wait_for("Running on")
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        origin = f"http://127.0.0.1:{port}"
        call = ask("POST", f"{origin}/users", body=b"email=ada%40example.com", headers=form).json["call"]
        dev.wait_for("shop@example.com welcomes ada@example.com")
        shown = ask("GET", f"{origin}/calls/{call}").body
        assert json.loads(shown) == {"status": "succeeded", "value": "shop@example.com welcomes ada@example.com"}
        dev.stop()
        site.stop()
