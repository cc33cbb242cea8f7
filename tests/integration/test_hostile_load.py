"""One client's expensive requests do not keep others waiting: a broker in a process of its own, with its loop watched.

The time of the loop's own thread decides, because it is the same on a busy machine. The large profile (`-m release`)
also measures what a healthy client beside the attack sees.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import pytest

from qtasks.broker.settings import DEV_CREDENTIALS
from qtasks.protocol.messages import MAX_BODY
from tests.support.api_client import LATER, ApiClient
from tests.support.loop_lag import WatchedBroker, watched_broker
from tests.support.manifests import DESCRIBED
from tests.support.process import soon
from tests.support.running import Answer, Endpoint, Received

HELD_CPU_S = 0.1
"""Longest time that the loop's thread may work without a turn for others, seconds, also beside a second test."""
HELD_S = 1.0
"""The same as a client sees it, on a machine that is busy with other things: far below the five seconds of a lock."""
P99_S = 0.1
"""What 99 of 100 healthy requests take at most beside an attack, seconds, on a machine with nothing else to do.

On a busy machine a few times what they take without an attack comes on top.
"""
BODY = b"x" * (MAX_BODY - 1)
CONTROL = b"\x01" * (MAX_BODY - 1)
"""Each byte of it takes six in JSON."""


@dataclass
class Target:
    """The broker under attack."""

    broker: WatchedBroker
    database: Path
    endpoint: Endpoint

    def __post_init__(self) -> None:
        self.api = ApiClient(self.broker.port, DEV_CREDENTIALS[0])

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> bytes:
        """The body of a successful answer. Header names have underscores in place of hyphens."""
        lines = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        answer = self.api.ask(method, target, lines, body)
        assert answer.status < 300, answer.body[:200]
        return answer.body

    def make_group(self, size: int, url: str) -> str:
        """The name of a new URL group of so many endpoints."""
        endpoints = [{"url": f"{url}/{n}"} for n in range(size)]
        self.ask("POST", f"/v2/topics/of-{size}/endpoints", json.dumps({"endpoints": endpoints}).encode())
        return f"of-{size}"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    database = tmp_path_factory.mktemp("hostile") / "broker.db"
    endpoint = Endpoint(hostile_answer)
    with watched_broker(database) as broker:
        yield Target(broker, database, endpoint)
    endpoint.close()


def megabyte_to_a_group(target: Target) -> None:
    target.ask("POST", f"/v2/publish/{target.make_group(400, 'http://127.0.0.1:1')}", BODY, Upstash_Delay="1d")


def megabyte_delivered_to_a_group(target: Target) -> None:
    before = len(target.endpoint.received)
    target.ask("POST", f"/v2/publish/{target.make_group(40, target.endpoint.url)}", BODY)
    target.endpoint.wait_for(before + 40)


def group_of_thousands(target: Target) -> None:
    target.ask("POST", f"/v2/publish/{target.make_group(4000, 'http://127.0.0.1:1')}", b"x", Upstash_Delay="1d")


def large_batch(target: Target) -> None:
    item = {"destination": "http://127.0.0.1:1/x", "body": "x" * 3500, "headers": {"Upstash-Delay": "1d"}}
    target.ask("POST", "/v2/batch", json.dumps([item] * 1000).encode())


def page_of_large_logs(target: Target) -> None:
    for _ in range(9):
        target.ask("POST", "/v2/publish/http://127.0.0.1:1/x", CONTROL, Upstash_Delay="1d")
    page = json.loads(target.ask("GET", "/v2/logs?state=CREATED"))
    assert page["events"] == page["logs"]
    assert len(page["logs"]) >= 6


def page_of_large_dead_letters(target: Target) -> None:
    for _ in range(8):
        answer = target.ask("POST", "/v2/publish/http://127.0.0.1:1/dead", CONTROL, Upstash_Retries="0")
    failed = f"/v2/logs?state=FAILED&messageId={json.loads(answer)['messageId']}"
    soon(lambda: bool(json.loads(target.ask("GET", failed))["logs"]), "the last message has failed")
    assert json.loads(target.ask("GET", "/v2/dlq"))["messages"]


