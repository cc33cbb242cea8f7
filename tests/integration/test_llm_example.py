"""The conversation with a language model, as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import environment
from tests.support.running import Endpoint, Received

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "llm_chat.py"
ECHO = "This is the built-in echo model of qtasks, not a language model. You said:"


def run(folder: Path, **variables: str) -> str:
    clean = {name: value for name, value in environment(**variables).items() if name != "OPENAI_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT)],
        cwd=folder,
        env={**clean, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_it_runs_offline(tmp_path: Path) -> None:
    assert run(tmp_path).splitlines() == [
        "you       Shall we meet on Friday?",
        f"qtasks-echo {ECHO} Shall we meet on Friday?",
        "you       At ten, then.",
        f"qtasks-echo {ECHO} At ten, then.",
        f"topic     {ECHO} Write the minutes of this conversation.",
        "decisions []",
        "messages  4",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def server() -> Iterator[Endpoint]:
    def answer(received: Received) -> tuple[int, dict[str, str], bytes]:
        asked = json.loads(received.body)
        text = (
            '{"topic": "Friday", "decisions": ["ten"]}' if "response_format" in asked else f"{asked['model']} says yes"
        )
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return 200, {}, json.dumps({"model": asked["model"], "choices": [choice]}).encode()

    running = Endpoint(answer)
    yield running
    running.close()


def test_it_talks_to_the_server_that_is_named(tmp_path: Path, server: Endpoint) -> None:
    shown = run(tmp_path, QTASKS_LLM_URL=f"{server.url}/v1", CHAT_MODEL="llama")
    assert "llama     llama says yes" in shown
    assert "topic     Friday" in shown
    first, second, last = [json.loads(received.body) for received in server.wait_for(3)]
    assert [len(asked["messages"]) for asked in (first, second, last)] == [2, 4, 5]
