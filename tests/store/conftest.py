from collections.abc import Iterator

import pytest

from tests.support.store import InlineStore


@pytest.fixture
def store() -> Iterator[InlineStore]:
    made = InlineStore()
    yield made
    made.close()