def page_of_large_heads(target: Target) -> None:
    for _ in range(200):
        target.ask("POST", "/v2/publish/http://127.0.0.1:1/x", b"", Upstash_Delay="1d", Upstash_Forward_X="h" * 16_000)
    assert len(json.loads(target.ask("GET", "/v2/logs?state=CREATED&count=200"))["logs"]) == 200


def cancel_in_bulk(target: Target) -> None:
    headers = {"Upstash-Delay": "1d", "Upstash-Label": "bulk"}
    items = [{"destination": "http://127.0.0.1:1/x", "headers": headers}] * 1000
    for _ in range(2):
        target.ask("POST", "/v2/batch", json.dumps(items).encode())
    assert json.loads(target.ask("DELETE", "/v2/messages?label=bulk")) == {"cancelled": 2000}


def json_of_a_million_values(target: Target) -> None:
    body = b"[" + b"{}," * 1_300_000 + b"{}]"
    assert target.api.ask("POST", "/v2/batch", (), body).error == "invalid JSON: more than 250000 values"


def json_of_many_values(target: Target) -> None:
    body = b"[" + b'{"a":1},' * 240_000 + b"{}]"
    assert target.api.ask("POST", "/v2/batch", (), body).status == 413


def deduplication_by_content(target: Target) -> None:
    group = target.make_group(100, "http://127.0.0.1:1")
    content_based = {"Upstash_Delay": "1d", "Upstash_Content_Based_Deduplication": "true"}
    target.ask("POST", f"/v2/publish/{group}", BODY, **content_based)
    target.ask("POST", f"/v2/publish/{group}", BODY, **content_based)


def delete_by_a_filter_that_matches_nothing(target: Target) -> None:
    """It looks at all dead letters."""
    fill_dead_letters(target)
    target.broker.held()
    assert json.loads(target.ask("DELETE", "/v2/dlq?callerIp=192.0.2.1")) == {"deleted": 0}


def tasks_and_call_of_a_hostile_application(target: Target) -> None:
    prefix = f"{target.endpoint.url}/qtasks"
    task = {"Qtasks_Interrupted_For": "1h", "Qtasks_End_Callback": f"{prefix}/_end?task=work&call=call_1"}
    message = target.ask("POST", f"/v2/publish/{prefix}/work", b"{}", Upstash_Delay="1d", **task)

    def told() -> list[dict[str, Any]]:
        dispatchers: list[dict[str, Any]] = json.loads(target.ask("GET", "/console/api/tasks"))["dispatchers"]
        return dispatchers

    soon(lambda: told() != [], "the console has counted the message", within_s=60)
    assert len(told()[0]["manifest"]["tasks"]) == 2
    target.ask("GET", "/console/api/drift")
    call = json.loads(target.ask("GET", f"/console/api/messages/{json.loads(message)['messageId']}/call"))
    assert "values" in call["error"]


def hostile_answer(received: Received) -> Answer:
    """To questions of the console, as large as an answer may be, and of as many values."""
    if received.path.endswith("/_manifest"):
        task = {**DESCRIBED, "headers": [[]] * 45_000}
        return 200, {}, json.dumps({"v": 1, "tasks": [task, task]}, separators=(",", ":")).encode()
    if received.path.endswith("/_call"):
        flow = {"id": "f", "state": "s", "sequence": [{"collect": "", "members": [[]] * 300_000}]}
        report = {"v": 1, "results": True, "call": None, "flow": flow}
        return 200, {}, json.dumps(report, separators=(",", ":")).encode()
    return 200, {}, b""


def fill_dead_letters(target: Target) -> None:
    """Store a million dead letters, once: a second program writes them, which holds the lock of the file."""
    with contextlib.closing(apsw.Connection(str(target.database))) as db:
        db.set_busy_timeout(5000)
        if db.execute("SELECT count(*) FROM (SELECT 1 FROM dead_letters LIMIT 1000000)").get == 1_000_000:
            return
        answer = target.ask("POST", "/v2/publish/http://127.0.0.1:1/many", b"", Upstash_Delay="1d")
        db.execute(
            "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 1000000)"
            " INSERT OR IGNORE INTO dead_letters (failed_ms, n, account, seq, error, response_status)"
            " SELECT 1, number.n, m.account, m.seq, 'failed', 500 FROM number, messages m WHERE m.id = ?",
            (json.loads(answer)["messageId"],),
        )


