"""What an operator reads in the log of `qtasks broker`."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import ask
from tests.support.running import Endpoint
from tests.support.servers import BrokerServer


class LoggingBroker(BrokerServer):
    """A broker that logs JSON."""

    def line(self, action: str) -> dict[str, Any]:
        """The next record with this action."""
        while True:
            record: dict[str, Any] = json.loads(self.wait_for("{"))
            if record.get("action") == action:
                return record


@pytest.fixture(scope="module")
def refusing() -> Iterator[Endpoint]:
    endpoint = Endpoint(answer=lambda received: (500, {}, b"a secret of the endpoint"))
    yield endpoint
    endpoint.close()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoggingBroker]:
    folder = tmp_path_factory.mktemp("log")
    with LoggingBroker(
        folder, "--db", "log.db", "--log-format", "json", "--destinations", "public", "--allow-destination", "127.0.0.1"
    ) as running:
        running.started()
        yield running
        assert running.stop() == 0
        assert "a secret of the endpoint" not in running.output


def test_a_failed_attempt_says_what_happened_and_when_the_next_one_follows(
    broker: LoggingBroker, refusing: Endpoint
) -> None:
    url = f"{refusing.url}/hook"
    message_id = broker.publish(f"{url}?token=hunter2", Upstash_Retries="1", Upstash_Retry_Delay="5000")
    record = broker.line("retry")
    assert record["level"] == "warning"
    assert record["message"] == (
        f"{message_id} to {url} failed on attempt 1 of 2: the destination answered 500; next in 5s"
    )
    assert (record["message_id"], record["url"], record["attempt"], record["attempts"]) == (message_id, url, 1, 2)
    assert (record["status"], record["error"]) == (500, "the destination answered 500")
    assert 4_000 < record["wait_ms"] <= 5_000
    assert "hunter2" not in broker.output


def test_a_dead_letter_is_an_error(broker: LoggingBroker, refusing: Endpoint) -> None:
    message_id = broker.publish(refusing.url, Upstash_Retries="0")
    record = broker.line("dead_letter")
    assert record["level"] == "error"
    assert record["message"] == (
        f"{message_id} to {refusing.url} is a dead letter after attempt 1 of 1: the destination answered 500"
    )


def test_what_nobody_answers_is_a_line_too(broker: LoggingBroker) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        broker.publish(f"http://127.0.0.1:{closed.getsockname()[1]}/", Upstash_Retries="0")
        record = broker.line("dead_letter")
    assert "refused" in record["error"]
    assert "status" not in record


def test_a_refused_token_is_a_line_without_the_token(broker: LoggingBroker) -> None:
    for _ in range(3):
        assert ask("GET", f"{broker.url}/v2/logs", token="wrong-token").status == 401
    record = broker.line("token_refused")
    assert record["message"] == "GET of /v2/logs from 127.0.0.1: missing or wrong token"
    assert "wrong-token" not in broker.output


def test_a_refused_destination_is_a_line(broker: LoggingBroker) -> None:
    assert broker.ask("POST", "/v2/publish/http://10.0.0.1/hook?token=hunter2").status == 400
    record = broker.line("destination_refused")
    assert record["url"] == "http://10.0.0.1/hook"
    assert "hunter2" not in broker.output


def test_rotated_keys_are_a_line(broker: LoggingBroker) -> None:
    assert broker.ask("POST", "/v2/keys/rotate").status == 200
    record = broker.line("keys_rotated")
    assert record["level"] == "info"
    assert record["message"] == "the signing keys were rotated: the next key of before signs now"


def test_another_host_is_told_which_option_adds_it(broker: LoggingBroker) -> None:
    answer = broker.ask("GET", "/v2/logs", Host="jobs.example.com")
    assert answer.status == 421
    assert answer.json["error"] == (
        "host not allowed: this broker answers to 127.0.0.1, [::1], localhost (--allow-host adds a name)"
    )
    assert "--allow-host" in broker.wait_for("a request was refused: host not allowed")


def test_sighup_reloads_nothing_and_says_so(broker: LoggingBroker) -> None:
    broker.process.send_signal(signal.SIGHUP)
    record = json.loads(broker.wait_for("SIGHUP"))
    assert record["message"].startswith(
        "SIGHUP reloads nothing: options are read at the start (restart to change them)"
    )
    assert ask("GET", f"{broker.url}/healthz").status == 200


def test_deliveries_are_lines_only_for_those_who_want_every_one(tmp_path: Path) -> None:
    endpoint = Endpoint()
    with contextlib.closing(endpoint):
        with BrokerServer(tmp_path, "--db", "quiet.db") as broker:
            broker.started().publish(endpoint.url)
            endpoint.wait_for(1)
            broker.stop()
            assert [line for line in broker.lines if line[:1].isdigit()] == []
        with BrokerServer(tmp_path, "--db", "loud.db", "--log-level", "debug") as broker:
            message_id = broker.started().publish(endpoint.url)
            assert f" DEBUG {message_id} to {endpoint.url} was delivered in " in broker.wait_for("was delivered")
