"""Arguments and results that JSON cannot carry, in every home, between processes that share nothing but the key."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qtasks import Embedded, QTasks
from tests.support.dev import Dev
from tests.support.process import PATIENCE_S, environment
from tests.support.servers import BrokerServer, Dispatcher

KEY: dict[str, Any] = {"QTASKS_SECRET_KEY": "of-these-tests-and-of-no-broker-0001", "QTASKS_ALLOW_PICKLE": "1"}

TASKS = """
from collections import Counter
from collections.abc import Callable
from typing import Any

from qtasks import QTasks

tasks = QTasks()


@tasks.task(serializer="pickle")
def count(words: frozenset[str], by: Callable[[str], Any]) -> Counter:
    return Counter(map(by, words))
"""

# What is defined in a script is pickled by value: the other side cannot import it.
SCRIPT = """
from tasks import count

class Length(int):
    pass

result = count.delay(frozenset({"a", "b", "cc"}), by=lambda word: Length(len(word)))
found = result.get(timeout=10)
print(type(found).__name__, sorted(found.items()))
"""
SHOWN = "Counter [(1, 2), (2, 1)]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def run(folder: Path, variables: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture
def tasks(tmp_path: Path) -> Iterator[QTasks]:
    made = QTasks(embedded=Embedded(tmp_path / "tasks.db"), allow_pickle=True, secret_key=KEY["QTASKS_SECRET_KEY"])
    yield made
    made.close()


def test_in_the_embedded_home(tasks: QTasks) -> None:
    @tasks.task(serializer="pickle")
    def union(one: frozenset[int], other: Any) -> Any:
        return one | other

    assert union.delay(frozenset({1}), frozenset({2})).get(timeout=10) == frozenset({1, 2})


def test_beside_a_development_server(folder: Path) -> None:
    with Dev(folder, **KEY) as dev:
        dev.started()
        assert run(folder, KEY) == SHOWN
        assert "a pickle of" in dev.wait_for("→  count")
        assert "sha256" in dev.wait_for("✓  count")
        assert "QTASKS_SECRET_KEY is not set" in run(folder, {"QTASKS_ALLOW_PICKLE": "1"})
        other = run(folder, {**KEY, "QTASKS_SECRET_KEY": "of-somebody-who-knows-the-token-only"})
        assert "its MAC was not made with QTASKS_SECRET_KEY" in other


def test_a_development_server_without_the_key_does_not_start(folder: Path) -> None:
    with Dev(folder, QTASKS_ALLOW_PICKLE="1") as dev:
        dev.wait_for("QTASKS_SECRET_KEY is not set")


def test_with_a_broker_and_a_dispatcher_of_ones_own(folder: Path) -> None:
    with BrokerServer(folder) as broker, Dispatcher(folder, broker=broker.started(), **KEY) as dispatcher:
        dispatcher.started()
        assert run(folder, dispatcher.variables) == SHOWN
        broker.stop()
        assert KEY["QTASKS_SECRET_KEY"] not in broker.output
