"""The pages for RQ and Dramatiq, line by line: what they give for a name of the other queue works."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest

import qtasks as package
from qtasks import Embedded, QTasks, TaskResult
from qtasks.cli import cli
from qtasks.errors import CeleryNameError
from tests.support.page_code import DOCS

CODE = re.compile(r"`([^`]+)`")
PAGES = {name: (DOCS / "migrate" / f"{name}.md").read_text(encoding="utf-8") for name in ("rq", "dramatiq")}


def rows(page: str, heading: str) -> list[list[str]]:
    """The code in the second column of each row of the table below a heading."""
    table = PAGES[page].partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return [CODE.findall(line.split("|")[2]) for line in table.splitlines()[2:]]


NAMES = [
    (page, code)
    for page, heading in (("rq", "RQ | here"), ("dramatiq", "Dramatiq | here"))
    for row in rows(page, heading)
    for code in row
]
COMMANDS = [
    (page, code)
    for page, heading in (("rq", "command of RQ | here"), ("dramatiq", "command of Dramatiq | here"))
    for row in rows(page, heading)
    for code in row
    if code.startswith("qtasks ")
]


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, Any]]:
    """The tasks and the result that the pages speak of, on a real broker."""
    tasks = QTasks(embedded=Embedded(":memory:"))

    @tasks.task
    def count(n: int) -> int:
        return n

    @tasks.task
    def charge(order: int) -> int:
        return order

    @tasks.task
    def add(a: int, b: int) -> int:
        return a + b

    @tasks.task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    result = count.delay(1)
    result.get(timeout=20)
    yield {
        **{name: getattr(package, name) for name in package.__all__},
        "tasks": tasks,
        "count": count,
        "charge": charge,
        "add": add,
        "total": total,
        "result": result,
        "moment": datetime.now(UTC) + timedelta(hours=1),  # noqa: TID251 - the broker is in real time
    }
    tasks.close()


def test_the_pages_have_their_tables() -> None:
    assert len(NAMES) > 55
    assert len(COMMANDS) > 9


@pytest.mark.parametrize(("page", "code"), NAMES)
def test_what_a_page_gives_for_a_name_works(page: str, code: str, names: dict[str, Any]) -> None:
    exec(code, dict(names))


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_what_a_page_gives_for_a_command_exists(page: str, line: str) -> None:
    command: click.Command = cli
    for word in shlex.split(line)[1:]:
        if isinstance(command, click.Group):
            command = _loaded(command, word)
        elif word.startswith("-"):
            assert word in {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize(
    ("code", "instead"),
    [
        ("charge.send(7)", "task.delay(...)"),
        ("charge.send_with_options(args=(7,), delay=10_000)", "not milliseconds"),
        ("charge.fn(7)", "task.function"),
        ("tasks.actor", "@tasks.task"),
        ("tasks.enqueue(charge, 7)", "function.delay(...)"),
        ("tasks.enqueue_in(60, charge, 7)", 'delay="10m"'),
        ("result.get_result(block=True)", "result.get(timeout=5)"),
        ("result.get_status()", "result.status"),
        ("result.latest_result()", "result.get(timeout=5)"),
    ],
)
def test_a_name_of_the_other_queue_that_is_left_in_the_code_names_what_to_write(
    code: str, instead: str, names: dict[str, Any]
) -> None:
    with pytest.raises(CeleryNameError) as caught:
        eval(code, dict(names))
    assert instead in str(caught.value)
    assert re.search("a name of (Dramatiq|RQ)", str(caught.value))


def test_a_name_that_no_queue_has_is_a_plain_attribute_error(names: dict[str, Any]) -> None:
    result: TaskResult[int] = names["result"]
    assert not hasattr(result, "get_status")
    with pytest.raises(AttributeError, match="no attribute 'get_stats'"):
        _ = result.get_stats  # type: ignore[attr-defined]


def _loaded(group: click.Group, word: str) -> click.Command:
    found = group.get_command(click.Context(group), word)
    assert found is not None, word
    return found
