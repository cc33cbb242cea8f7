"""Calls that are added to `BackgroundTasks` are checked at once, and sent when the response has gone."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Any

import fastapi
import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from qtasks import BackgroundTasks, TaskRouter
from qtasks.errors import ArgumentsError, BrokerUnreachable, ConfigurationError, DefinitionError, PartlyRefused
from tests.unit.tasks.manual_broker import ManualBroker

pytestmark = pytest.mark.anyio


class Shop:
    """A web application with a task; `steps` is what happens, in order."""

    def __init__(self, broker: ManualBroker, caplog: pytest.LogCaptureFixture) -> None:
        self.broker = broker
        self.steps: list[str] = []
        self.requests = 0
        self.error: Exception | None = None
        send = broker.embedded.transport.send

        def noted(request: Any, timeout_s: float) -> Any:
            self.steps.append("sent")
            if self.error is not None:
                raise self.error
            return send(request, timeout_s)

        broker.embedded.transport.send = noted  # type: ignore[method-assign]

        @broker.tasks.task
        def mail(order: int, password: str = "") -> None: ...

        self.mail = mail

    async def get(self, view: Callable[..., Any] | Starlette) -> httpx.Response:
        """The response of a path operation, whose background has ended."""
        app: Any = view
        if not isinstance(view, Starlette):
            app = FastAPI()
            app.get("/")(view)

        async def noting(scope: Any, receive: Any, send: Any) -> None:
            async def note(message: Any) -> None:
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    self.steps.append("responded")

            await app(scope, receive, note)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(noting), base_url="http://shop") as client:
            return await client.get("/")

    @property
    def calls(self) -> list[tuple[str, list[Any], dict[str, Any]]]:
        return [
            (message.task, message.envelope["args"], message.envelope["kwargs"]) for message in self.broker.messages
        ]


@pytest.fixture
def shop(broker: ManualBroker, caplog: pytest.LogCaptureFixture) -> Shop:
    return Shop(broker, caplog)


async def test_calls_are_sent_in_one_request_when_the_response_has_gone(shop: Shop) -> None:
    def view(background: BackgroundTasks) -> str:
        background.add_task(shop.mail, 1)
        background.add_task(shop.mail, order=2, password="x")
        shop.steps.append("ran")
        return "ordered"

    response = await shop.get(view)
    assert (response.status_code, response.json()) == (200, "ordered")
    assert shop.steps == ["ran", "responded", "sent"]
    assert shop.calls == [("mail", [1], {}), ("mail", [], {"order": 2, "password": "x"})]


async def test_an_async_view_and_its_dependencies_share_the_calls_of_their_request(shop: Shop) -> None:
    def logged(background: BackgroundTasks) -> None:
        background.add_task(shop.mail, 1)

    async def view(tasks: BackgroundTasks, plain: fastapi.BackgroundTasks, _: None = Depends(logged)) -> str:
        plain.add_task(shop.steps.append, "plain")
        tasks.add_task(shop.mail, 2)
        return "ordered"

    for _ in range(2):
        await shop.get(view)
    assert sorted(shop.steps) == ["plain", "plain", "responded", "responded", "sent", "sent"]
    assert [args for _, args, _ in shop.calls] == [[1], [2]] * 2


async def test_a_response_with_a_background_of_its_own_drops_no_call(shop: Shop) -> None:
    def view(background: BackgroundTasks) -> JSONResponse:
        background.add_task(shop.mail, 1)
        return JSONResponse({}, background=BackgroundTask(shop.steps.append, "own"))

    await shop.get(view)
    assert shop.steps == ["responded", "own", "sent"]
    assert shop.calls == [("mail", [1], {})]


async def test_responses_of_starlette_take_it(shop: Shop) -> None:
    async def view(request: Any) -> PlainTextResponse:
        background = BackgroundTasks()
        background.add_task(shop.mail, 1)
        return PlainTextResponse("ordered", background=background)

    assert (await shop.get(Starlette(routes=[Route("/", view)]))).text == "ordered"
    assert shop.steps == ["responded", "sent"]


async def test_each_call_is_sent_once(shop: Shop) -> None:
    background = BackgroundTasks()
    background.add_task(shop.mail, 1)
    await background()
    await background()
    assert shop.calls == [("mail", [1], {})]


async def test_the_calls_of_two_applications_go_to_their_brokers(shop: Shop) -> None:
    other = ManualBroker()

    @other.tasks.task
    async def bill(order: int) -> None: ...

    background = BackgroundTasks()
    background.add_task(bill, 1)
    background.add_task(shop.mail, 2)
    await background()
    assert [message.task for message in (*other.messages, *shop.broker.messages)] == ["bill", "mail"]
    other.close()


# --- what cannot be sent


@pytest.mark.parametrize("add", [lambda b, shop: b.add_task(shop.mail, "x"), lambda b, shop: b.add_task(shop.mail)])
async def test_an_argument_that_does_not_fit_is_an_error_of_the_view(shop: Shop, add: Any) -> None:
    def view(background: BackgroundTasks) -> str:
        add(background, shop)
        return "ordered"

    with pytest.raises(ArgumentsError):
        await shop.get(view)
    assert "sent" not in shop.steps


def test_a_function_that_is_not_a_task_is_an_error_at_once(shop: Shop) -> None:
    def plain(order: int) -> None: ...

    for function in (plain, shop.mail.function, print, shop.mail.s(1), "mail"):
        with pytest.raises(DefinitionError, match="is not a task") as caught:
            BackgroundTasks().add_task(function, 1)  # type: ignore[arg-type]
        assert caught.value.code == "QT110"


def test_a_task_of_a_router_that_no_application_includes_is_an_error_at_once() -> None:
    router = TaskRouter()

    @router.task
    def lost() -> None: ...

    with pytest.raises(ConfigurationError, match="include_router"):
        BackgroundTasks().add_task(lost)


def test_a_call_that_is_too_large_is_an_error_at_once(shop: Shop) -> None:
    with pytest.raises(ArgumentsError, match="1,048,576 are allowed"):
        BackgroundTasks().add_task(shop.mail, 1, password="x" * 1024 * 1024)


async def test_nothing_is_sent_if_the_view_raises(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    async def view(background: BackgroundTasks) -> None:  # a thread would keep what it ran last
        background.add_task(shop.mail, 1)
        raise HTTPException(409)

    assert (await shop.get(view)).status_code == 409
    assert "sent" not in shop.steps
    gc.collect()
    assert "calls of mail were not sent" in caplog.text


async def test_a_broker_that_is_away_is_logged_with_the_calls_and_raised(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def view(background: BackgroundTasks) -> str:
        background.add_task(shop.mail, 1, password="hunter2")
        return "ordered"

    shop.error = httpx.ConnectError("nobody there")
    with pytest.raises((BrokerUnreachable, httpx.ConnectError)):
        await shop.get(view)
    assert shop.steps[0] == "responded"
    (entry,) = [record for record in caplog.records if record.name == "qtasks.background"]
    assert entry.levelno == logging.ERROR
    assert "mail(order=1, password=***) was not sent" in entry.getMessage()
    assert entry.__dict__["task"] == "mail"
    assert "hunter2" not in caplog.text


async def test_a_refused_call_leaves_the_others_sent(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    @shop.broker.tasks.task(redact=True)
    def secret(text: str) -> None: ...

    @shop.broker.tasks.send_middleware
    def refusing(message: Any) -> Any:
        if message.envelope.args == [13]:
            raise RuntimeError("unlucky")
        yield message

    background = BackgroundTasks()
    for number in (1, 13, 3):
        background.add_task(shop.mail, number)
    background.add_task(secret, "refuse this")
    shop.broker.refuses = "refuse this"
    with pytest.raises((RuntimeError, PartlyRefused)):
        await background()
    assert [args for _, args, _ in shop.calls] == [[1], [3]]
    lost = [record.getMessage() for record in caplog.records if record.name == "qtasks.background"]
    assert [line.partition(" was")[0] for line in lost] == ["mail(order=13)", "secret(...)"]


async def test_a_cancelled_end_of_a_request_is_logged_with_its_calls(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    background = BackgroundTasks()
    background.add_task(shop.mail, 1)
    ending = asyncio.ensure_future(background())
    asyncio.get_running_loop().call_soon(ending.cancel)
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert "mail(order=1) was not sent" in caplog.text
