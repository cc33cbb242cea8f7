"""`qtasks dlq list` begins with the newest dead letter, whatever order the service has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.commands import in_process
from tests.support.running import Answer, Endpoint, Received

COUNT = 250
Service = Callable[..., list[str]]


def letter(number: int) -> dict[str, object]:
    return {
        "messageId": f"msg_{number}",
        "dlqId": f"{1_700_000_000_000 + number}-0",
        "url": "https://example.com/x",
        "method": "POST",
        "createdAt": 1_700_000_000_000,
        "notBefore": 1_700_000_000_000,
        "callerIP": "127.0.0.1",
        "maxRetries": 3,
        "responseStatus": 500,
    }


def answer(received: Received, *, knows_order: bool) -> Answer:
    """A service without a console, with `COUNT` dead letters; the order may be one that it does not know."""
    address = urlsplit(received.path)
    if address.path != "/v2/dlq":
        return 404, {}, b'{"error": "not found"}'
    query = parse_qs(address.query)
    letters = [letter(number) for number in range(COUNT)]
    if knows_order and query.get("order") == ["latestFirst"]:
        letters.reverse()
    start, size = int(query.get("cursor", ["0"])[0]), int(query["count"][0])
    page: dict[str, object] = {"messages": letters[start : start + size]}
    if start + size < COUNT:
        page["cursor"] = str(start + size)
    return 200, {"Content-Type": "application/json"}, json.dumps(page).encode()


@pytest.fixture(params=[True, False], ids=["knows the order", "knows no order"])
def service(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    running = Endpoint(lambda received: answer(received, knows_order=request.param))
    yield running
    running.close()


@pytest.mark.parametrize("count", [1, 3, 120, 300])
def test_the_newest_come_first(
    service: Endpoint,
    count: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = in_process(monkeypatch, capfd, {"QSTASH_URL": service.url, "QSTASH_TOKEN": "token"})
    done = run("dlq", "--count", str(count), "--json")
    assert done.status == 0, done.err
    listed = done.json
    shown = min(count, COUNT)
    assert [each["messageId"] for each in listed["deadLetters"]] == [f"msg_{COUNT - 1 - at}" for at in range(shown)]
    assert listed["hasMore"] == (count < COUNT)
    assert f"the newest {shown}; --count" in run("dlq", "--count", str(count)).err or not listed["hasMore"]
