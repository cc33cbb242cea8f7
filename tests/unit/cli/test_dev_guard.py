"""The guard of the application under `qtasks dev`: which requests of browsers pass."""

from __future__ import annotations

from typing import Any

import pytest

from qtasks.cli.serving.dev_guard import DevGuard
from qtasks.tasks.ports import Receive, Scope, Send
from tests.support.tasks import request

pytestmark = pytest.mark.anyio


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that accepts everything."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


GUARD = DevGuard(application, ["Tunnel.example"])


async def status(path: str = "/page", method: str = "POST", host: str = "localhost:8000", **headers: str) -> int:
    lines = {"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return (await request(GUARD, path, method=method, headers=lines)).status


async def test_a_page_that_is_a_file_can_be_allowed() -> None:
    lines = {"Host": "localhost", "Origin": "null", "Sec-Fetch-Site": "cross-site"}
    guard = DevGuard(application, ["null"])
    assert [(await request(each, "/page", headers=lines)).status for each in (GUARD, guard)] == [403, 200]


async def test_what_is_no_browser_passes() -> None:
    assert await status() == 200
    assert await status("/qtasks/add") == 200


async def test_a_link_or_a_login_elsewhere_leads_back_to_the_application() -> None:
    assert await status(method="GET", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate") == 200


async def test_a_form_of_another_site_does_not_pass() -> None:
    assert await status(Origin="https://evil.example", Sec_Fetch_Site="cross-site") == 403
    assert await status(Sec_Fetch_Site="cross-site") == 403


async def test_a_page_that_does_not_tell_its_origin_passes_where_the_browser_says_that_it_is_the_same() -> None:
    assert await status(Origin="null", Sec_Fetch_Site="same-origin") == 200
    assert await status(Origin="null", Sec_Fetch_Site="cross-site") == 403
    assert await status(Origin="null") == 403


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:5173", "https://localhost", "http://[::1]:3000", "http://127.8.8.8", "https://tunnel.example:8"],
)
async def test_pages_of_this_machine_and_of_allowed_names_pass(origin: str) -> None:
    assert await status(Origin=origin) == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost@evil.example", "http://[", "localhost", "", "//localhost.evil"]
)
async def test_every_other_origin_is_refused(origin: str) -> None:
    assert await status(method="GET", Origin=origin) == 403


async def test_a_request_with_no_host_is_refused() -> None:
    assert (await request(GUARD, "/page")).status == 400


@pytest.mark.parametrize(
    ("lines", "event"),
    [
        ([(b"host", b"localhost"), (b"origin", b"http://localhost:5173")], "websocket.accept"),
        ([(b"host", b"localhost"), (b"origin", b"https://evil.example")], "websocket.close"),
        ([(b"host", b"evil.example"), (b"origin", b"http://evil.example")], "websocket.close"),
        ([(b"host", b"localhost"), (b"host", b"evil.example")], "websocket.close"),
    ],
)
async def test_a_websocket_is_judged_as_a_request(lines: list[tuple[bytes, bytes]], event: str) -> None:
    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    await GUARD({"type": "websocket", "path": "/live", "headers": lines}, receive, send)
    assert sent == [event]
