"""Keys of unique calls and fingerprints of schedules are the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from qtasks import Embedded, QTasks

PROGRAM = """
import dataclasses, datetime, uuid
from collections.abc import Set
from typing import Any
from pydantic import BaseModel, Field
from qtasks import QTasks
from qtasks.protocol.cron import Cron
from qtasks.tasks.schedules.declaration import declare

class Order(BaseModel):
    number: int
    labels: frozenset[str] = frozenset()
    id: uuid.UUID = Field(default_factory=uuid.uuid4)
    place: dict[str, set[str]] = {}

@dataclasses.dataclass
class Note:
    text: str
    made: uuid.UUID = dataclasses.field(default_factory=uuid.uuid4)

WORDS = {"pear", "apple", "fig", "plum", "quince", "cherry"}
tasks = QTasks(token="t", base_url="https://app.example/tasks")

@tasks.task(unique=True)
def pick(words: set[str], more: Set[str] | None = None, at: uuid.UUID = uuid.uuid4(), by: Any = object()) -> None: ...

@tasks.task
def ship(order: Order, notes: list[Note], words: frozenset[str]) -> None: ...

print(pick.message((WORDS, frozenset(WORDS)), {}).unique.key)
order = Order(number=1, labels=WORDS, place={"a": WORDS})
declared = declare(ship, Cron("0 9 * * *"), "", {"args": [order, [{"text": "a"}], WORDS]})
print([label for label in declared.desired("https://app.example").options.labels if label.startswith("qtasks.")])
"""


def printed(seed: int) -> str:
    """What a process of its own prints, with other hashes of texts than every other one."""
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return ran.stdout


def test_every_process_makes_the_same_keys_and_fingerprints() -> None:
    first = printed(1)
    assert "unique:pick:" in first
    assert "qtasks." in first
    assert first == printed(2)


def test_an_argument_that_equals_its_default_counts_as_left_out() -> None:
    def work(number: int, note: str = "", limit: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013 - as people write it

    with QTasks(embedded=Embedded(":memory:")) as tasks:
        task = tasks.task(unique=True)(work)

        def key(*args: Any) -> str:
            unique = task.message(args, {}).unique
            assert unique is not None
            return unique.key

        assert key(1) == key(1, "")
        assert len({key(1), key(2), key(1, "a"), key(1, "", 5)}) == 4
