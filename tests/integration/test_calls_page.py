"""The guide of tasks and calls: its table has each option, and where it can be set."""

from __future__ import annotations

import re

import pytest

from qtasks.tasks.options import CallOptions, TaskOptions
from tests.support.page_code import DOCS

PAGE = (DOCS / "guides" / "calls.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`[^|]+`) \| ([a-z, ]+) \| [^|]+ \|$", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize(("where", "options"), [("task", TaskOptions), ("call", CallOptions)])
def test_the_table_has_each_option_of(where: str, options: type) -> None:
    listed = [name for names, places in ROWS if where in places.split(", ") for name in re.findall(r"`(\w+)`", names)]
    assert sorted(listed) == sorted(options.__annotations__)
