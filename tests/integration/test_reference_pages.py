"""The pages of the reference say what the code says: every error code, every variable, every setting."""

from __future__ import annotations

import re
from pathlib import Path

from qtasks.tasks.settings import VARIABLES, SettingsOverrides
from tests.support import error_page

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_the_page_of_errors_has_each_code_with_its_cause_and_its_fix() -> None:
    assert error_page.PAGE.read_text(encoding="utf-8") == error_page.text(), "run `just docs`"


def test_the_page_of_settings_has_each_argument_with_its_variable() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, flags=re.MULTILINE))
    assert rows == dict(VARIABLES)
    assert set(rows) == set(SettingsOverrides.__annotations__)


def test_the_page_of_settings_names_every_variable_that_is_read() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    read = set(re.findall(r"^#?([A-Z_]+)=", example, flags=re.MULTILINE))
    assert len(read) > 15
    assert read - set(re.findall(r"\b[A-Z_]{4,}\b", PAGE)) == set()
