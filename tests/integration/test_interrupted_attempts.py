"""What the transport says of an attempt without an answer: who is to blame, and what is tried again. Real sockets."""

import asyncio
import errno
import resource
import socket
from collections.abc import AsyncIterator, Sequence
from typing import cast

import aiohttp
import pytest

from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.broker.transport import response
from qtasks.broker.transport.asgi_exchange import AsgiApp, AsgiEvent
from qtasks.broker.transport.attempt_failures import failure_of
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.broker.transport.http_transport import HttpTransport
from qtasks.broker.transport.in_process import AsgiTransport
from qtasks.protocol.messages import MAX_BODY, Response
from tests.support.hostile import OK, Behaviour, Connection, HostileServer, answering

pytestmark = pytest.mark.anyio

METHODS = ["GET", "PUT", "DELETE", "POST"]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both loops: the broker runs on uvloop where the platform has it."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def transport() -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(DestinationPolicy("local"))
    yield transport
    await transport.close()


def request(url: str, method: str = "POST", body: bytes = b"", timeout_ms: int = 5000) -> DeliveryRequest:
    return DeliveryRequest(url, method, (), body, timeout_ms)


def failure(outcome: Response | Failure) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome


def blame(outcome: Response | Failure) -> str:
    """Who is to blame, in words."""
    answer = failure(outcome)
    if not answer.attempted:
        return "this machine"
    if not answer.interrupted:
        return "the endpoint"
    return "an interruption in the middle of a run" if answer.mid_run else "an interruption"


# -- who is to blame -------------------------------------------------------------------------------------------------


async def closes_at_once(connection: Connection) -> None:
    connection.reset()


async def closes_after_the_request(connection: Connection) -> None:
    await connection.request()


async def resets_after_the_request(connection: Connection) -> None:
    await connection.request()
    connection.reset()


async def closes_in_the_head(connection: Connection) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Le")


async def closes_in_the_body(connection: Connection) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")


async def resets_in_the_body(connection: Connection) -> None:
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    connection.reset()


async def never_answers(connection: Connection) -> None:
    await connection.request()
    await connection.wait_until_closed()


@pytest.mark.parametrize(
    ("behave", "size", "blamed"),
    [
        (closes_at_once, 16 * MAX_BODY, "an interruption"),
        (closes_after_the_request, 0, "an interruption in the middle of a run"),
        (closes_after_the_request, 100, "an interruption in the middle of a run"),
        (closes_after_the_request, MAX_BODY + 1, "an interruption in the middle of a run"),
        (resets_after_the_request, 100, "an interruption in the middle of a run"),
        (closes_in_the_head, 100, "an interruption in the middle of a run"),
        (closes_in_the_body, 100, "the endpoint"),
        (resets_in_the_body, 100, "the endpoint"),
        (never_answers, 100, "the endpoint"),
    ],
)
async def test_an_endpoint_that_goes_away_before_its_answer_interrupts_and_one_that_began_or_is_silent_does_not(
    transport: HttpTransport, behave: Behaviour, size: int, blamed: str
) -> None:
    async with HostileServer(behave) as server:
        timeout_ms = 200 if behave is never_answers else 5000
        assert blame(await transport.send(request(server.url, body=b"x" * size, timeout_ms=timeout_ms))) == blamed


async def test_a_refused_connection_is_an_interruption_before_the_run(transport: HttpTransport) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert blame(await transport.send(request(f"http://127.0.0.1:{port}/", body=b"x"))) == "an interruption"


async def test_a_host_that_does_not_answer_the_handshake_is_silent_and_not_an_interruption(
    monkeypatch: pytest.MonkeyPatch, transport: HttpTransport
) -> None:
    monkeypatch.setattr("qtasks.broker.transport.http_transport.CONNECT_TIMEOUT_S", 0.2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        outcome = failure(await transport.send(request(f"http://127.0.0.1:{listener.getsockname()[1]}/")))
        for filler in fillers:
            filler.close()
    assert (outcome.code, blame(outcome)) == ("timeout", "the endpoint")


async def test_an_attempt_without_a_file_descriptor_is_not_one(transport: HttpTransport) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with HostileServer(answering(OK)) as server:
        with socket.socket() as highest:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno(), hard))
        try:
            outcome = await transport.send(request(server.url))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert blame(outcome) == "this machine"
        assert isinstance(await transport.send(request(server.url)), Response)


