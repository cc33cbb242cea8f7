"""Sabotages of the product are caught by its tests: three of them in every run, all of them before a release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.planted.plant import ROOT, Verdict, copied_project, plant
from tests.planted.sabotages import IN_EVERY_RUN, SABOTAGES, Sabotage


@pytest.fixture(scope="module")
def copy() -> Iterator[Path]:
    with copied_project() as copy:
        yield copy


def name(sabotage: Sabotage) -> str:
    return sabotage.name.replace(" ", "-")


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=name)
def test_a_planted_line_stands_in_its_file_once(sabotage: Sabotage) -> None:
    text = (ROOT / sabotage.file).read_text()
    assert text.count(sabotage.line) == 1
    assert sabotage.planted != sabotage.line
    assert all((ROOT / test.partition("::")[0]).exists() for test in sabotage.tests.split() if not test.startswith("-"))


@pytest.mark.parametrize("sabotage", [it for it in SABOTAGES if it.name in IN_EVERY_RUN], ids=name)
def test_its_tests_catch_it(sabotage: Sabotage, copy: Path) -> None:
    outcome = plant(sabotage, copy)
    assert outcome.verdict is Verdict.CAUGHT, outcome.detail


@pytest.mark.release
@pytest.mark.parametrize("sabotage", SABOTAGES, ids=name)
def test_each_sabotage_is_caught(sabotage: Sabotage, copy: Path) -> None:
    outcome = plant(sabotage, copy)
    assert outcome.verdict is Verdict.CAUGHT, outcome.detail


def test_a_sabotage_that_changes_nothing_survives(copy: Path) -> None:
    harmless = Sabotage(
        "nothing is changed",
        "qtasks/protocol/loopback.py",
        "from __future__ import annotations",
        "from __future__ import annotations  # still",
        "tests/unit/protocol/test_loopback.py",
    )
    assert plant(harmless, copy).verdict is Verdict.SURVIVED
