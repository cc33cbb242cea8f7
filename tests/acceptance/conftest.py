from collections.abc import Iterator

import pytest

from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.settings import BrokerSettings
from tests.support.running import Endpoint, RunningBroker


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """One broker for all tests of a file; each test has its own user, which sees only its own messages."""
    running = RunningBroker(BrokerSettings(path=str(tmp_path_factory.mktemp("broker") / "broker.db")))
    yield running
    running.stop()


@pytest.fixture
def user(broker: RunningBroker) -> AccountCredentials:
    return broker.new_user()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()
