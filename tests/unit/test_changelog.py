"""The changelog says which version has what, and when it came."""

from __future__ import annotations

import re
import tomllib
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADINGS = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_each_version_has_its_date_the_newest_first_below_what_is_unreleased() -> None:
    unreleased, *released = HEADINGS
    assert unreleased == "[Unreleased]"
    matches = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in released]
    assert all(matches), released
    dates = [date.fromisoformat(match[2]) for match in matches if match]
    assert dates == sorted(dates, reverse=True)


def test_the_version_of_the_package_is_the_newest_one() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert HEADINGS[1].startswith(f"[{version}]")
