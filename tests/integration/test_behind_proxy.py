"""A broker and a dispatcher behind nginx, with the configuration that the documentation gives."""

from __future__ import annotations

import itertools
import json
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support.page_code import DOCS, blocks
from tests.support.process import PATIENCE_S, soon
from tests.support.proxy_server import NGINX, ProxyServer, make_certificate
from tests.support.servers import BrokerServer, Dispatcher, free_port

pytestmark = pytest.mark.skipif(
    NGINX is None and os.environ.get("CI") != "true", reason="there is no nginx here; on Debian: nginx-light"
)

PAGE = (DOCS / "operations" / "proxy.md").read_text(encoding="utf-8")
SITE, BELOW_A_PATH = blocks(PAGE, "nginx")
QUEUE, APP = "queue.example.com", "app.example.com"
MIB = 1024 * 1024
NUMBERS = itertools.count(1000)
OF_A_TASK = {"Qtasks-Interrupted-For": "1h"}
"""What the framework asks for with each call."""
TASKS = """
import os
from qtasks import task

@task
def add(a: int, b: int) -> int:
    return a + b

@task
async def length(text: str) -> int:
    return len(text)
"""


@dataclass(frozen=True)
class Behind:
    """The servers, the proxy in front of them, and a client that trusts its certificate."""

    broker: BrokerServer
    dispatcher: Dispatcher
    proxy: ProxyServer
    client: httpx.Client

    def call(self, task: str, *args: object) -> str:
        """Publish a call through the proxy; the id of its message."""
        url = f"/v2/publish/{self.proxy.url(APP)}/qtasks/{task}"
        answer = self.client.post(url, content=envelope(*args), headers=OF_A_TASK)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["messageId"])

    def call_many(self, task: str, count: int, *args: object) -> list[str]:
        """Publish calls as a batch through the proxy; the ids of their messages."""
        destination = f"{self.proxy.url(APP)}/qtasks/{task}"
        bodies = [envelope(*args).decode() for _ in range(count)]
        batch = [{"destination": destination, "headers": OF_A_TASK, "body": body} for body in bodies]
        answer = self.client.post("/v2/batch", json=batch)
        assert answer.status_code == 201, answer.text
        return [each["messageId"] for each in answer.json()]

    def asks(self, path: str) -> Any:
        """What the console says, through the proxy."""
        return self.client.get(path).raise_for_status().json()


def envelope(*args: object) -> bytes:
    return json.dumps({"v": 1, "id": f"call_{next(NUMBERS)}", "args": args, "kwargs": {}}).encode()


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    folder = tmp_path_factory.mktemp("proxied")
    (folder / "tasks.py").write_text(TASKS)
    ports, app_port = {QUEUE: free_port(), APP: free_port()}, free_port()
    certificate = make_certificate(folder)
    with BrokerServer(folder, "--allow-host", QUEUE, SSL_CERT_FILE=str(certificate)) as broker:
        site = SITE.replace("location / {", BELOW_A_PATH + "location / {", 1)
        servers = {8080: broker.started().port, 8000: app_port}
        with ProxyServer(folder, site, certificate=certificate, ports=ports, behind=servers) as proxy:
            queue_url, base_url = proxy.started().url(QUEUE), f"{proxy.url(APP)}/qtasks"
            outside = {"QSTASH_URL": queue_url, "QTASKS_BASE_URL": base_url, "SSL_CERT_FILE": str(certificate)}
            headers = {"Authorization": f"Bearer {broker.token}"}
            trust = ssl.create_default_context(cafile=certificate)
            with (
                Dispatcher(folder, "--workers", "2", broker=broker, port=app_port, **outside) as dispatcher,
                httpx.Client(base_url=proxy.url(QUEUE), headers=headers, verify=trust, timeout=PATIENCE_S) as client,
            ):
                yield Behind(broker, dispatcher.started(), proxy, client)
                assert "Traceback" not in broker.output + dispatcher.output


def test_a_task_runs_and_its_result_comes_back(behind: Behind) -> None:
    assert behind.dispatcher.send("add", "2", "3", "--wait").splitlines()[-1] == "5"


def test_a_message_of_one_mebibyte_and_a_batch_of_three_pass(behind: Behind) -> None:
    room = MIB - len(envelope("").decode()) - 8
    message_id = behind.call("length", "x" * room)
    soon(lambda: behind.broker.states(message_id)[-1] == "DELIVERED", "the large message is delivered")
    *_, last = behind.call_many("length", 3, "y" * (MIB - 1000))
    soon(lambda: behind.broker.states(last)[-1] == "DELIVERED", "the batch is delivered")


def test_deliveries_travel_in_bundles_which_nginx_does_not_hold_back(behind: Behind) -> None:
    def in_a_bundle() -> bool:
        ids = behind.call_many("add", 40, 1, 2)
        soon(lambda: all(behind.broker.states(one)[-1] == "DELIVERED" for one in ids), "all are delivered")
        timings = [behind.asks(f"/console/api/messages/{one}")["attempts"][-1]["timing"] for one in ids]
        return any(timing.get("bundled") for timing in timings)

    soon(in_a_bundle, "some travel together")
    [endpoint] = [one for one in behind.asks("/console/api/endpoints") if one["isDispatcher"]]
    assert endpoint["bundles"]["refusedUntilMs"] is None
    assert endpoint["bundles"]["slots"] > 0


@pytest.mark.parametrize("path", ["", "/jobs"])
def test_the_live_stream_of_the_console_arrives_as_it_happens(behind: Behind, path: str) -> None:
    with behind.client.stream("GET", f"{path}/console/api/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == "retry: 2000"
        message_id = behind.call("add", 4, 5)
        for line in lines:
            if line.startswith("data: ") and message_id in line and '"DELIVERED"' in line:
                break
        else:
            raise AssertionError("the stream ended before the message was delivered")


def test_the_broker_answers_to_its_public_name_and_to_no_other(behind: Behind) -> None:
    statuses = {host: behind.client.get("/v2/keys", headers={"Host": host}).status_code for host in (QUEUE, APP)}
    assert statuses == {QUEUE: 200, APP: 421}


def test_a_session_of_the_console_has_a_cookie_for_https_only(behind: Behind) -> None:
    answer = behind.client.post(
        "/console/api/session", json={"token": behind.broker.token}, headers={"Authorization": ""}
    )
    assert answer.status_code == 200, answer.text
    assert "; Secure" in answer.headers["Set-Cookie"]


def test_an_application_that_is_away_behind_the_proxy_costs_no_retry(behind: Behind) -> None:
    """The proxy answers 502, without the header of a dispatcher. This test is the last one: it stops the dispatcher."""
    behind.dispatcher.send("add", "2", "3", "--wait")  # so the broker knows that a dispatcher is behind this address
    assert behind.dispatcher.stop() == 0
    message_id = behind.call("add", 1, 1)
    soon(lambda: "RETRY" in behind.broker.states(message_id), "an attempt has met the proxy alone")
    [first, *_] = [entry for entry in behind.broker.log(message_id) if entry["state"] == "ERROR"]
    assert "502" in first["error"]
    assert "no retry is spent" in first["error"]
