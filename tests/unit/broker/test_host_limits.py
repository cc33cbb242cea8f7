"""How many attempts each host may have: by its limit, by what it has shown, and by what the others have in flight."""

from __future__ import annotations

import pytest

from qtasks.broker.core.host_rooms import HostRooms
from qtasks.broker.core.values import Rooms, Trust
from qtasks.broker.loops import host_limits
from qtasks.broker.loops.host_limits import HostLimits
from qtasks.broker.ports import Failure
from qtasks.broker.settings import DeliveryLimits
from qtasks.protocol.messages import Response
from tests.support.broker import VirtualClock

OK = Response(status=200)
TIMEOUT = Failure("timeout", "no answer")
REFUSED = Failure("connection_refused", "nothing listens", interrupted=True)
SILENT_NAME = Failure("dns", "no answer from the name server", attempted=False)
NO_DESCRIPTOR = Failure("connection_lost", "too many open files", attempted=False)


class Hosts:
    """Host limits on a virtual clock."""

    def __init__(self, limits: DeliveryLimits) -> None:
        self.clock = VirtualClock()
        self.limits = HostLimits(limits, self.clock)

    def attempt(self, host: str, outcome: Response | Failure, took_s: float = 0.0) -> None:
        started_s = self.clock.monotonic()
        self.limits.start(host)
        self.advance(took_s)
        self.limits.end(host, outcome, started_s=started_s)

    def advance(self, span_s: float) -> None:
        self.clock.advance(round(span_s * 1000))

    def fill(self, host: str) -> int:
        """Start as many attempts as `host` may have now, as one claim would; how many."""
        rooms = HostRooms(self.limits.rooms())
        count = 0
        while rooms.of(host) > 0:
            rooms.start(host)
            self.limits.start(host)
            count += 1
        return count

    def trust(self, host: str) -> Trust:
        return self.limits.rooms().trust.get(host, Trust.UNPROVEN)


@pytest.fixture
def hosts() -> Hosts:
    return Hosts(DeliveryLimits(in_flight=256, per_host=128))


def test_a_host_has_room_for_its_limit_less_what_is_in_flight_in_all_its_lots() -> None:
    limits = HostLimits(DeliveryLimits(in_flight=8, per_host=3), VirtualClock())
    limits.start("a:80")
    limits.start("a:80/jobs/")
    assert limits.rooms().hosts == {"a:80": 1}
    assert limits.rooms().running == {"a:80": 1, "a:80/jobs/": 1}
    assert (limits.in_flight, limits.room) == (2, 6)
    limits.end("a:80", OK, started_s=0)
    limits.end("a:80/jobs/", OK, started_s=0)
    assert limits.rooms().hosts == {"a:80": 3}
    assert limits.in_flight == 0


# -- what a host has shown -------------------------------------------------------------------------------------------


def test_a_host_is_lively_for_an_hour_after_its_answer(hosts: Hosts) -> None:
    assert hosts.trust("a:80") is Trust.UNPROVEN
    hosts.attempt("a:80", OK)
    assert hosts.trust("a:80") is Trust.LIVELY
    hosts.advance(3600)
    assert hosts.trust("a:80") is Trust.LIVELY
    hosts.advance(1)
    assert hosts.trust("a:80") is Trust.UNPROVEN


def test_a_host_that_has_not_answered_for_a_while_is_proven_until_it_answers(hosts: Hosts) -> None:
    hosts.attempt("a:80", OK)
    hosts.limits.start("a:80")
    hosts.limits.start("a:80")
    hosts.advance(1.5)
    assert hosts.trust("a:80") is Trust.PROVEN
    hosts.limits.end("a:80", OK, started_s=0)
    assert hosts.trust("a:80") is Trust.LIVELY


@pytest.mark.parametrize("outcome", [REFUSED, NO_DESCRIPTOR], ids=["refused", "own"])
def test_failures_that_end_at_once_change_no_trust(hosts: Hosts, outcome: Failure) -> None:
    hosts.attempt("a:80", OK)
    hosts.attempt("a:80", outcome)
    assert hosts.trust("a:80") is Trust.LIVELY


def test_a_timeout_makes_a_host_silent_only_if_it_answered_nothing_meanwhile(hosts: Hosts) -> None:
    hosts.limits.start("a:80")
    hosts.attempt("a:80", OK, took_s=5)
    hosts.limits.end("a:80", TIMEOUT, started_s=0)
    assert hosts.trust("a:80") is Trust.LIVELY
    hosts.attempt("a:80", TIMEOUT, took_s=5)
    assert hosts.trust("a:80") is Trust.SILENT
    hosts.attempt("a:80", OK)
    assert hosts.trust("a:80") is Trust.LIVELY


def test_each_silence_halves_what_a_host_may_have_and_one_answer_gives_it_back(hosts: Hosts) -> None:
    limits = []
    for _ in range(9):
        hosts.attempt("a:80", TIMEOUT, took_s=5)
        limits.append(hosts.limits.rooms().hosts["a:80"])
    assert limits == [64, 32, 16, 8, 4, 2, 1, 1, 1]
    hosts.attempt("a:80", OK)
    assert hosts.limits.rooms().hosts["a:80"] == 128


