"""Encrypted calls between processes that share nothing but the key: no file of a server shows a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.servers import BrokerServer, Dispatcher

KEY: dict[str, Any] = {"QTASKS_SECRET_KEY": "of-these-tests-and-of-no-broker-0001"}
TASKS = """
from qtasks import QTasks

tasks = QTasks()


@tasks.task(encrypt=True)
def repeat(word: str, times: int = 2) -> list[str]:
    return [word] * times
"""
WORD = "plaintext-of-the-caller"


def test_a_call_from_the_command_line_and_its_result_are_read_by_those_with_the_key(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    with BrokerServer(tmp_path) as broker, Dispatcher(tmp_path, broker=broker.started(), **KEY) as dispatcher:
        dispatcher.started()
        assert dispatcher.send("repeat", WORD, "--encrypt", "--wait") == f'["{WORD}", "{WORD}"]\n'
        files = [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".py"]
        assert any(b"repeat" in file.read_bytes() for file in files)
        assert not [file for file in files if WORD.encode() in file.read_bytes()]
        assert WORD not in broker.output
