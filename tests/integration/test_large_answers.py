"""Large answers over real sockets: whole in their JSON, or visibly broken; a slow reader holds a piece only."""

from __future__ import annotations

import http.client
import itertools
from typing import Any

import pytest

from qtasks.broker.store.verbs.reads import queries
from qtasks.errors import StoreError
from tests.support.api_client import ApiClient

BODY = b"x" * 200_000


@pytest.fixture
def log(api: ApiClient) -> list[str]:
    """The ids of the messages in a log that is larger than a slice, the newest first."""
    return [api.publish(body=BODY).json["messageId"] for _ in range(8)][::-1]


def test_a_large_page_arrives_whole(api: ApiClient, log: list[str]) -> None:
    answer = api.ask("GET", "/v2/logs")
    assert "content-length" not in answer.headers
    assert [entry["messageId"] for entry in answer.json["logs"]] == log
    assert answer.json["events"] == answer.json["logs"]


def test_a_page_that_cannot_be_read_to_its_end_breaks_the_connection(
    api: ApiClient, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    number, read = itertools.count(), queries.log

    def fail_later(*args: Any, **options: Any) -> Any:
        if next(number) > 1:
            raise StoreError("a slice cannot be read")
        return read(*args, **options)

    monkeypatch.setattr(queries, "log", fail_later)
    with pytest.raises(http.client.IncompleteRead):
        api.ask("GET", "/v2/logs")
    monkeypatch.undo()
    assert [entry["messageId"] for entry in api.ask("GET", "/v2/logs").json["logs"]] == log
