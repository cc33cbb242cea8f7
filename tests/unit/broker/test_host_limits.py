"""How many attempts each host may have."""

from __future__ import annotations

import pytest

from qtasks.broker.core.values import Rooms
from qtasks.broker.loops.host_limits import HostLimits
from qtasks.broker.settings import DeliveryLimits


@pytest.fixture
def limits() -> HostLimits:
    return HostLimits(DeliveryLimits(in_flight=8, per_host=3))


def test_a_host_has_room_for_its_limit_less_what_is_in_flight(limits: HostLimits) -> None:
    limits.start("a:80")
    limits.start("a:80/jobs/")
    assert limits.rooms() == Rooms(3, {"a:80": 1}, {"a:80": 1, "a:80/jobs/": 1})
    assert limits.in_flight == 2
    assert limits.room == 6
    limits.end("a:80")
    limits.end("a:80/jobs/")
    assert limits.rooms() == Rooms(3)
