from collections.abc import Iterator

import pytest

from qtasks.broker.settings import BrokerSettings
from tests.support.api_client import ApiClient
from tests.support.running import RunningBroker


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """One broker for all tests of a file; each test has its own user, which sees only its own messages."""
    running = RunningBroker(BrokerSettings(path=str(tmp_path_factory.mktemp("broker") / "broker.db")))
    yield running
    running.stop()


@pytest.fixture
def api(broker: RunningBroker) -> ApiClient:
    return ApiClient(int(broker.url.rpartition(":")[2]), broker.new_user())
