"""The HTTP server in front of the API: host names, size limits, the framing of requests, time limits."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from qtasks.broker.server.connection_watch import ConnectionLimits
from qtasks.broker.settings import BrokerSettings
from tests.support.api_client import LATER, PATIENCE_S, ApiClient, Lines, head, split_answers
from tests.support.running import RunningBroker

KIB = 1024


# -- names


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "127.0.0.1.evil.test",
        "evil.test:8080",
        "",
        "[::1%25x]",
        "user@localhost",
        "localhost.",
        "127.0.0.1:8080:8080",
        "127.1",
        "2130706433",
    ],
)
def test_a_name_that_is_not_ours_is_refused_even_with_a_good_token(api: ApiClient, host: str) -> None:
    """A page that rebinds its own name to this address is stopped here; the development tokens are public."""
    answer = api.ask("POST", "/v2/publish/http://127.0.0.1:1/", LATER, b"", host=host)
    assert answer.status == 421
    assert answer.error == "host not allowed: this broker answers to 127.0.0.1, [::1], localhost"
    assert api.stored() == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "localhost:1", "[::1]:8080"])
def test_our_own_names_are_served_with_any_port(api: ApiClient, host: str) -> None:
    assert api.ask("GET", "/v2/keys", host=host).status == 200


# -- limits


def test_a_body_may_have_a_mebibyte_and_not_a_byte_more(api: ApiClient) -> None:
    assert api.publish(body=b"x" * KIB * KIB).status == 201
    answer = api.publish(body=b"x" * (KIB * KIB + 1))
    assert (answer.status, answer.error) == (413, "message too large: 1048577 > 1048576")


def test_a_body_that_only_claims_to_be_huge_is_refused_at_once(api: ApiClient) -> None:
    """Decided by the claim; nothing is read."""
    answers, _ = api.raw(head("POST", api, "Content-Length: 1000000000000"), b"abc")
    assert (answers[0].status, answers[0].error) == (413, "message too large: 1000000000000 > 1048576")


def test_a_body_in_pieces_is_counted_while_it_comes(api: ApiClient) -> None:
    """A chunked body does not announce its size."""
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answers, _ = api.raw(head("POST", api, "Transfer-Encoding: chunked"), chunk * 16, b"1\r\nx\r\n0\r\n\r\n")
    assert (answers[0].status, answers[0].error) == (413, "message too large: more than 1048576 bytes")
    answers, _ = api.raw(head("POST", api, "Transfer-Encoding: chunked"), chunk * 16, b"0\r\n\r\n")
    assert answers[0].status == 201


@pytest.mark.parametrize(
    ("target", "status", "text"),
    [
        ("/v2/publish/http://127.0.0.1:1/" + "x" * 4077, 201, ""),
        ("/v2/publish/http://127.0.0.1:1/" + "x" * 4078, 414, "destination url too long: 4097 > 4096"),
        ("/v2/publish/http://127.0.0.1:1/?" + "x" * 9000, 414, "request target too long: "),
        ("/v2/events?" + "x" * 9000, 414, "request target too long: "),
    ],
)
def test_a_url_has_a_longest(api: ApiClient, target: str, status: int, text: str) -> None:
    answer = api.ask("POST" if "publish" in target else "GET", target, LATER, b"")
    assert answer.status == status
    if status != 201:
        assert text in answer.error


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        (tuple((f"X-{n}", "1") for n in range(200)), "too many headers: 2"),
        (tuple((f"X-{n}", "x" * 1000) for n in range(60)), "headers too large: "),
        (tuple((f"Upstash-Forward-X-{n}", "1") for n in range(65)), "too many forwarded headers: 65 > 64"),
        ((("Upstash-Forward-X", "x" * 17_000),), "forwarded headers too large: 17001 > 16384 bytes"),
    ],
)
def test_headers_have_a_most_and_a_largest(api: ApiClient, headers: Lines, text: str) -> None:
    answer = api.publish(headers=headers)
    assert answer.status == 431
    assert text in answer.error
    assert api.stored() == []


# -- the framing of a request


END = b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (("Content-Length: 5", "Transfer-Encoding: chunked"), END),
        (("Transfer-Encoding: chunked", "Content-Length: 5"), END),
        (("Content-Length: 3", "Content-Length: 4"), b"abcd"),
        (("Content-Length: 3", "Content-Length: 3"), b"abc"),
        (("Content-Length: 3, 3",), b"abc"),
        (("Content-Length: +3",), b"abc"),
        (("Content-Length: -1",), b"abc"),
        (("Content-Length: 0x3",), b"abc"),
        (("Content-Length: " + "9" * 30,), b"abc"),
        (("Transfer-Encoding : chunked",), END),
        (("Transfer-Encoding: xchunked",), END),
        (("Transfer-Encoding: chunked, identity",), END),
        (("Transfer-Encoding: gzip, chunked",), END),
        (("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), END),
        (("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), END),
        (("X-A: 1", " 2"), b""),
        (("X-A: 1\x002",), b""),
        (("X A: 1",), b""),
        (("Transfer-Encoding: chunked",), b"xyz\r\nabc\r\n0\r\n\r\n"),
        (("Transfer-Encoding: chunked",), b"3\r\nabcd\r\n0\r\n\r\n"),
        (("Transfer-Encoding: chunked",), b"3\nabc\n0\n\n"),
    ],
)
def test_a_request_whose_length_can_be_read_in_two_ways_is_refused_and_its_connection_closed(
    api: ApiClient, lines: tuple[str, ...], body: bytes
) -> None:
    """Otherwise the rest could be read as a second request, which a proxy in front of the broker has not seen."""
    smuggled = head("POST", api, "Content-Length: 0", target="/v2/publish/http://127.0.0.1:1/smuggled")
    answers, closed = api.raw(head("POST", api, *lines), body, smuggled)
    assert [answer.status for answer in answers] == [400]
    assert answers[0].error
    assert closed
    assert api.stored() == []


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("chunked in HTTP/1.0", "POST {publish} HTTP/1.0\r\n{host}{auth}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("method in lower case", "post {publish} HTTP/1.1\r\n{host}{auth}\r\n"),
        ("absolute form", "POST http://127.0.0.1{publish} HTTP/1.1\r\n{host}{auth}\r\n"),
        ("absolute form of another host", "GET http://evil.test/v2/keys HTTP/1.1\r\n{host}{auth}\r\n"),
        ("no Host", "POST {publish} HTTP/1.1\r\n{auth}\r\n"),
        ("two Hosts", "POST {publish} HTTP/1.1\r\n{host}{host}{auth}\r\n"),
        ("bare line feeds", "POST {publish} HTTP/1.1\n{host}{auth}\n"),
        ("a fragment", "POST {publish}?a=1#b HTTP/1.1\r\n{host}{auth}\r\n"),
        ("a byte that is not ASCII", "POST {publish}/ü HTTP/1.1\r\n{host}{auth}\r\n"),
        ("no target", "POST  HTTP/1.1\r\n{host}{auth}\r\n"),
        ("a relative target", "POST v2/keys HTTP/1.1\r\n{host}{auth}\r\n"),
        ("a tunnel", "CONNECT 127.0.0.1:80 HTTP/1.1\r\n{host}{auth}\r\n"),
        ("a tunnel to a path", "CONNECT /v2/keys HTTP/1.1\r\n{host}{auth}Content-Length: 3\r\n\r\nabc"),
        ("HTTP/0.9", "GET /v2/keys\r\n\r\n"),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("HTTP/3.7", "POST {publish} HTTP/3.7\r\n{host}{auth}\r\n"),
        ("TLS", "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
    ],
)
def test_what_is_no_plain_request_is_refused(api: ApiClient, name: str, request_: str) -> None:
    text = request_.format(
        publish="/v2/publish/http://127.0.0.1:1/x",
        host=f"Host: 127.0.0.1:{api.port}\r\n",
        auth=f"Authorization: Bearer {api.user.token}\r\nUpstash-Delay: 1d\r\n",
    )
    answers, _ = api.raw(text.encode())
    assert [answer.status for answer in answers] == [400], name
    assert answers[0].error
    assert api.stored() == []


# -- trailer fields, chunks, and requests for another protocol


CHUNKED = "Transfer-Encoding: chunked"


def anonymous(api: ApiClient, *lines: str) -> bytes:
    return head("POST", api, CHUNKED, *lines).replace(b"Authorization", b"X-Authorization")


def test_a_trailer_field_is_no_header(api: ApiClient) -> None:
    """It comes after the header was checked: it can neither prove who sends nor change what is asked for."""
    body = b"3\r\nabc\r\n0\r\n"
    trailer = f"Authorization: Bearer {api.user.token}\r\nHost: evil.test\r\nUpstash-Delay: x\r\n\r\n".encode()
    answers, _ = api.raw(anonymous(api), body, trailer)
    assert [answer.status for answer in answers] == [401]
    answers, closed = api.raw(head("POST", api, CHUNKED), body, trailer, head("GET", api, target="/v2/keys"))
    assert [answer.status for answer in answers] == [201, 200]
    assert not closed


@pytest.mark.parametrize("target", ["/v2/publish/http://127.0.0.1:1/x", "/healthz"])
@pytest.mark.parametrize(
    "endless",
    [
        b"3\r\nabc\r\n0\r\n" + b"X-A: 1\r\n" * 4_000,
        b"3\r\nabc\r\n0\r\nX-A: " + b"1" * 32_000,
        b"3\r\nabc\r\n0\r\n" + b"X" * 32_000,
        b"3;" + b"x" * 32_000,
        b"0" * 32_000,
    ],
    ids=["fields", "value", "name", "extension", "zeros"],
)
def test_what_has_no_end_around_the_chunks_of_a_body_is_refused(api: ApiClient, target: str, endless: bytes) -> None:
    """Without credentials, too, and after the response to a request whose body was not read."""
    for request in (head("POST", api, CHUNKED, target=target), anonymous(api)):
        answers, closed = api.raw(request, endless)
        assert closed
        assert answers[0].status in (401, 405, 431)
        assert [answer.status for answer in answers[1:]] in ([], [431])
    assert api.stored() == []


def test_a_body_of_tiny_chunks_is_a_body(api: ApiClient) -> None:
    answers, _ = api.raw(head("POST", api, CHUNKED), b"1\r\nx\r\n" * 20_000, b"0\r\n\r\n")
    assert answers[0].status == 201
    message = api.ask("GET", f"/v2/messages/{answers[0].json['messageId']}").json
    assert message["body"] == "x" * 20_000


def test_a_body_full_of_what_looks_like_its_end_is_a_body_and_costs_no_more_than_another(api: ApiClient) -> None:
    body = b"\r\n\r\n" * 200_000
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    upgrade = ("Connection: Upgrade", "Upgrade: h2c")
    began = time.perf_counter()
    answers, closed = api.raw(head("POST", api, CHUNKED), chunks, head("GET", api, *upgrade, target="/v2/keys") * 3)
    assert [answer.status for answer in answers] == [201, 200, 200, 200]
    assert not closed
    assert time.perf_counter() - began < 2
    assert len(api.ask("GET", f"/v2/messages/{answers[0].json['messageId']}").json["body"]) == len(body)


def test_a_header_may_not_have_any_number_of_lines(api: ApiClient) -> None:
    answers, closed = api.raw(head("GET", api, *(f"a{n}:" for n in range(400)), target="/healthz"))
    assert (answers[0].status, answers[0].error) == (431, "too many headers: more than 256")
    assert closed


@pytest.mark.parametrize(
    ("lines", "body"), [(("Content-Length: 3",), b"abc"), ((CHUNKED,), b"3\r\nabc\r\n0\r\nX: 1\r\n\r\n")]
)
@pytest.mark.parametrize("connection", ["Upgrade, HTTP2-Settings", "keep-alive, upgrade", "close, Upgrade"])
def test_an_offer_of_another_protocol_is_ignored_and_costs_no_body(
    api: ApiClient, connection: str, lines: tuple[str, ...], body: bytes
) -> None:
    """curl and Java ask for HTTP/2 like this; the parser takes what follows for the other protocol."""
    upgrade = (f"Connection: {connection}", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    keys = head("GET", api, *upgrade, target="/v2/keys")
    answers, closed = api.raw(head("POST", api, *upgrade, *lines), body, keys, keys)
    statuses = [201] if "close" in connection else [201, 200, 200]
    assert [answer.status for answer in answers] == statuses
    assert closed == ("close" in connection)
    assert api.ask("GET", f"/v2/messages/{answers[0].json['messageId']}").json["body"] == "abc"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 40])
def test_the_end_of_a_header_is_found_wherever_a_packet_ends(api: ApiClient, size: int) -> None:
    requests = head("GET", api, target="/v2/keys") + head("POST", api, "Content-Length: 4") + b"\r\n\r\n"
    with socket.create_connection(("127.0.0.1", api.port), timeout=PATIENCE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(requests), size):
            connection.sendall(requests[at : at + size])
        received = b""
        while received.count(b"HTTP/1.1 ") < 2 or not received.endswith(b"}"):
            received += connection.recv(65536)
    assert [answer.status for answer in split_answers(received)] == [200, 201]


def test_many_requests_at_once_on_one_connection_are_all_answered(api: ApiClient) -> None:
    answers, closed = api.raw(head("GET", api, target="/healthz") * 300)
    assert [answer.status for answer in answers] == [200] * 300
    assert not closed


def test_requests_on_one_connection_are_answered_in_order(api: ApiClient) -> None:
    targets = ("/v2/keys", "/v2/dlq", "/v2/nothing", "/v2/events")
    answers, closed = api.raw(*(head("GET", api, target=target) for target in targets))
    assert [answer.status for answer in answers] == [200, 200, 404, 200]
    assert ["current" in answers[0].json, "messages" in answers[1].json, "events" in answers[3].json] == [True] * 3
    assert not closed


@pytest.mark.parametrize(
    "rest", [b"\x00\x01\r\n\r\n", b"GET http://evil.test/ HTTP/1.1\r\n\r\n", b"X: " + b"x" * 70_000]
)
def test_the_refusal_of_a_second_request_is_never_taken_for_the_answer_to_the_first(
    api: ApiClient, rest: bytes
) -> None:
    """The sender of the first may hear that it was accepted, or nothing, but never that it was refused."""
    answers, closed = api.raw(head("POST", api, "Content-Length: 3"), b"abc", rest)
    assert [answer.status for answer in answers] in ([], [201], [201, 400], [201, 431])
    assert closed
    assert len(api.stored()) >= len([answer for answer in answers if answer.status == 201])


@pytest.mark.parametrize("size", [KIB * KIB + 1, 4 * KIB * KIB])
def test_a_connection_is_good_for_the_next_request_after_a_body_was_refused(api: ApiClient, size: int) -> None:
    """The rest of the body is still on its way when the answer is there; it is not the next request."""
    too_large = head("POST", api, f"Content-Length: {size}") + b"x" * size
    answers, closed = api.raw(too_large, head("GET", api, target="/v2/keys"))
    assert [answer.status for answer in answers] == [413, 200]
    assert not closed


# -- time


@pytest.fixture(scope="module")
def impatient() -> Iterator[RunningBroker]:
    limits = ConnectionLimits(head_s=0.05, discard_s=0.05, look_s=0.01)
    running = RunningBroker(BrokerSettings(path=":memory:"), limits)
    yield running
    running.stop()


@pytest.fixture
def quick(impatient: RunningBroker) -> ApiClient:
    """A client of a broker that waits only for a moment."""
    return ApiClient(int(impatient.url.rpartition(":")[2]), impatient.new_user())


def test_a_connection_on_which_no_request_comes_is_closed(quick: ApiClient) -> None:
    assert quick.raw() == ([], True)


def test_an_empty_line_does_not_keep_an_idle_connection_open(quick: ApiClient) -> None:
    answers, closed = quick.raw(head("GET", quick, target="/v2/keys"), b"\r\n")
    assert [answer.status for answer in answers] == [200]
    assert closed


def test_a_request_that_does_not_begin_in_time_is_refused(quick: ApiClient) -> None:
    for before in (b"", head("GET", quick, target="/v2/keys")):
        answers, closed = quick.raw(before, b"POST /v2/publish/http://127.0.0.1:1/x HTTP/1.1\r\nHost:")
        assert (answers[-1].status, answers[-1].error) == (408, "no complete header within 0.05 s")
        assert closed


def test_the_rest_of_a_refused_body_is_not_waited_for_for_ever(quick: ApiClient) -> None:
    with socket.create_connection(("127.0.0.1", quick.port), timeout=PATIENCE_S) as connection:
        connection.sendall(head("POST", quick, "Content-Length: 1000000000"))
        received = b""
        while not received.endswith(b'> 1048576"}'):
            received += connection.recv(65536)
        assert split_answers(received)[0].status == 413
        connection.sendall(b"x")
        assert connection.recv(65536) == b""


def test_a_header_without_end_is_cut_off(api: ApiClient) -> None:
    answers, closed = api.raw(b"GET /v2/keys HTTP/1.1\r\nX: " + b"x" * 100 * KIB)
    assert (answers[0].status, answers[0].error) == (431, "header too large: more than 65536 bytes")
    assert closed
