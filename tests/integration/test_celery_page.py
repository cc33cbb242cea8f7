"""docs/migrate/celery.md, line by line: what works is run, and what is refused names the text beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtasks import QTasks
from qtasks.errors import QTasksError

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migrate" / "celery.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([^`]+)`")


def rows(heading: str) -> list[tuple[str, str]]:
    """The first two columns of the table below a heading."""
    section = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0]
    lines = section.splitlines()[2:]
    return [(cells[1].strip(), cells[2].strip()) for cells in (line.split("|") for line in lines)]


IMPORTS, WORKS = rows("Celery | here"), rows("in Celery and here | note")
OTHERWISE: list[tuple[str, str]] = re.findall(
    r"^\| (`.*?`) \| (.*) \|$", PAGE.partition("## What is written otherwise")[2], re.MULTILINE
)


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, Any]]:
    """The names of the page, on a real broker."""
    names: dict[str, Any] = {}
    block = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0]
    exec(block, names)
    yield names
    tasks: QTasks = names["tasks"]
    tasks.close()


def test_the_page_has_its_tables() -> None:
    assert len(IMPORTS) >= 10
    assert len(WORKS) >= 15
    assert len(OTHERWISE) >= 35


@pytest.mark.parametrize("here", [here for _, here in IMPORTS])
def test_what_stands_for_an_import_exists(here: str, names: dict[str, Any]) -> None:
    for code in CODE.findall(here):
        exec(code, dict(names))


@pytest.mark.parametrize("line", [line for line, _ in WORKS])
def test_a_line_that_works_in_celery_works_here(line: str, names: dict[str, Any]) -> None:
    (code,) = CODE.findall(line)
    exec(code, dict(names))


@pytest.mark.parametrize(("line", "here"), OTHERWISE)
def test_a_line_that_does_not_work_here_names_what_to_write(line: str, here: str, names: dict[str, Any]) -> None:
    (code,) = CODE.findall(line)
    if code.startswith("@"):
        code += "\ndef work(n): ..."
    with pytest.raises(QTasksError) as caught:
        exec(code, dict(names))
    written = [text for text in CODE.findall(here) if text not in ("def", "async def", "qtasks dev")]
    assert written
    assert [text for text in written if text not in str(caught.value)] == []