@pytest.mark.parametrize(
    ("reason", "place", "blamed"),
    [
        (errno.ENFILE, "a.test:80", "this machine"),
        (errno.ENOMEM, "a.test:80", "this machine"),
        (errno.EADDRNOTAVAIL, "192.0.2.1:80", "this machine"),
        (errno.EADDRNOTAVAIL, "[::1]:80", "the endpoint"),
        (errno.EHOSTUNREACH, "a.test:80", "an interruption"),
        (errno.ECONNRESET, "a.test:80", "an interruption"),
        (errno.ETIMEDOUT, "a.test:80", "the endpoint"),
        (errno.EPERM, "a.test:80", "the endpoint"),
    ],
)
def test_the_reason_why_a_connection_fails_says_who_is_to_blame(reason: int, place: str, blamed: str) -> None:
    key = cast("aiohttp.client_reqrep.ConnectionKey", None)
    error = aiohttp.ClientConnectorError(key, OSError(reason, "reason"))
    assert blame(failure_of(error, place, sent=False)) == blamed


@pytest.mark.parametrize(
    ("reason", "blamed"),
    [
        (socket.EAI_AGAIN, "this machine"),
        (socket.EAI_MEMORY, "this machine"),
        (socket.EAI_NONAME, "the endpoint"),
        (socket.EAI_FAIL, "the endpoint"),
    ],
)
async def test_a_name_that_does_not_exist_counts_and_a_name_server_that_does_not_answer_never_does(
    reason: int, blamed: str
) -> None:
    async def resolve(host: str) -> Sequence[str]:
        raise socket.gaierror(reason, "reason")

    transport = HttpTransport(DestinationPolicy("local"), resolve=resolve)
    outcome = failure(await transport.send(request("http://a.test/")))
    await transport.close()
    assert (outcome.code, blame(outcome)) == ("dns", blamed)


async def test_a_lookup_without_an_answer_is_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtasks.broker.transport.resolver.LOOKUP_TIMEOUT_S", 0.05)

    async def silent(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    transport = HttpTransport(DestinationPolicy("local"), resolve=silent)
    outcome = failure(await transport.send(request("http://silent.test/")))
    await transport.close()
    expected = "cannot resolve silent.test: no answer from the name server within 0.05s"
    assert outcome == Failure("dns", expected, attempted=False)


# -- a kept connection that is closed at reuse -----------------------------------------------------------------------


class ClosesAtReuse:
    """The first connection answers once and ends with the second request; the others behave as `fresh` does."""

    def __init__(self, fresh: Behaviour, last_words: bytes = b"") -> None:
        self._fresh = fresh
        self._last_words = last_words
        self._connections = 0

    async def __call__(self, connection: Connection) -> None:
        self._connections += 1
        if self._connections > 1:
            await self._fresh(connection)
            return
        await connection.request()
        await connection.send(OK)
        await connection.request()
        await connection.send(self._last_words)


@pytest.mark.parametrize("method", METHODS)
async def test_a_kept_connection_that_is_closed_at_reuse_is_tried_once_more_on_a_fresh_one(
    transport: HttpTransport, method: str
) -> None:
    async with HostileServer(ClosesAtReuse(answering(OK))) as server:
        for _ in range(2):
            assert isinstance(await transport.send(request(server.url, method, b"body")), Response)
    assert (len(server.requests), server.connections) == (3, 2)
    assert server.requests[2].endswith(b"\r\n\r\nbody")


@pytest.mark.parametrize("method", METHODS)
async def test_there_is_one_further_try_and_no_third(transport: HttpTransport, method: str) -> None:
    async with HostileServer(ClosesAtReuse(closes_after_the_request)) as server:
        assert isinstance(await transport.send(request(server.url, method)), Response)
        outcome = await transport.send(request(server.url, method))
    assert blame(outcome) == "an interruption in the middle of a run"
    assert (len(server.requests), server.connections) == (3, 2)


@pytest.mark.parametrize("method", METHODS)
async def test_a_connection_that_never_served_a_request_is_not_tried_again(
    transport: HttpTransport, method: str
) -> None:
    async with HostileServer(closes_after_the_request) as server:
        assert blame(await transport.send(request(server.url, method))) == "an interruption in the middle of a run"
    assert len(server.requests) == 1


async def test_a_connection_that_ends_in_the_middle_of_a_head_is_not_tried_again(transport: HttpTransport) -> None:
    async with HostileServer(ClosesAtReuse(answering(OK), last_words=b"HTTP/1.1 2")) as server:
        assert isinstance(await transport.send(request(server.url)), Response)
        assert blame(await transport.send(request(server.url))) == "an interruption in the middle of a run"
    assert len(server.requests) == 2


async def test_a_connection_that_ends_long_after_the_request_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, transport: HttpTransport
) -> None:
    monkeypatch.setattr(response, "_CLOSED_AT_ONCE_S", 0.0)
    async with HostileServer(ClosesAtReuse(answering(OK))) as server:
        assert isinstance(await transport.send(request(server.url)), Response)
        assert blame(await transport.send(request(server.url))) == "an interruption in the middle of a run"
    assert len(server.requests) == 2


