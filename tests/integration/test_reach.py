"""What a publisher reaches behind a public broker, and what it learns of the network there. On real sockets."""

from __future__ import annotations

import errno
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.broker.settings import BrokerSettings
from qtasks.broker.transport.attempt_failures import failure_of
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.broker.transport.http_transport import HttpTransport
from qtasks.protocol.messages import Response, State
from tests.support.hostile import OK, HostileServer, answering
from tests.support.process import Answer, ask
from tests.support.running import Endpoint, RunningBroker
from tests.support.servers import BrokerServer

pytestmark = pytest.mark.anyio

ASKED = {"model": "any", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    running = Endpoint()
    yield running
    running.close()


def request(url: str, method: str = "POST") -> DeliveryRequest:
    return DeliveryRequest(url, method, (), b"{}", 5000)


async def at_this_machine(host: str) -> list[str]:
    return ["127.0.0.1"]


# --- the tasks of the dispatcher


async def test_a_connection_that_was_opened_for_a_task_serves_no_other_request() -> None:
    async with HostileServer(answering(OK)) as server:
        origin = f"http://worker.test:{server.port}"
        policy = DestinationPolicy("public", (f"POST {origin}/qtasks",))
        transport = HttpTransport(policy, resolve=at_this_machine)
        for _ in range(2):
            assert isinstance(await transport.send(request(f"{origin}/qtasks/add")), Response)
        for path, method in (("/admin", "POST"), ("/qtasks/add", "DELETE"), ("/qtasks/%2e%2e/admin", "POST")):
            outcome = await transport.send(request(origin + path, method))
            assert isinstance(outcome, Failure), (path, method)
            assert (outcome.code, outcome.final) == ("destination_blocked", True)
        await transport.close()
        assert (server.connections, len(server.requests)) == (1, 2)


def test_the_base_url_opens_the_tasks_below_it_and_nothing_else(tmp_path: Path, endpoint: Endpoint) -> None:
    base_url = f"{endpoint.url}/qtasks"
    with BrokerServer(tmp_path, "--destinations", "public", QTASKS_BASE_URL=f"{base_url}/") as broker:
        broker.started().publish(f"{base_url}/add", b"1")
        assert endpoint.wait_for(1)[0].path == "/qtasks/add"
        for path, headers in (
            ("/admin", {}),
            ("/qtasks-admin/add", {}),
            ("/qtasks/../admin", {}),
            ("/qtasks/add", {"Upstash_Method": "DELETE"}),
        ):
            answer = broker.ask("POST", f"/v2/publish/{endpoint.url}{path}", b"1", **headers)
            assert answer.status == 400, path
            assert "--allow-destination" in answer.json["error"]
        called = broker.ask("POST", f"/v2/publish/{base_url}/add", b"2", Upstash_Callback=f"{endpoint.url}/admin")
        assert called.status == 400
        broker.publish(f"{base_url}/add", b"3", Upstash_Callback=f"{base_url}/add")
        assert {received.path for received in endpoint.wait_for(3)} == {"/qtasks/add"}


def test_a_rule_for_a_method_opens_the_publish_of_such_a_request(tmp_path: Path, endpoint: Endpoint) -> None:
    rule = f"PUT {endpoint.url}/files"
    with BrokerServer(tmp_path, "--destinations", "public", "--allow-destination", rule) as broker:
        broker.started().publish(f"{endpoint.url}/files/1", b"1", Upstash_Method="PUT")
        assert endpoint.wait_for(1)[0].path == "/files/1"
        assert broker.ask("POST", f"/v2/publish/{endpoint.url}/files/1", b"1").status == 400


@pytest.mark.parametrize("base_url", ["app.example.com/qtasks", "http://app/qtasks?x=1", "http://app/a/../qtasks"])
def test_a_base_url_that_cannot_be_a_destination_is_a_sentence(tmp_path: Path, base_url: str) -> None:
    with BrokerServer(tmp_path, QTASKS_BASE_URL=base_url) as broker:
        assert broker.finish() == 3
    assert f"QTASKS_BASE_URL={base_url} cannot be a destination" in broker.output
    assert "such as https://app.example.com/qtasks" in broker.output
    assert "Traceback" not in broker.output


# --- the language model


@pytest.fixture
def running(tmp_path: Path, endpoint: Endpoint) -> Iterator[RunningBroker]:
    settings = BrokerSettings(path=str(tmp_path / "broker.db"), llm_url=f"{endpoint.url}/v1", destinations="public")
    running = RunningBroker(settings)
    yield running
    running.stop()


def published(running: RunningBroker, destination: str, **headers: str) -> Answer:
    token = running.broker.settings.credentials[0].token
    lines = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps(ASKED).encode()
    return ask("POST", f"{running.url}/v2/publish/{destination}", token=token, body=body, headers=lines)


def test_the_server_of_the_language_model_is_reached_by_no_publish(running: RunningBroker, endpoint: Endpoint) -> None:
    for path in ("/v1/chat/completions", "/api/delete", "/"):
        answer = published(running, endpoint.url + path)
        assert (answer.status, "a loopback address" in answer.json["error"]) == (400, True), path


def test_its_completions_are_reached_as_a_post_whatever_the_publisher_asks(
    running: RunningBroker, endpoint: Endpoint
) -> None:
    answer = published(running, "api/llm", Upstash_Callback="http://hook.invalid/", Upstash_Method="DELETE")
    assert answer.status == 201
    [asked] = endpoint.wait_for(1)
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")


def test_its_name_inside_the_broker_is_no_destination(running: RunningBroker, endpoint: Endpoint) -> None:
    inner = "http://llm.qtasks.internal/v1/chat/completions"
    for answer in (
        published(running, inner, Upstash_Method="DELETE"),
        published(running, "http://hook.invalid/", Upstash_Callback=inner),
        published(running, inner, Upstash_Cron="* * * * *"),
    ):
        assert (answer.status, "publish to api/llm" in answer.json["error"]) == (400, True)
    assert endpoint.received == []


def test_where_the_model_is_stays_with_the_operator(
    running: RunningBroker, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.close()
    place = endpoint.url.removeprefix("http://")
    token = running.broker.settings.credentials[0].token
    for asked in (ASKED, {**ASKED, "stream": True}):
        answer = ask("POST", f"{running.url}/llm/v1/chat/completions", token=token, body=json.dumps(asked).encode())
        assert answer.status == 502
        assert "127.0.0.1" not in answer.body.decode()
    assert place.partition(":")[2] in caplog.text
    message_id = published(running, "api/llm", Upstash_Callback="http://hook.invalid/").json["messageId"]
    error = running.wait_for(State.RETRY, message_id).error or ""
    assert "the language model" in error
    assert place not in error


# --- what refusals and failures tell


async def test_a_refusal_at_delivery_names_the_address_in_the_operators_log_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def inner(host: str) -> list[str]:
        return ["10.1.2.3"]

    transport = HttpTransport(DestinationPolicy("public"), resolve=inner)
    outcomes = [await transport.send(request(f"http://db{number}.internal/")) for number in range(20)]
    await transport.close()
    for outcome in outcomes:
        assert isinstance(outcome, Failure)
        assert "a private address" in outcome.error
        assert "10.1.2.3" not in outcome.error
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith("db0.internal:80 resolves to 10.1.2.3: ")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(errno.ETIMEDOUT, "Connect call failed ('10.1.2.3', 80)"), "Connection timed out"),
        (OSError(errno.EHOSTUNREACH, "Connect call failed ('10.1.2.3', 80)"), "No route to host"),
        (OSError("Multiple exceptions: [Errno 110] Connect call failed ('10.1.2.3', 80), ..."), "for several reasons"),
    ],
)
def test_the_systems_reason_is_given_without_the_address(error: OSError, words: str) -> None:
    key = aiohttp.client_reqrep.ConnectionKey("db.internal", 80, False, True, None, None, None)
    failure = failure_of(aiohttp.ClientConnectorError(key, error), "db.internal:80", sent=False)
    assert failure.error == f"no connection to db.internal:80: {failure.error.rpartition(': ')[2]}"
    assert words in failure.error
    assert "10.1.2.3" not in failure.error


@pytest.mark.parametrize("addresses", [["127.0.0.2"], ["127.0.0.2", "::1"], ["127.0.0.2", "127.0.0.3"]])
async def test_a_connection_that_fails_does_not_name_the_address(addresses: list[str]) -> None:
    async def resolve(host: str) -> list[str]:
        return addresses

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        transport = HttpTransport(DestinationPolicy("local"), resolve=resolve)
        outcome = await transport.send(request(f"http://inner.test:{port}/"))
        await transport.close()
    assert isinstance(outcome, Failure)
    assert f"inner.test:{port}" in outcome.error
    assert not [address for address in addresses if address in outcome.error]
