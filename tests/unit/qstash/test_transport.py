"""The transports of the clients, over plain sockets and over httpx, against real sockets."""

import asyncio
import functools
import gzip
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from qtasks.errors import ApiError, BrokerUnreachable, InvalidCallError
from qtasks.qstash import AsyncQStash, QStash, Reply, Request
from qtasks.qstash.conversation import async_plain_transport, httpx_transport, plain_transport
from qtasks.qstash.conversation.httpx_transport import AsyncHttpxTransport, HttpxTransport
from qtasks.qstash.conversation.service_transport import AsyncServiceTransport, ServiceTransport
from tests.unit.qstash.conftest import TOKEN, ScriptedService

Send = Callable[[str], Reply]
LONG_S = 20.0


def sync_send(
    url: str, *, timeout_s: float = LONG_S, make: Callable[[], Any] = ServiceTransport, **parts: Any
) -> Reply:
    transport = make()
    try:
        reply: Reply = transport.send(request(url, **parts), timeout_s)
    finally:
        transport.close()
    return reply


def async_send(
    url: str, *, timeout_s: float = LONG_S, make: Callable[[], Any] = AsyncServiceTransport, **parts: Any
) -> Reply:
    async def run() -> Reply:
        transport = make()
        try:
            reply: Reply = await transport.send(request(url, **parts), timeout_s)
        finally:
            await transport.close()
        return reply

    return asyncio.run(run())


def request(url: str, method: str = "POST", headers: Any = (), body: bytes = b"") -> Request:
    return Request(method, url, headers, body)