def test_a_host_whose_name_server_is_silent_takes_no_slot_until_a_probe_after_a_growing_pause(hosts: Hosts) -> None:
    pauses = []
    for _ in range(8):
        hosts.attempt("a:80", SILENT_NAME)
        assert hosts.limits.rooms().hosts["a:80"] == 0
        probe_ms = hosts.limits.next_probe_ms(hosts.clock.now_ms())
        assert probe_ms is not None
        pauses.append(probe_ms - hosts.clock.now_ms())
        hosts.advance(pauses[-1] / 1000)
        assert hosts.limits.next_probe_ms(hosts.clock.now_ms()) is None
        assert hosts.limits.rooms().hosts["a:80"] == 1
    assert pauses == [100, 200, 400, 800, 1600, 3200, 5000, 5000]
    hosts.limits.start("a:80")
    assert hosts.limits.rooms().hosts["a:80"] == 0
    hosts.limits.end("a:80", OK, started_s=0)
    assert hosts.limits.rooms().hosts["a:80"] == 128


def test_idle_hosts_are_forgotten_beyond_a_limit_and_busy_ones_never(
    monkeypatch: pytest.MonkeyPatch, hosts: Hosts
) -> None:
    monkeypatch.setattr(host_limits, "MAX_HOSTS", 3)
    hosts.limits.start("busy:80")
    for number in range(9):
        hosts.attempt(f"h{number}:80", OK)
    assert list(hosts.limits.rooms().hosts) == ["busy:80", "h7:80", "h8:80"]


# -- fair turns ------------------------------------------------------------------------------------------------------


def test_a_new_host_that_is_the_only_one_has_half_of_what_is_free(hosts: Hosts) -> None:
    """Its first tasks may take long, and nobody else needs the slots."""
    assert hosts.fill("a:80") == 96


def test_a_busy_host_reaches_its_full_limit_as_soon_as_it_has_answered(hosts: Hosts) -> None:
    hosts.limits.start("other:80")
    assert hosts.fill("a:80") == 22
    hosts.limits.end("a:80", OK, started_s=0)
    hosts.fill("a:80")
    assert hosts.limits.in_flight == 128 + 1


def test_a_host_with_long_tasks_keeps_its_full_limit(hosts: Hosts) -> None:
    hosts.attempt("a:80", OK)
    hosts.limits.start("a:80")
    hosts.advance(50)
    assert hosts.trust("a:80") is Trust.PROVEN
    assert hosts.fill("a:80") == 127


@pytest.mark.parametrize("dead", [2, 50, 1000])
def test_no_number_of_dead_hosts_takes_the_slots_that_a_lively_one_needs(hosts: Hosts, dead: int) -> None:
    hosts.attempt("a:80", OK)
    for number in range(dead):
        hosts.fill(f"dead{number}:80")
    assert hosts.fill("a:80") >= 11


def test_two_dead_hosts_leave_slots_to_hosts_that_are_new(hosts: Hosts) -> None:
    hosts.fill("dead1:80")
    hosts.fill("dead2:80")
    assert hosts.fill("new:80") >= 10


@pytest.mark.parametrize("dead", [40, 50])
def test_a_host_that_is_new_or_was_idle_has_a_first_attempt_beside_many_dead_hosts(hosts: Hosts, dead: int) -> None:
    hosts.attempt("idle:80", OK)
    hosts.advance(2 * 3600)
    for number in range(dead):
        hosts.fill(f"dead{number}:80")
    assert hosts.fill("idle:80") == 1
    assert hosts.fill("new:80") == 1


def test_hosts_that_were_lively_and_die_together_leave_slots(hosts: Hosts) -> None:
    for number in range(9):
        hosts.attempt(f"dead{number}:80", OK)
    for number in range(9):
        hosts.fill(f"dead{number}:80")
    hosts.attempt("a:80", OK)
    assert hosts.fill("a:80") >= 1


def test_silent_hosts_together_have_a_part_of_the_slots(hosts: Hosts) -> None:
    for number in range(300):
        hosts.attempt(f"dead{number}:80", TIMEOUT, took_s=1)
    for number in range(300):
        hosts.fill(f"dead{number}:80")
    assert hosts.limits.in_flight == 64
    assert hosts.fill("new:80") >= 11


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 8, 9])
def test_few_slots_are_all_used_and_a_silent_host_has_one_of_them(slots: int) -> None:
    hosts = Hosts(DeliveryLimits(in_flight=slots, per_host=slots))
    hosts.attempt("dead:80", TIMEOUT, took_s=1)
    assert 1 <= hosts.fill("dead:80") <= max(1, slots // 4)
    hosts.limits.end("dead:80", OK, started_s=0)
    hosts.attempt("a:80", OK)
    while hosts.fill("a:80") + hosts.fill("dead:80"):
        pass
    assert hosts.limits.room == 0


def test_the_host_whose_last_attempt_is_the_longest_ago_has_the_first_turn(hosts: Hosts) -> None:
    for host in ("a:80", "b:80", "a:80"):
        hosts.attempt(host, OK)
    assert list(hosts.limits.rooms().hosts) == ["b:80", "a:80"]


def test_what_a_claim_has_started_counts_for_the_rest_of_it() -> None:
    rooms = HostRooms(Rooms(2, {"a:80": 1}))
    rooms.start("a:80")
    rooms.start("b:80")
    assert [rooms.of(host) for host in ("a:80", "b:80", "c:80")] == [0, 1, 2]
