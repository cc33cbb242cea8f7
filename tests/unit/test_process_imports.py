"""What a server of ours loads stays in its memory for as long as it runs: nothing large that most of them never use."""

from __future__ import annotations

import subprocess
import sys

import pytest

LARGE = {"httpx", "apsw.ext", "openai", "pytest"}


@pytest.mark.parametrize(
    "modules",
    [
        "qtasks.cli.broker.serve, qtasks.broker.broker",
        "qtasks.cli.serving.run, qtasks.tasks.web.router, qtasks.tasks.run.dispatcher",
    ],
)
def test_a_server_loads_nothing_large_that_it_does_not_use(modules: str) -> None:
    script = f"import sys, {modules}; print(*sorted({LARGE!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


OF_A_RUN = {"qtasks.tasks.run", "qtasks.tasks.flow", "qtasks.tasks.schedules", "qtasks.tasks.send.publisher"}
UNUSED = {"fastapi", "httpx", "pydantic", "cronsim", "sqlite3", "http.client", "email", "importlib.metadata", *OF_A_RUN}
"""What a program that only declares tasks does not need: it is loaded with the first call, run or schedule."""


def test_declaring_a_task_loads_neither_pydantic_nor_what_sends_and_runs_calls() -> None:
    script = (
        "from qtasks import task\n"
        "@task(retries=2, unique='order_id')\n"
        "def charge(order_id: int, note: str = '') -> str: ...\n"
        f"import sys; print(*sorted({UNUSED!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


QUICK = (
    "dev", "messages", "dlq", "queues", "flow", "failures", "schedules", "keys", "audit", "logs", "config", "tasks",
    "send", "console", "new", "version", "explain",
)  # fmt: skip
"""Commands whose help and completion are there in a tenth of a second or little more."""


@pytest.mark.parametrize("command", QUICK)
def test_help_and_completion_of_a_command_load_neither_broker_nor_application_nor_client(command: str) -> None:
    heavy = {"aiohttp", "apsw", "asyncio", "uvicorn", "fastapi", "pydantic", "httpx"}
    slow = heavy | {"qtasks.qstash.chat", "qtasks.tasks.app"}
    script = (
        "import sys; from qtasks.cli import cli; import click; "
        f"assert cli.get_command(click.Context(cli), {command!r}); print(*sorted({slow!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