ATTACKS = (
    megabyte_to_a_group,
    megabyte_delivered_to_a_group,
    group_of_thousands,
    large_batch,
    page_of_large_logs,
    page_of_large_dead_letters,
    page_of_large_heads,
    cancel_in_bulk,
    json_of_a_million_values,
    json_of_many_values,
    deduplication_by_content,
    delete_by_a_filter_that_matches_nothing,
    tasks_and_call_of_a_hostile_application,
)

LONG_WRITES: dict[Callable[[Target], None], int] = {group_of_thousands: 4000, large_batch: 1000}
"""The messages that an attack stores in one transaction: it stores all of them or none, and a publish waits for it."""
MESSAGE_S = 100e-6
"""How long such a transaction takes for each of them, seconds; 40 us on a machine with nothing else to do."""


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_expensive_request_does_not_hold_the_loop(target: Target, attack: Callable[[Target], None]) -> None:
    target.broker.held()
    attack(target)
    held = target.broker.held()
    assert held.cpu_s < HELD_CPU_S, held
    assert held.wall_s < HELD_S, held


@contextlib.contextmanager
def other_program(database: Path) -> Iterator[None]:
    """Within it, another program holds the lock for writes."""
    db = apsw.Connection(str(database))
    db.set_busy_timeout(10_000)  # the broker may be writing, too
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        db.close()


def test_while_another_program_has_locked_the_file_reads_are_answered_and_publishes_wait(target: Target) -> None:
    target.broker.held()
    answers: list[int] = []
    publish = threading.Thread(target=lambda: answers.append(target.api.publish().status))
    with other_program(target.database):
        publish.start()
        for _ in range(20):
            target.ask("GET", "/v2/queues")
        assert not answers
    publish.join()
    assert answers == [201]
    assert target.broker.held().wall_s < HELD_S


@pytest.mark.release
def test_publishes_are_refused_with_a_sentence_when_a_lock_stays(target: Target) -> None:
    with other_program(target.database):
        answer = ApiClient(target.broker.port, DEV_CREDENTIALS[0]).ask(
            "POST", "/v2/publish/http://127.0.0.1:1/x", LATER, b"", patience_s=20.0
        )
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "another program holds a lock" in str(answer.json["error"])
    assert target.api.publish().status == 201


class HealthyClient:
    """Publishes 200 bytes up to `most` times until it is closed; `latencies_s` are sorted then."""

    def __init__(self, target: Target, *, most: int = 1_000_000) -> None:
        self._most = most
        self.latencies_s: list[float] = []
        self._target = target
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        token = f"Bearer {DEV_CREDENTIALS[0].token}"
        connection = http.client.HTTPConnection("127.0.0.1", self._target.broker.port, timeout=30)
        while not self._closed.is_set() and len(self.latencies_s) < self._most:
            began_s = time.monotonic()
            connection.request(
                "POST", "/v2/publish/http://127.0.0.1:1/x", b"x" * 200, {"Authorization": token, **dict(LATER)}
            )
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 201
            self.latencies_s.append(time.monotonic() - began_s)
        connection.close()

    def close(self) -> None:
        self._closed.set()
        self.join()

    def join(self) -> None:
        """Wait until it has published as often as it may."""
        self._thread.join()
        self.latencies_s.sort()

    def p99_s(self) -> float:
        """What 99 of 100 requests took at most, seconds."""
        return self.latencies_s[len(self.latencies_s) * 99 // 100]


@pytest.mark.release
@pytest.mark.parametrize("attack", ATTACKS)
def test_beside_an_attack_a_healthy_client_waits_less_than_a_tenth_of_a_second(
    target: Target, attack: Callable[[Target], None], capsys: pytest.CaptureFixture[str]
) -> None:
    calm = HealthyClient(target, most=300)
    calm.join()
    healthy = HealthyClient(target)
    ends_s = time.monotonic() + 5
    while time.monotonic() < ends_s:
        attack(target)
    healthy.close()
    with capsys.disabled():
        figures = (
            f"p99 {healthy.p99_s() * 1000:.0f} ms of {len(healthy.latencies_s)}, {calm.p99_s() * 1000:.0f} ms without"
        )
        sys.stdout.write(f"{attack.__name__}: {figures}\n")
    long_write_s = LONG_WRITES.get(attack, 0) * MESSAGE_S
    assert healthy.p99_s() < P99_S + long_write_s + 3 * calm.p99_s()
