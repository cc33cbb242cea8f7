"""How many attempts each host may have: its limit, and pauses with one probe after each."""

from __future__ import annotations

import pytest

from qtasks.broker.core.values import Rooms
from qtasks.broker.loops.host_limits import HostLimits
from qtasks.broker.settings import DeliveryLimits

NOW = 1_000_000


@pytest.fixture
def limits() -> HostLimits:
    return HostLimits(DeliveryLimits(in_flight=8, per_host=3))


def test_a_host_has_room_for_its_limit_less_what_is_in_flight(limits: HostLimits) -> None:
    limits.start("a:80")
    limits.start("a:80")
    assert limits.rooms(NOW) == Rooms(3, {"a:80": 1})
    assert limits.in_flight == 2
    assert limits.room == 6
    limits.end("a:80")
    limits.end("a:80")
    assert limits.rooms(NOW) == Rooms(3)


def test_a_paused_host_has_room_for_one_probe_after_the_pause(limits: HostLimits) -> None:
    limits.pause("a:80", NOW + 500)
    assert limits.rooms(NOW).hosts == {"a:80": 0}
    assert limits.next_probe_ms(NOW) == NOW + 500
    assert limits.rooms(NOW + 500).hosts == {"a:80": 1}
    assert limits.next_probe_ms(NOW + 500) is None
    limits.start("a:80")
    assert limits.rooms(NOW + 500).hosts == {"a:80": 0}


def test_a_host_that_resumes_has_its_whole_room_again(limits: HostLimits) -> None:
    limits.pause("a:80", NOW + 500)
    limits.resume("a:80")
    limits.resume("b:80")
    assert limits.rooms(NOW) == Rooms(3)
    assert limits.next_probe_ms(NOW) is None


def test_attempts_from_before_a_pause_leave_room_for_its_probe(limits: HostLimits) -> None:
    for _ in range(3):
        limits.start("a:80")
    limits.pause("a:80", NOW)
    assert limits.rooms(NOW).hosts == {"a:80": 1}
