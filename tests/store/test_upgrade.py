"""A database of an earlier release, left by `kill -9` with messages in every stage, is upgraded in place.

Each archive in `released` holds a file with its write-ahead log, its credentials and the time of the kill, as a release
with that schema wrote them: commit 53e0575 (schema 2) and commit 1b4b963 (schema 3).
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest
from click.testing import CliRunner

from qtasks.broker.broker import Broker
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.ports import DeliveryRequest
from qtasks.broker.settings import DEV_CREDENTIALS, BrokerSettings
from qtasks.broker.store.connection import connect
from qtasks.cli import cli
from qtasks.protocol import signing
from qtasks.protocol.messages import SigningKeys
from tests.support.api import Service
from tests.support.broker import ScriptedTransport, SeededRandom, VirtualClock

pytestmark = pytest.mark.anyio

RELEASED = Path(__file__).with_name("released")
HOUR_MS = 3_600_000
ORIGIN = "http://127.0.0.1:7999"
IN_FLIGHT = ["/hang/failure", "/hang/queue-0", "/hang/flow-0", "/hang/binary"]
WAITING = ["/hang/queue-1", "/hang/queue-2", "/hang/flow-1", "/hang/flow-2"]
LATER = ["/fail/retrying", "/fail/delayed", "/fail/later", "/fail/one", "/fail/two", "/fail/twice"]


@pytest.fixture(params=["schema_2", "schema_3"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(RELEASED / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "old.db"


@pytest.fixture
def facts(database: Path) -> dict[str, str]:
    stored: dict[str, str] = json.loads(database.with_name("facts.json").read_text())
    return stored


@pytest.fixture
async def service(database: Path, facts: dict[str, str]) -> AsyncIterator[Service]:
    clock = VirtualClock(int(facts["KILLED_MS"]) + 1_000)
    transport = ScriptedTransport()
    settings = BrokerSettings(path=str(database), credentials=(*DEV_CREDENTIALS, AccountCredentials("default")))
    broker = await Broker.open(settings, transport=transport, clock=clock, random=SeededRandom())
    service = Service(broker, clock, transport)
    yield service
    await service.close()


def paths(sent: list[DeliveryRequest]) -> list[str]:
    return [request.url.removeprefix(ORIGIN) for request in sent]


def test_a_damaged_definition_is_named_before_the_upgrade(database: Path) -> None:
    db = apsw.Connection(str(database))
    db.execute("DROP INDEX messages_by_id")
    db.close()
    checked = CliRunner().invoke(cli, ["broker", "check", "--db", str(database)])
    assert checked.exit_code == 1
    assert "damaged: the definition of index messages_by_id is damaged" in checked.output


async def test_everything_that_waited_is_delivered_once_in_order_and_signed_with_the_old_keys(
    service: Service, facts: dict[str, str]
) -> None:
    keys = SigningKeys(facts["QSTASH_CURRENT_SIGNING_KEY"], facts["QSTASH_NEXT_SIGNING_KEY"])
    at_once = await service.run()
    assert Counter(paths(at_once)) == Counter(IN_FLIGHT + WAITING)
    for line in ("queue", "flow"):
        assert [path for path in paths(at_once) if line in path] == [f"/hang/{line}-{n}" for n in range(3)]
    binary = next(request for request in at_once if request.url.endswith("/hang/binary"))
    assert binary.body == bytes(range(256)) * 40
    for request in at_once:
        (signature,) = [value for name, value in request.headers if name == "Upstash-Signature"]
        now_s = service.clock.now_ms() // 1000
        signing.verify(signature, keys=keys, body=request.body, url=request.url, now_s=now_s)

    service.clock.advance(4 * HOUR_MS)
    late = await service.run()
    assert Counter(path for path in paths(late) if path != "/ok/callback" and "scheduled" not in path) == Counter(LATER)
    assert paths(late).count("/fail/scheduled") == 1, "of the ticks that were missed the latest runs"
    assert paths(late).count("/ok/callback") == 1
    retrying = next(request for request in late if request.url.endswith("/fail/retrying"))
    assert ("Upstash-Retried", "1") in retrying.headers
    delayed = next(request for request in late if request.url.endswith("/fail/delayed"))
    assert (delayed.method, ("X-Kept", "yes") in delayed.headers) == ("PUT", True)
    service.clock.advance(24 * HOUR_MS)
    assert set(paths(await service.run())) == {"/fail/scheduled"}


async def test_the_token_the_dead_letter_and_the_deduplication_of_the_old_file_still_count(
    service: Service, facts: dict[str, str]
) -> None:
    token = facts["QSTASH_TOKEN"]
    letters = (await service.call("GET", "/v2/dlq", token=token)).json["messages"]
    assert [(letter["url"], letter["body"]) for letter in letters] == [(f"{ORIGIN}/fail/dead", "dead")]
    headers = {"Upstash-Deduplication-Id": "once"}
    again = await service.call("POST", f"/v2/publish/{ORIGIN}/fail/twice", headers, b"twice", token=token)
    assert again.json["deduplicated"] is True
    retried = await service.call("POST", f"/v2/dlq/retry/{letters[0]['dlqId']}", token=token)
    assert retried.status in (200, 201)
    assert "/fail/dead" in paths(await service.run())


def test_the_upgrade_changes_no_row_and_a_second_start_finds_nothing_to_do(database: Path) -> None:
    stored = "SELECT seq, id, stage, due_ms, retried, checksum, url, headers, options FROM messages ORDER BY seq"
    old = apsw.Connection(str(database))
    before = old.execute(stored).fetchall()
    old.close()
    upgraded = connect(str(database))
    assert upgraded.execute(stored).fetchall() == before
    version = upgraded.pragma("user_version")
    upgraded.close()
    again = connect(str(database))
    assert again.pragma("user_version") == version > 2
    assert again.execute(stored).fetchall() == before
    again.close()
