from collections.abc import AsyncIterator

import pytest

from tests.support.api import Service


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    opened = await Service.open()
    yield opened
    await opened.close()
