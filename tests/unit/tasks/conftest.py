from collections.abc import Iterator
from pathlib import Path

import pytest

from qtasks.tasks.settings import VARIABLES
from tests.unit.tasks.manual_broker import ManualBroker


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove all settings: no environment variables, and a working directory without a dev server."""
    for variable in (*VARIABLES.values(), "QSTASH_DEV", "QSTASH_DEV_PORT", "QSTASH_REGION"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def broker() -> Iterator[ManualBroker]:
    made = ManualBroker()
    yield made
    made.close()
