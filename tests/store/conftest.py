from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from qtasks.broker.store.sqlite import SqliteStore
from tests.support.broker import VirtualClock
from tests.support.failing_disk import FailingDisk, failing
from tests.support.store import InlineStore


@pytest.fixture
def store() -> Iterator[InlineStore]:
    made = InlineStore()
    yield made
    made.close()


@pytest.fixture(params=["file", "memory"])
async def sqlite_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqliteStore]:
    path = ":memory:" if request.param == "memory" else str(tmp_path / "store.db")
    opened, _ = await SqliteStore.open(path, VirtualClock())
    yield opened
    await opened.close()


@pytest.fixture
def failing_disk() -> Iterator[FailingDisk]:
    with failing() as disk:
        yield disk