async def test_the_further_try_has_the_rest_of_the_same_deadline(transport: HttpTransport) -> None:
    async with HostileServer(ClosesAtReuse(never_answers)) as server:
        assert isinstance(await transport.send(request(server.url)), Response)
        outcome = failure(await transport.send(request(server.url, timeout_ms=200)))
    assert outcome.error == f"no answer from 127.0.0.1:{server.port} within 0.2s (Upstash-Timeout)"
    assert len(server.requests) == 3


async def test_a_refused_further_try_interrupts_before_the_run(transport: HttpTransport) -> None:
    async with HostileServer(ClosesAtReuse(answering(OK))) as server:
        assert isinstance(await transport.send(request(server.url)), Response)
        server.stop_listening()
        outcome = await transport.send(request(server.url))
    assert blame(outcome) == "an interruption"


# -- inside the process ----------------------------------------------------------------------------------------------


class OtherLoop:
    """An event loop on a thread of its own, with an application that waits for ever."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.running = asyncio.Event()
        self._here = asyncio.get_running_loop()
        self.run: asyncio.Task[object] | None = None

    async def app(self, scope: AsgiEvent, receive: object, send: object) -> None:
        self.run = asyncio.current_task()
        self._here.call_soon_threadsafe(self.running.set)
        await asyncio.Event().wait()


async def test_an_application_whose_loop_is_closed_interrupts_before_the_run(transport: HttpTransport) -> None:
    other = OtherLoop()
    other.loop.close()
    in_process = AsgiTransport("http://app.test", cast("AsgiApp", other.app), other.loop, transport)
    assert blame(await in_process.send(request("http://app.test/"))) == "an interruption"


async def test_an_application_whose_loop_ends_during_a_run_interrupts_it(transport: HttpTransport) -> None:
    other = OtherLoop()
    thread = asyncio.create_task(asyncio.to_thread(other.loop.run_forever))
    in_process = AsgiTransport("http://app.test", cast("AsgiApp", other.app), other.loop, transport)
    attempt = asyncio.create_task(in_process.send(request("http://app.test/")))
    await other.running.wait()
    assert other.run is not None
    other.loop.call_soon_threadsafe(other.run.cancel)
    assert blame(await attempt) == "an interruption in the middle of a run"
    other.loop.call_soon_threadsafe(other.loop.stop)
    await thread
    other.loop.close()


async def test_an_attempt_that_is_cancelled_stays_cancelled(transport: HttpTransport) -> None:
    other = OtherLoop()
    thread = asyncio.create_task(asyncio.to_thread(other.loop.run_forever))
    in_process = AsgiTransport("http://app.test", cast("AsgiApp", other.app), other.loop, transport)
    attempt = asyncio.create_task(in_process.send(request("http://app.test/")))
    await other.running.wait()
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert other.run is not None
    other.loop.call_soon_threadsafe(other.run.cancel)
    other.loop.call_soon_threadsafe(other.loop.stop)
    await thread
    other.loop.close()
