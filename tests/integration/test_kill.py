"""Twenty times `kill -9` under load: every accepted message arrives, and every message that arrives was sent.

Producers record what they publish and which answers they get; the endpoint records what arrives. The test compares
these records and does not rely on the broker's own log. A publish without an answer is unknown: it may arrive or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import pytest
from qstash import Receiver

from qtasks.broker.core.interruptions import CRASHED_FROM_CLAIMS, STOPPED
from qtasks.broker.core.rules import Stage
from qtasks.broker.store.connection import connect
from qtasks.broker.store.verbs.insight import index, totals
from qtasks.protocol import signing
from qtasks.protocol.development import USERS
from qtasks.protocol.messages import State
from tests.support import broker_process, insight
from tests.support.legal_moves import assert_legal

KILLS = 20
PRODUCERS = 3
PATIENCE_S = 20.0
REDELIVERED_WITHIN_MS = 1_000
SEED = 20


class Process:
    """The broker as a process, started again and again on one file and one port."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "broker.db"
        self.port = 0
        self.starts_ms: list[float] = []
        """Wall time of every "ready"."""
        self.ends_ms: list[float] = []
        self._log = (folder / "stderr.txt").open("wb")
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, broker_process.__file__, str(self.database), str(self.port)],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout is not None
        word, _, port = self._process.stdout.readline().partition(" ")
        assert word == "ready", Path(self._log.name).read_text()
        self.port = int(port)
        self.starts_ms.append(time.time() * 1000)

    def kill(self) -> None:
        """SIGKILL: not a line of its code runs any more."""
        assert self._process is not None
        self._process.kill()
        self._ended()

    def terminate(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._ended()

    def _ended(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()
        self._process = None
        self.ends_ms.append(time.time() * 1000)

    def close(self) -> None:
        if self._process is not None:
            self.kill()
        self._log.close()


@dataclass
class ProducerRecord:
    """What one producer published, and the answers that it got."""

    sent: dict[str, str] = field(default_factory=dict)
    """By its own number of a message: the hash of the body."""
    acknowledged: dict[str, str] = field(default_factory=dict)
    """By the same number: the message id of the 201."""
    unknown: set[str] = field(default_factory=set)
    """No answer: the process died in between."""


class Producer(threading.Thread):
    """Publishes as fast as it is answered; waits while the broker is away."""

    def __init__(self, name: str, process: Process, sink_url: str, up: threading.Event, stop: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.record = ProducerRecord()
        self.odd: list[object] = []
        """Answers that no producer should get."""
        self._chance = random.Random(f"{SEED} {name}")
        self._process = process
        self._sink_url = sink_url
        self._up = up
        self._stop_ = stop
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        count = 0
        while not self._stop_.is_set():
            if not self._up.wait(0.05):
                continue
            count += 1
            self._publish(f"{self.name}-{count}")
        if self._connection is not None:
            self._connection.close()

    def _publish(self, number: str) -> None:
        padding = "x" * self._chance.choice((0, 100, 2_000))
        body = json.dumps({"number": number, "padding": padding}).encode()
        headers = {"Authorization": f"Bearer {USERS[0].token}", "Upstash-Retry-Delay": "0", "Upstash-Retries": "5"}
        if self._chance.random() < 0.2:
            headers["Upstash-Delay"] = f"{self._chance.randrange(1, 800)}ms"
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self._process.port, timeout=PATIENCE_S)
                self._connection.connect()
        except OSError:
            self._connection = None  # no server: nothing was sent
            return
        self.record.sent[number] = hashlib.sha256(body).hexdigest()
        try:
            self._connection.request("POST", f"/v2/publish/{self._sink_url}/{number}", body, headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            self._connection = None
            self.record.unknown.add(number)
            return
        if answer.status == 201:
            self.record.acknowledged[number] = json.loads(text)["messageId"]
        else:
            self.odd.append((answer.status, text))


@dataclass(frozen=True)
class Arrival:
    number: str
    message_id: str
    retried: int
    body: bytes
    signature: str
    time_ms: float
    status: int


class RecordingEndpoint:
    """The endpoint: slow or failing for some messages; it records everything."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self._chance = random.Random(SEED)
        self._loop = asyncio.new_event_loop()
        self._serving: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(PATIENCE_S)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
                first, *lines = head.split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers["content-length"]))
                await self._answer(first.split(" ")[1].lstrip("/"), headers, body, writer)
        self._serving.discard(task)
        writer.close()

    async def _answer(self, number: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        time_ms = time.time() * 1000
        if self._chance.random() < 0.5:
            await asyncio.sleep(self._chance.random() * 0.04)  # this endpoint is slow: attempts are under way at a kill
        status = 500 if self._chance.random() < 0.05 else 200
        self.arrivals.append(
            Arrival(
                number,
                headers["upstash-message-id"],
                int(headers["upstash-retried"]),
                body,
                headers["upstash-signature"],
                time_ms,
                status,
            )
        )
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
        await writer.drain()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()


@dataclass
class LoadResult:
    """The records of the producers and of the endpoint."""

    process: Process
    producers: list[Producer]
    arrivals: list[Arrival]

    @property
    def acknowledged(self) -> dict[str, str]:
        return {number: one for producer in self.producers for number, one in producer.record.acknowledged.items()}

    @property
    def delivered(self) -> list[Arrival]:
        return [one for one in self.arrivals if one.status == 200]

    @property
    def duplicates(self) -> Counter[str]:
        """By message id: successes beyond the first."""
        return Counter(one.message_id for one in self.delivered) - Counter({one.message_id for one in self.delivered})


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadResult]:
    """Twenty rounds of load and `kill -9`, then a last start in which everything comes to its end."""
    chance = random.Random(SEED)
    process = Process(tmp_path_factory.mktemp("kill"))
    sink = RecordingEndpoint()
    up, stop = threading.Event(), threading.Event()
    producers = [Producer(f"p{n}", process, sink.url, up, stop) for n in range(PRODUCERS)]
    try:
        process.start()
        for producer in producers:
            producer.start()
        for _ in range(KILLS):
            up.set()
            stop.wait(chance.uniform(0.05, 0.6))  # the load runs; nothing stops it but the kill
            process.kill()
            up.clear()
            process.start()
        up.set()
        stop.wait(0.1)
        stop.set()
        for producer in producers:
            producer.join(PATIENCE_S)
        wait_until_nothing_is_left(process.database)
        process.terminate()
        yield LoadResult(process, producers, sink.arrivals)
    finally:
        stop.set()
        process.close()
        sink.close()


def wait_until_nothing_is_left(database: Path) -> None:
    pause = threading.Event()
    end = time.monotonic() + PATIENCE_S
    db = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        while left := db.execute("SELECT count(*) FROM messages WHERE stage < 4").get:
            assert time.monotonic() < end, f"{left} messages never came to an end"
            pause.wait(0.02)
    finally:
        db.close()


def test_the_load_was_a_load(result: LoadResult) -> None:
    """Twenty kills between which nothing happened would prove nothing."""
    assert len(result.process.ends_ms) == KILLS + 1
    assert len(result.acknowledged) > 20 * KILLS
    assert sum(len(producer.record.unknown) for producer in result.producers) > 0
    assert [producer.odd for producer in result.producers] == [[]] * PRODUCERS
    arrivals = sorted(one.time_ms for one in result.arrivals)
    busy = [any(end_ms - 100 < time_ms < end_ms for time_ms in arrivals) for end_ms in result.process.ends_ms[:-1]]
    assert sum(busy) >= KILLS * 0.8, "the kills came while deliveries were under way"


def test_everything_acknowledged_was_delivered(result: LoadResult) -> None:
    delivered = {(one.number, one.message_id) for one in result.delivered}
    assert set(result.acknowledged.items()) - delivered == set()


def test_nothing_was_delivered_that_nobody_sent(result: LoadResult) -> None:
    unknown = set.union(*(producer.record.unknown for producer in result.producers))
    assert {one.number for one in result.arrivals} <= set(result.acknowledged) | unknown
    ids = defaultdict(set)
    for one in result.arrivals:
        ids[one.number].add(one.message_id)
    assert all(len(of_one) == 1 for of_one in ids.values()), "one publish is one message"


def test_every_duplicate_has_its_crash(result: LoadResult) -> None:
    assert result.duplicates.total() <= KILLS * broker_process.SLOTS
    interruptions: Counter[str] = Counter()
    for message_id, error in rows(result, "SELECT m.id, l.error FROM log l JOIN messages m USING (seq)"):
        interruptions[str(message_id)] += error == STOPPED
    assert sum(interruptions.values()) > 0
    for message_id, extra in result.duplicates.items():
        assert extra <= interruptions[message_id], message_id
    retried: dict[str, list[int]] = defaultdict(list)
    for one in sorted(result.arrivals, key=lambda one: one.time_ms):
        retried[one.message_id].append(one.retried)
    assert all(numbers == sorted(numbers) for numbers in retried.values())


def test_every_body_is_intact_and_every_signature_verifies(result: LoadResult) -> None:
    keys = USERS[0].keys
    official = Receiver(keys.current, keys.next)
    sent = {number: one for producer in result.producers for number, one in producer.record.sent.items()}
    sink_url = result.producers[0]._sink_url
    for place, one in enumerate(result.arrivals):
        assert hashlib.sha256(one.body).hexdigest() == sent[one.number]
        url = f"{sink_url}/{one.number}"
        signing.verify(one.signature, body=one.body, url=url, keys=keys, now_s=one.time_ms / 1000)
        if place % 25 == 0:
            official.verify(signature=one.signature, body=one.body.decode(), url=url)


def test_what_was_interrupted_starts_again_within_a_second_of_the_start(result: LoadResult) -> None:
    """C10. A run that was killed sooner than that had at least to be short. Those that two kills in a row interrupted
    start one after the other, because one of them may be what ends the broker."""
    starts_ms, ends_ms = result.process.starts_ms, result.process.ends_ms
    log = rows(result, "SELECT seq, time_ms, state, error FROM log ORDER BY seq, n")
    delays_ms = []
    in_a_row: Counter[int] = Counter()
    for (seq, time_ms, state, error), (next_seq, _, next_state, _), (again_seq, again_ms, again_state, _) in zip(
        log, log[1:], log[2:], strict=False
    ):
        if error != STOPPED:
            in_a_row[seq] *= state not in ("ERROR", "DELIVERED")
            continue
        assert (next_seq, next_state) == (seq, "RETRY")
        in_a_row[seq] += 1
        if in_a_row[seq] >= CRASHED_FROM_CLAIMS:
            continue
        run = next(n for n, ready_ms in enumerate(starts_ms) if ready_ms >= time_ms)
        if again_seq == seq and again_state == "ACTIVE" and again_ms <= ends_ms[run]:
            delays_ms.append(again_ms - starts_ms[run])
        else:
            assert ends_ms[run] - starts_ms[run] < REDELIVERED_WITHIN_MS / 2
    assert delays_ms
    assert max(delays_ms) <= REDELIVERED_WITHIN_MS, sorted(delays_ms)[-5:]


def test_the_file_is_sound_and_every_log_is_legal(result: LoadResult) -> None:
    assert rows(result, "PRAGMA integrity_check") == [("ok",)]
    stages = dict(rows(result, "SELECT seq, stage FROM messages"))
    logs = defaultdict(list)
    for seq, state in rows(result, "SELECT seq, state FROM log ORDER BY seq, n"):
        logs[seq].append(State(state))
    assert set(logs) == set(stages)
    for seq, states in logs.items():
        assert_legal(states, Stage(stages[seq]))


def test_the_figures_of_the_console_equal_the_log(result: LoadResult) -> None:
    """They were counted while the broker was killed; what was left to count is counted now."""
    db = connect(str(result.process.database))
    counted_before = db.execute("SELECT n FROM insight_progress").get
    now_ms = round(result.process.ends_ms[-1])
    insight.count_all(db, now_ms)
    of_kills = insight.rows(db)
    assert insight.counted(db) == insight.ledger(db, now_ms)
    total = totals.totals(db, 1, minutes=10_080, now_ms=now_ms)
    created = db.execute("SELECT count(*) FROM messages WHERE account = 1").get
    assert sum(point.figures.created for point in total.series) == created
    index.start_again(db)
    insight.count_all(db, now_ms)
    assert insight.rows(db) == of_kills
    db.close()
    assert counted_before > 0, "the loop ran"


def rows(result: LoadResult, sql: str) -> list[tuple[Any, ...]]:
    db = apsw.Connection(str(result.process.database), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()
