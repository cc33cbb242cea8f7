"""docs/migrate/qstash-sdk.md: the same application with the official SDK, with ours, and with tasks, on one broker."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import page_code
from tests.support.process import Process, ask
from tests.support.servers import SECRETS, BrokerServer, free_port

PAGE = (page_code.DOCS / "migrate" / "qstash-sdk.md").read_text(encoding="utf-8")
IMPORTS: list[tuple[str, str]] = re.findall(r"^\| `(from qstash.*?)` \| `(.*?)` \|$", PAGE, flags=re.MULTILINE)


class Uvicorn(Process):
    """A FastAPI application under uvicorn."""

    program = (sys.executable, "-m", "uvicorn", "--no-access-log")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerServer]:
    with BrokerServer(tmp_path_factory.mktemp("broker"), "--db", "qtasks.db") as server:
        yield server.started()
        server.stop()


def variables(broker: BrokerServer, port: int) -> dict[str, str]:
    """What the page says that both programs read."""
    origin = f"http://127.0.0.1:{port}"
    service = {"QSTASH_URL": broker.url, "PUBLIC_URL": origin, "QTASKS_BASE_URL": f"{origin}/qtasks"}
    return {**SECRETS, **service}


def with_our_imports(code: str) -> str:
    """Step 1 of the page: nothing but the lines that it lists is changed."""
    lines = code.splitlines()
    modules = {re.split(r" import ", theirs)[0]: re.split(r" import ", ours)[0] for theirs, ours in IMPORTS}
    changed = [modules.get(line.partition(" import ")[0], "") for line in lines]
    assert sum(map(bool, changed)) == 2
    return "\n".join(
        line if not ours else f"{ours} import {line.partition(' import ')[2]}"
        for line, ours in zip(lines, changed, strict=True)
    )


@pytest.mark.parametrize("has_our_imports", [False, True])
def test_the_program_of_the_official_sdk_runs_with_either_import(
    tmp_path: Path, broker: BrokerServer, has_our_imports: bool
) -> None:
    code = page_code.files(PAGE)["before.py"]
    (tmp_path / "before.py").write_text(with_our_imports(code) if has_our_imports else code, encoding="utf-8")
    port = free_port()
    with Uvicorn(tmp_path, "before:app", "--port", str(port), **variables(broker, port)) as program:
        program.wait_for("Uvicorn running on")
        place_order(port, program)


def test_the_program_with_tasks_does_the_same(tmp_path: Path, broker: BrokerServer) -> None:
    page_code.write_files(PAGE, tmp_path)
    port = free_port()
    with Process(tmp_path, "run", "after.py", "--port", str(port), **variables(broker, port)) as program:
        program.wait_for("qtasks run after")
        place_order(port, program)


def place_order(port: int, program: Process) -> None:
    """Place an order, wait until it is charged, and end the program."""
    answer = ask("POST", f"http://127.0.0.1:{port}/orders/42", body=b"")
    assert answer.json["message"].startswith("msg_")
    program.wait_for("charged 42")
    program.stop()


@pytest.mark.parametrize("line", [line for pair in IMPORTS for line in pair])
def test_each_import_of_the_page_works(line: str) -> None:
    exec(line, {})
