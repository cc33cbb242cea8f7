from collections.abc import Iterator
from pathlib import Path

import pytest

from qtasks.tasks.settings import VARIABLES
from tests.unit.tasks.courier import Courier


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A place without settings: no variables, no development server in the working directory or above."""
    for variable in (*VARIABLES.values(), "QSTASH_DEV", "QSTASH_DEV_PORT", "QSTASH_REGION"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def courier() -> Iterator[Courier]:
    made = Courier()
    yield made
    made.close()
