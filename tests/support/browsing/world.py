"""A broker with a console, an application whose tasks it calls, and something of everything that a page can show."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel

from qtasks import NonRetryable, QTasks
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.settings import BrokerSettings
from qtasks.protocol.messages import State
from tests.support.api_client import ApiClient, Lines
from tests.support.bundles import behind_uvicorn
from tests.support.running import Endpoint, RunningBroker
from tests.support.tasks import KEYS, application

OPERATOR = "token-of-the-operator"


def _lines(headers: dict[str, str]) -> Lines:
    names = {name: name.replace("_", "-") for name in headers}
    return tuple((f"{'' if name.startswith('Qtasks') else 'Upstash-'}{names[name]}", headers[name]) for name in headers)


class Address(BaseModel):
    """An argument with members."""

    city: str
    floors: list[int] = []


class Account:
    """A user of a running broker, and what a publisher does. Without `user`, a new one whose account is empty."""

    def __init__(self, broker: RunningBroker, user: AccountCredentials | None = None) -> None:
        self.broker = broker
        user = user or broker.new_user()
        self.name, self.token = user.name, user.token or ""
        self._client = ApiClient(int(broker.url.rpartition(":")[2]), user)

    def ask(self, method: str, path: str, body: Any = None, headers: Lines = ()) -> Any:
        """The JSON that the API answers; an error fails."""
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = self._client.ask(method, path, headers, content)
        assert 200 <= answer.status < 300, answer
        return answer.json if answer.body else None

    def publish(self, destination: str, body: bytes = b"{}", /, **headers: str) -> str:
        """Publish a message; `headers` are those of QStash without ``Upstash-``, or ours. The message's id."""
        lines = _lines(headers)
        path = f"/v2/enqueue/{headers['Queue']}/" if "Queue" in headers else "/v2/publish/"
        published = self.ask(
            "POST", path + destination, body, tuple(line for line in lines if line[0] != "Upstash-Queue")
        )
        return str(published["messageId"])

    def schedule(self, destination: str, cron: str, **headers: str) -> str:
        """Create a schedule; its id."""
        body, lines = b'{"report": 12345678901234567890}', _lines({"Cron": cron, **headers})
        return str(self.ask("POST", f"/v2/schedules/{destination}", body, lines)["scheduleId"])


@dataclass
class World:
    """A broker and the application `tasks` of its operator; `endpoint` takes plain messages."""

    broker: RunningBroker
    tasks: QTasks
    endpoint: Endpoint
    operator: Account
    taken: list[dict[str, Any]] = field(default_factory=list)
    """The arguments of each run of the task ``configure``."""

    @property
    def url(self) -> str:
        return self.broker.url


def _tasks(
    app: FastAPI, broker: RunningBroker, base_url: str, gate: threading.Event, taken: list[dict[str, Any]]
) -> QTasks:
    tasks = application(url=broker.url, token=OPERATOR, base_url=base_url)
    app.include_router(tasks.router, prefix="/qtasks")

    @tasks.task(search="user_id")
    def send_welcome_mail(address: str, user_id: int) -> str:
        return f"sent to {address}"

    @tasks.task(retries=3)
    def charge_card(order: int) -> None:
        raise TimeoutError(f"the gateway did not answer for order {order}")

    @tasks.task
    def refund(order: int, reason: str) -> None:
        raise NonRetryable(f"order {order} was never paid")

    @tasks.task
    def import_products(file: str) -> None:
        gate.wait()

    @tasks.cron("30 2 * * *", tz="Europe/Berlin")
    def clean_up() -> None: ...

    @tasks.task(retries=0)
    def configure(
        name: str,
        number: int,
        urgent: bool,
        tags: list[str],
        address: Address,
        colour: Literal["red", "green"] = "red",
        note: str | None = None,
    ) -> None:
        """Take one argument of each kind."""
        taken.append({**locals(), "taken": None})

    return tasks


@contextmanager
def world(path: str = ":memory:") -> Iterator[World]:
    """A broker with its store at `path`, whose only token is `OPERATOR`, and an application, both behind sockets."""
    credentials = AccountCredentials("shop", OPERATOR, KEYS)
    broker = RunningBroker(BrokerSettings(path=path, credentials=(credentials,)))
    endpoint, app, gate = Endpoint(), FastAPI(), threading.Event()
    try:
        with behind_uvicorn(app) as served:
            taken: list[dict[str, Any]] = []
            tasks = _tasks(app, broker, served.url, gate, taken)
            try:
                yield World(broker, tasks, endpoint, Account(broker, credentials), taken)
            finally:
                gate.set()
                broker.stop()
                tasks.close()
    finally:
        endpoint.close()


def fill(made: World) -> dict[str, str]:
    """Something of everything for the operator. Ids by what they show."""
    send, broker, operator, url = made.tasks.tasks, made.broker, made.operator, made.endpoint.url
    calls = {
        "delivered": send["send_welcome_mail"].delay("ada@example.com", user_id=42),
        "failed": send["refund"].delay(1815, "changed their mind"),
        "retrying": send["charge_card"].delay(1843),
        "running": send["import_products"].delay("products.csv"),
        "scheduled": send["send_welcome_mail"].using(delay="3h").delay("bob@example.com", user_id=7),
    }
    ids = {name: str(call.message_id) for name, call in calls.items()}
    broker.wait_for(State.DELIVERED, ids["delivered"])
    broker.wait_for(State.FAILED, ids["failed"])
    broker.wait_for(State.RETRY, ids["retrying"])
    broker.wait_for(State.ACTIVE, ids["running"])
    welcome = f"{made.tasks.settings.base_url}/send_welcome_mail"
    [refused] = operator.ask("GET", "/console/api/failures?filter=task:refund")["failures"]
    ids["failure"], ids["task"] = refused["fingerprint"], "configure"
    made.tasks.schedules.sync()
    ids["schedule"] = operator.schedule(welcome, "CRON_TZ=Europe/Berlin 0 9 * * MON-FRI", Qtasks_Interrupted_For="1h")
    operator.ask("PATCH", f"/v2/schedules/{operator.schedule(url, '*/5 * * * *')}/pause")
    operator.ask("POST", "/v2/queues", {"queueName": "reports", "parallelism": 2})
    operator.ask("POST", "/v2/queues/reports/pause")
    operator.publish(url, Queue="reports")
    operator.publish(
        url, Delay="1h", Flow_Control_Key="openai", Flow_Control_Value="rate=100, period=1m, parallelism=5"
    )
    endpoints = [{"url": f"{url}/orders", "name": "orders"}, {"url": f"{url}/audit"}]
    operator.ask("POST", "/v2/topics/order-placed/endpoints", {"endpoints": endpoints})
    return ids
