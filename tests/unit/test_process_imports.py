"""What a server of ours loads stays in its memory for as long as it runs: nothing large that most of them never use."""

from __future__ import annotations

import subprocess
import sys

import pytest

LARGE = {"httpx", "apsw.ext", "openai", "pytest"}


@pytest.mark.parametrize("modules", ["qtasks.cli.broker.serve", "qtasks.cli.serving.run, qtasks.tasks.web.router"])
def test_a_server_loads_nothing_large_that_it_does_not_use(modules: str) -> None:
    script = f"import sys, {modules}; print(*sorted({LARGE!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


QUICK = ("dev", "messages", "dlq", "queues", "flow", "failures", "new", "version", "explain")
"""Commands whose help and completion are there in a tenth of a second or little more."""


@pytest.mark.parametrize("command", QUICK)
def test_help_and_completion_of_a_command_load_neither_broker_nor_application_nor_client(command: str) -> None:
    slow = {"aiohttp", "apsw", "uvicorn", "fastapi", "pydantic", "httpx", "qtasks.qstash.chat", "qtasks.tasks.app"}
    script = (
        "import sys; from qtasks.cli import cli; import click; "
        f"assert cli.get_command(click.Context(cli), {command!r}); print(*sorted({slow!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