@pytest.fixture(
    params=[
        sync_send,
        async_send,
        functools.partial(sync_send, make=HttpxTransport),
        functools.partial(async_send, make=AsyncHttpxTransport),
    ],
    ids=["sync", "async", "sync-httpx", "async-httpx"],
)
def send(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def silent() -> Iterator[str]:
    """Accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    """A free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_import_of_httpx_does_not_count_as_time_of_the_attempt(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0

    class SlowToOpen(HttpxTransport):
        def _opened(self, request: Request) -> Any:
            nonlocal now_s
            now_s += 2 * LONG_S
            return super()._opened(request)

    monkeypatch.setattr(httpx_transport, "time", SimpleNamespace(monotonic=lambda: now_s))
    service.answers.append(Reply(200, (), b"in time"))
    transport = SlowToOpen()
    assert transport.send(request(service.url), LONG_S).body == b"in time"
    transport.close()


def test_a_reply_comes_with_status_headers_and_body(send: Any, service: ScriptedService) -> None:
    service.answers.append(Reply(418, (("X-Kind", "pot"), ("X-Kind", "tea")), b"\x00short and stout"))
    reply = send(f"{service.url}/v2/x?y=%2F", headers=(("A", "b"), ("Label", "grün")), body=b"\xff")
    assert (reply.status, reply.body) == (418, b"\x00short and stout")
    assert [value for name, value in reply.headers if name.lower() == "x-kind"] == ["pot", "tea"]
    assert reply.header("x-kInd") == "pot"
    received = service.last()
    assert (received.method, received.target, received.body) == ("POST", "/v2/x?y=%2F", b"\xff")
    assert received.header("a") == "b"
    assert str(received.header("label")).encode("latin-1").decode() == "grün"


def test_a_refused_connection_was_surely_not_sent_and_says_what_to_start(send: Any, nobody: str) -> None:
    with pytest.raises(BrokerUnreachable) as caught:
        send(f"{nobody}/v2/publish/https://example.com?token=secret")
    assert str(caught.value) == (
        f"No answer from {nobody}: connection refused\n"
        "  fix         start a broker with `qtasks dev`, or set QSTASH_URL to a running broker"
    )
    assert caught.value.sent is False


def test_an_unknown_host_was_surely_not_sent(send: Any) -> None:
    with pytest.raises(BrokerUnreachable) as caught:
        send("http://no-such-host.invalid/v2/x")
    assert caught.value.sent is False
    assert str(caught.value).startswith("No answer from http://no-such-host.invalid: ")
    assert "QSTASH_URL" in str(caught.value)
    assert "qtasks dev" not in str(caught.value)


def test_silence_ends_with_the_time_and_may_have_been_heard(send: Any, silent: str) -> None:
    with pytest.raises(
        BrokerUnreachable, match=r"no answer within 0.05 s; the request may have been accepted"
    ) as caught:
        send(f"{silent}/v2/x", timeout_s=0.05)
    assert caught.value.sent is True


def test_a_connection_cut_before_the_answer_may_have_been_heard(send: Any, service: ScriptedService) -> None:
    service.answers.append(lambda handler: handler.hang_up())
    with pytest.raises(BrokerUnreachable, match="may have been accepted") as caught:
        send(f"{service.url}/v2/x")
    assert caught.value.sent is True


def test_a_connection_cut_in_the_middle_of_an_answer_is_no_answer(send: Any, service: ScriptedService) -> None:
    def half(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.hang_up()

    service.answers.append(half)
    with pytest.raises(BrokerUnreachable) as caught:
        send(f"{service.url}/v2/x")
    assert caught.value.sent is True


def test_an_answer_that_drips_is_bounded_in_time(send: Any, service: ScriptedService) -> None:
    stop = threading.Event()

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b".")
            handler.wfile.flush()
            if stop.wait(0.02):
                break
        handler.hang_up()

    service.answers.append(drip)
    try:
        with pytest.raises(BrokerUnreachable, match="no answer within"):
            send(f"{service.url}/v2/x", timeout_s=0.2)
    finally:
        stop.set()


def test_a_reply_is_bounded_in_size_even_when_it_was_packed_small(
    send: Any, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (httpx_transport, plain_transport, async_plain_transport):
        monkeypatch.setattr(module, "MAX_REPLY", 1000)
    packed = gzip.compress(b"0" * 1_000_000)
    service.answers.append(Reply(200, (("Content-Encoding", "gzip"),), packed))
    with pytest.raises(BrokerUnreachable, match="larger than 1000 bytes"):
        send(f"{service.url}/v2/x")


def test_redirects_are_answers(send: Any, service: ScriptedService) -> None:
    service.answers.append(Reply(307, (("Location", "/elsewhere"),), b""))
    assert send(f"{service.url}/v2/x").status == 307
    assert len(service.received) == 1


@pytest.mark.parametrize("header", [("A B", "c"), ("A", "b\nc"), ("Ä", "b")])
def test_what_http_cannot_carry_is_the_callers_mistake(
    send: Any, service: ScriptedService, header: tuple[str, str]
) -> None:
    with pytest.raises(InvalidCallError, match="cannot be sent"):
        send(f"{service.url}/v2/x", headers=(header,))


def test_proxies_of_the_environment_are_not_asked_for_a_service_on_this_machine(
    send: Any, service: ScriptedService, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", nobody)
    monkeypatch.setenv("ALL_PROXY", nobody)
    assert send(f"{service.url}/v2/x").status == 200
    assert send(f"{service.url.replace('127.0.0.1', 'localhost')}/v2/x").status == 200
    with pytest.raises(BrokerUnreachable, match="connection refused"):
        send("http://example.test/v2/x")


def test_a_proxy_of_the_environment_carries_everything_else(
    send: Any, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", service.url)
    send("http://qstash.test/v2/x")
    assert service.last().target == "http://qstash.test/v2/x"


def test_no_netrc_replaces_the_token(
    send: Any, service: ScriptedService, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    send(f"{service.url}/v2/x", headers=(("Authorization", "Bearer TOKEN"),))
    assert service.last().header("Authorization") == "Bearer TOKEN"


@pytest.mark.parametrize("make", [ServiceTransport, HttpxTransport])
def test_connections_are_kept_and_closing_twice_is_fine(service: ScriptedService, make: Callable[[], Any]) -> None:
    ports = []

    def answer(handler: Any) -> None:
        ports.append(handler.client_address[1])
        handler.reply(OK)

    service.answers += [answer] * 3
    transport = make()
    for _ in range(3):
        transport.send(request(f"{service.url}/v2/x"), LONG_S)
    transport.close()
    transport.close()
    assert len(set(ports)) == 1
    with pytest.raises(RuntimeError, match="closed"):
        transport.send(request(f"{service.url}/v2/x"), LONG_S)


OK = Reply(200, (), b"{}")


def test_threads_share_one_client(service: ScriptedService) -> None:
    with QStash(TOKEN, base_url=service.url, retry=False) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: client.message.cancel(f"m{n}"), range(40)))
    assert {received.target for received in service.received} == {f"/v2/messages/m{n}" for n in range(40)}


@pytest.mark.anyio
async def test_closed_transports_leave_nothing_behind_in_a_loop_that_lives_on(service: ScriptedService) -> None:
    transport = AsyncHttpxTransport()
    await transport.send(request(f"{service.url}/v2/x"), LONG_S)
    assert len(transport._by_loop) == 1
    await transport.close()
    await transport.close()
    assert len(transport._by_loop) == 0


def test_one_async_client_serves_one_event_loop_after_another(service: ScriptedService) -> None:
    client = AsyncQStash(TOKEN, base_url=service.url, retry=False)

    async def use(last: bool) -> None:
        await client.message.cancel("m")
        if last:
            await client.close()
            with pytest.raises(RuntimeError, match="closed"):
                await client.message.cancel("m")

    asyncio.run(use(last=False))
    asyncio.run(use(last=True))
    assert len(service.received) == 2


@pytest.mark.anyio
async def test_many_async_calls_queue_for_few_connections(service: ScriptedService) -> None:
    ports: set[int] = set()

    def answer(handler: Any) -> None:
        ports.add(handler.client_address[1])
        handler.reply(OK)

    service.answers += [answer] * 60
    async with AsyncQStash(TOKEN, base_url=service.url, retry=False) as client, anyio.create_task_group() as group:
        for number in range(60):
            group.start_soon(client.message.cancel, f"m{number}")
    assert len(service.received) == 60
    assert len(ports) <= async_plain_transport.MAX_CONNECTIONS


@pytest.mark.anyio
async def test_answers_that_take_long_hold_up_nobody(service: ScriptedService) -> None:
    """Ten models think; a publish passes them."""
    waiting = threading.Barrier(11)
    completion = b'{"id":"c","choices":[],"created":1,"model":"m","object":"chat.completion","usage":%s}'
    usage = b'{"completion_tokens":1,"prompt_tokens":1,"total_tokens":2}'

    def think(handler: Any) -> None:
        waiting.wait(LONG_S)
        handler.reply(Reply(200, (), completion % usage))

    def answer(handler: Any) -> None:
        thinking = "chat" in handler.path
        think(handler) if thinking else (handler.reply(OK), waiting.wait(LONG_S))

    service.answers += [answer] * 11
    async with AsyncQStash(TOKEN, base_url=service.url, retry=False) as client, anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(lambda: client.chat.prompt(user="?", model="m"))
        with anyio.fail_after(LONG_S):
            await client.message.cancel("m")


def test_a_forked_child_makes_connections_of_its_own(service: ScriptedService) -> None:
    script = f"""
        import os
        from qtasks.qstash import QStash
        client = QStash("t", base_url={service.url!r}, retry=False)
        client.message.cancel("before")
        child = os.fork()
        client.message.cancel("child" if child == 0 else "parent")
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        client.close()
    """
    ports: dict[str, int] = {}

    def answer(handler: Any) -> None:
        ports[handler.path.rpartition("/")[2]] = handler.client_address[1]
        handler.reply(OK)

    service.answers += [answer] * 3
    run_python(script)
    assert ports["before"] == ports["parent"] != ports["child"]


def test_a_request_over_plain_http_imports_neither_httpx_nor_anyio_nor_asyncio(service: ScriptedService) -> None:
    run_python(
        f"""
        import sys
        from qtasks.qstash import AsyncQStash, QStash
        client = QStash("t", base_url={service.url!r}, retry=False)
        AsyncQStash("t")
        client.message.cancel("m")
        heavy = {{"httpx", "anyio", "asyncio", "email", "ssl", "fastapi", "pydantic"}} & set(sys.modules)
        assert not heavy, heavy
        client.close()
        """
    )


def run_python(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_web_page_in_place_of_a_service_is_told_apart(service: ScriptedService) -> None:
    service.answers.append(Reply(200, (("Content-Type", "text/html"),), b"<html>Welcome</html>"))
    with QStash(TOKEN, base_url=service.url) as client, pytest.raises(ApiError) as caught:
        client.message.get("m")
    assert str(caught.value).startswith(
        f"{service.url} answered 200, but the reply is not that of a QStash service (JSONDecodeError"
    )
    assert "<html>Welcome</html>" in str(caught.value)
    assert caught.value.fix == "check that QSTASH_URL names a QStash service"
