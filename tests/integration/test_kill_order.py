"""`kill -9` again and again while queues and flow-control keys are at work: order, rates and slots hold.

The order is that of the endpoint's own record. Rate and parallelism are read from the broker's log, which has the times
of the starts.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtasks.broker.settings import DEV_CREDENTIALS
from tests.integration.test_kill import Process
from tests.support.api_client import ApiClient
from tests.support.running import Answer, Endpoint, Received

KILLS = 10
ARRIVALS_A_KILL = 11
QUEUES = 3
LENGTH = 10
RATE = 4
PERIOD_MS = 1_000
LIMITED = 12
PATIENCE_S = 30.0


class ArrivalLog:
    """What the endpoint received, in order, and what it answers."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._times: Counter[str] = Counter()
        self._new = threading.Condition()

    def answer(self, received: Received) -> Answer:
        with self._new:
            self.paths.append(received.path)
            self._times[received.path] += 1
            self._new.notify_all()
            kind, _, number = received.path.strip("/").split("/")
            return (500 if self._times[received.path] <= failures(kind, int(number)) else 200), {}, b""

    def wait_for(self, count: int) -> None:
        with self._new:
            assert self._new.wait_for(lambda: len(self.paths) >= count, PATIENCE_S), self.paths[-5:]

    def wait_for_all(self, paths: set[str]) -> None:
        with self._new:
            assert self._new.wait_for(lambda: paths <= self._times.keys(), PATIENCE_S), paths - self._times.keys()


def failures(kind: str, number: int) -> int:
    """How often a path fails before it succeeds: some messages twice, one in four for good, callbacks once."""
    if kind == "queue":
        return 99 if number % 4 == 3 else number % 3
    return 1 if kind == "callback" else 0


def item(url: str, queue: str, number: int) -> dict[str, Any]:
    headers = {"Upstash-Retries": "2", "Upstash-Retry-Delay": "10"}
    if number % 2 == 0:
        headers["Upstash-Callback"] = f"{url}/callback/{queue}/{number}"
        headers["Upstash-Callback-Retry-Delay"] = "10"
    if number % 4 == 3:
        headers["Upstash-Failure-Callback"] = f"{url}/failure/{queue}/{number}"
    return {"destination": f"{url}/queue/{queue}/{number}", "queue": queue, "headers": headers}


def limited(url: str, key: str, limits: str, number: int) -> dict[str, Any]:
    headers = {"Upstash-Flow-Control-Key": key, "Upstash-Flow-Control-Value": limits}
    return {"destination": f"{url}/key/{key}/{number}", "headers": headers}


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ArrivalLog, ApiClient]]:
    arrivals = ArrivalLog()
    endpoint = Endpoint(arrivals.answer)
    process = Process(Path(tmp_path_factory.mktemp("order")))
    try:
        process.start()
        items = [item(endpoint.url, f"q{n}", number) for number in range(LENGTH) for n in range(QUEUES)]
        items += [limited(endpoint.url, "rate", f"rate={RATE}, period=1s", number) for number in range(LIMITED)]
        items += [limited(endpoint.url, "one", "parallelism=1", number) for number in range(LIMITED)]
        answer = ApiClient(process.port, DEV_CREDENTIALS[0]).ask("POST", "/v2/batch", (), json.dumps(items).encode())
        assert all("messageId" in one for one in answer.json)
        for kill in range(1, KILLS + 1):
            arrivals.wait_for(kill * ARRIVALS_A_KILL)
            process.kill()
            process.start()
        expected = {f"/queue/q{n}/{number}" for n in range(QUEUES) for number in range(LENGTH)}
        expected |= {f"/failure/q{n}/{number}" for n in range(QUEUES) for number in range(3, LENGTH, 4)}
        arrivals.wait_for_all(expected | {f"/key/{key}/{n}" for key in ("rate", "one") for n in range(LIMITED)})
        yield arrivals, ApiClient(process.port, DEV_CREDENTIALS[0])
    finally:
        process.close()
        endpoint.close()


def history(api: ApiClient, key: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = api.ask("GET", f"/v2/events?order=earliestFirst&flowControlKey={key}").json[
        "events"
    ]
    return entries


def test_a_queue_keeps_its_order_through_retries_callbacks_and_kills(lived: tuple[ArrivalLog, ApiClient]) -> None:
    """Neither a message nor its callbacks arrive once a later message of the queue has started."""
    arrivals, _ = lived
    seen: defaultdict[str, list[int]] = defaultdict(list)
    for path in arrivals.paths:
        kind, queue, number = path.strip("/").split("/")
        if kind != "key":
            seen[queue].append(int(number))
    assert {queue: sorted(set(numbers)) for queue, numbers in seen.items()} == {
        f"q{n}": list(range(LENGTH)) for n in range(QUEUES)
    }
    for numbers in seen.values():
        assert numbers == sorted(numbers)


def test_a_rate_is_never_exceeded_whoever_counts(lived: tuple[ArrivalLog, ApiClient]) -> None:
    """An attempt that a kill has cut counts, and the window goes on through the restart."""
    _, api = lived
    starts = [entry["time"] for entry in history(api, "rate") if entry["state"] == "ACTIVE"]
    assert len(starts) >= LIMITED
    windows: list[list[int]] = []
    for time_ms in starts:
        if not windows or time_ms >= windows[-1][0] + PERIOD_MS:
            windows.append([])
        windows[-1].append(time_ms)
    assert max(len(window) for window in windows) <= RATE


def test_a_parallelism_of_one_is_one_at_a_time_in_order_of_arrival(lived: tuple[ArrivalLog, ApiClient]) -> None:
    """An attempt ends, by its answer or by the next start of the broker, before another begins."""
    arrivals, api = lived
    under_way: str | None = None
    for entry in history(api, "one"):
        if entry["state"] == "ACTIVE":
            assert under_way is None
            under_way = entry["messageId"]
        elif entry["state"] in ("DELIVERED", "ERROR"):
            assert under_way == entry["messageId"]
            under_way = None
    numbers = [int(path.rpartition("/")[2]) for path in arrivals.paths if path.startswith("/key/one/")]
    assert numbers == sorted(numbers)
