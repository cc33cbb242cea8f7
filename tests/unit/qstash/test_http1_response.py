"""The reader of responses: what it accepts arrives the same in any pieces; what is ambiguous, it refuses."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.qstash.conversation.http1_response import MAX_HEAD, NotHttpError, ResponseError, ResponseReader
from qtasks.qstash.conversation.transport import Reply

HEAD = b"HTTP/1.1 200 OK\r\n"
NAMES = st.from_regex(r"X-[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20).map(str.strip)


def reading(*pieces: bytes, method: str = "POST", most: int = 1_000_000) -> ResponseReader:
    reader = ResponseReader(method, most)
    for piece in pieces:
        reader.feed(piece)
    return reader


def complete(*pieces: bytes, method: str = "POST") -> Reply:
    reader = reading(*pieces, method=method)
    assert reader.is_complete
    return reader.reply()


def chunked(body: bytes, sizes: list[int]) -> bytes:
    written, rest = bytearray(), body
    for size in sizes:
        if part := rest[:size]:
            written += f"{len(part):X};note=1\r\n".encode() + part + b"\r\n"
        rest = rest[size:]
    if rest:
        written += f"{len(rest):x}\r\n".encode() + rest + b"\r\n"
    return bytes(written + b"0\r\nX-Sum: 1\r\n\r\n")


@given(
    status=st.integers(200, 999).filter(lambda status: status not in (204, 304)),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=5),
    body=st.binary(max_size=200),
    framing=st.sampled_from(["length", "chunks", "end"]),
    is_packed=st.booleans(),
    interim=st.integers(0, 2),
    data=st.data(),
)
def test_a_response_is_the_same_in_any_pieces(
    status: int,
    headers: list[tuple[str, str]],
    body: bytes,
    framing: str,
    is_packed: bool,
    interim: int,
    data: st.DataObject,
) -> None:
    sent = gzip.compress(body) if is_packed else body
    lines = [*headers, *([("Content-Encoding", "gzip")] if is_packed else [])]
    if framing == "length":
        lines.append(("content-length", str(len(sent))))
    elif framing == "chunks":
        lines.append(("Transfer-Encoding", "Chunked"))
        sent = chunked(sent, data.draw(st.lists(st.integers(1, 40), max_size=5)))
    head = "".join(f"{name}:  {value} \r\n" for name, value in lines)
    whole = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * interim
    whole += f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + sent
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=8)))
    reader = reading(*(whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)))
    assert reader.is_complete is (framing != "end")
    reader.end()
    assert reader.reply() == Reply(status, tuple(lines), body)
    assert reader.can_be_kept is (framing != "end")


@given(st.lists(st.binary(max_size=40) | st.sampled_from([HEAD, b"Transfer-Encoding: chunked\r\n\r\n", b"\r\n\r\n"])))
def test_no_bytes_do_more_than_be_refused(pieces: list[bytes]) -> None:
    reader = ResponseReader("GET", 1000)
    try:
        for piece in pieces:
            if reader.is_complete:
                break
            reader.feed(piece)
        reader.end()
    except ResponseError:
        assert not reader.is_complete


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("POST", b"HTTP/1.1 200 \r\ncontent-length:0\r\n\r\n"),
        ("POST", b"HTTP/1.1 200\r\ncontent-length:0\r\n\r\n"),
    ],
)
def test_some_responses_have_no_body(method: str, head: bytes) -> None:
    assert complete(head, method=method).body == b""


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        HEAD + b"Content-Length: 2, 2\r\n\r\nok",
        HEAD + b"Content-Length: +2\r\n\r\nok",
        HEAD + b"Content-Length: -2\r\n\r\nok",
        HEAD + "Content-Length: ٢\r\n\r\nok".encode(),
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: identity\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: 1\r\n" * 5000,
        HEAD + b"Name : value\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"Name: value\r\n folded\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"Name: va\0lue\r\nContent-Length: 0\r\n\r\n",
        HEAD + b": value\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        HEAD + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\nok",
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 26\r\n\r\n" + gzip.compress(b"hello", mtime=0) + b"x",
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 12\r\n\r\n" + gzip.compress(b"hello", mtime=0)[:12],
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\n" + gzip.compress(b"hello", mtime=0)[:5],
        HEAD + b"A: " + b"a" * MAX_HEAD,
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD // 20),
    ],
)
def test_what_is_ambiguous_or_without_end_is_refused(head: bytes) -> None:
    with pytest.raises(ResponseError):
        reading(head)


@pytest.mark.parametrize("first", [b"\x15\x03\x03\x00\x02", b"SSH-2.0-x\r\n", b"HTTP/2", b"\r\n", b"ICY 200 OK"])
def test_another_protocol_is_told_apart_by_its_first_bytes(first: bytes) -> None:
    with pytest.raises(NotHttpError):
        reading(first)


@pytest.mark.parametrize(
    ("received", "why"),
    [
        (b"", "without an answer"),
        (b"HTT", "in the middle"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "in the middle"),
        (HEAD + b"Content-Length: 2\r\n\r\no", "in the middle"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "in the middle"),
    ],
)
def test_an_end_in_the_middle_is_no_response(received: bytes, why: str) -> None:
    reader = reading(received)
    with pytest.raises(ResponseError, match=why):
        reader.end()


@pytest.mark.parametrize(
    ("received", "is_kept"),
    [
        (HEAD + b"Content-Length: 2\r\n\r\nok", True),
        (HEAD + b"Content-Length: 2\r\nConnection: keep-alive\r\n\r\nok", True),
        (HEAD + b"Content-Length: 2\r\nConnection: te, Close\r\n\r\nok", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
        (HEAD + b"Content-Length: 2\r\n\r\nok" + HEAD, False),
        (HEAD + b"Content-Length: 2\r\n\r\nok\r\n", False),
    ],
)
def test_a_connection_is_kept_only_if_nothing_else_can_be_on_it(received: bytes, is_kept: bool) -> None:
    reader = reading(received)
    assert reader.reply().body == b"ok"
    assert reader.can_be_kept is is_kept


@pytest.mark.parametrize("received", [b"Content-Length: 11\r\n\r\n", b"\r\n" + b"a" * 11])
def test_a_body_is_bounded(received: bytes) -> None:
    with pytest.raises(ResponseError, match="larger than 10 bytes"):
        reading(HEAD + received, most=10)
