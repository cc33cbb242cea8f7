"""Destinations: what the path says, and which URLs may be stored (docs/protocol.md 2.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.protocol import wire
from qtasks.protocol.targets import INVALID_SCHEME, MAX_URL, before_query, check_url
from qtasks.protocol.wire import Target, WireError


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("https://example.com/123/?asdasd=ooo", Target("https://example.com/123/?asdasd=ooo")),
        ("https://e.com/a%2Fb?x=1&qstash_token=T&y=%20", Target("https://e.com/a%2Fb?x=1&y=%20", (), "T")),
        ("https://e.com?upstash-retries=3", Target("https://e.com", (("upstash-retries", "3"),))),
        ("https://e.com//x", Target("https://e.com//x")),
        ("https://e.com?", Target("https://e.com?")),
        ("https://e.com?a=1&&b", Target("https://e.com?a=1&&b")),
        ("https://e.com?a?b=1", Target("https://e.com?a?b=1")),
        (
            "https://e.com/?Upstash-Delay=1m&a=b%26c&UPSTASH-RETRIES=1",
            Target("https://e.com/?a=b%26c", (("upstash-delay", "1m"), ("upstash-retries", "1"))),
        ),
        ("https://e.com?upstash-label=a%2Cb+c", Target("https://e.com", (("upstash-label", "a,b c"),))),
        (
            "https://e.com?%75pstash-retries=1&qstash%5Ftoken=T",
            Target("https://e.com", (("upstash-retries", "1"),), "T"),
        ),
        ("https://e.com?qstash_token=T&qstash_token=U&q=1", Target("https://e.com?q=1", (), "T")),
        ("https://e.com?upstash=1&qstash_tokens=2", Target("https://e.com?upstash=1&qstash_tokens=2")),
        ("my-group", Target("my-group")),
        ("my-group?qstash_token=T&x=1&upstash-retries=3", Target("my-group", (("upstash-retries", "3"),), "T")),
        ("api/llm?x=1", Target("api/llm")),
        ("https%3A%2F%2Fe.com", Target("https%3A%2F%2Fe.com")),
        ("", Target("")),
    ],
)
def test_only_configuration_leaves_the_destination(raw: str, expected: Target) -> None:
    assert wire.split_target(raw) == expected


def test_a_token_in_the_query_is_not_shown() -> None:
    assert "s3cret" not in repr(wire.split_target("https://e.com?qstash_token=s3cret"))


def test_a_parameter_that_is_no_text_is_refused_by_its_name() -> None:
    with pytest.raises(WireError, match="upstash-label: the value is not UTF-8: '%FF'"):
        wire.split_target("https://e.com?a=%FF&upstash-label=%FF")


@given(st.text())
def test_any_path_is_taken_apart(raw: str) -> None:
    target = wire.split_target(raw)
    assert len(target.destination) <= len(raw)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("https://e.com", "url"),
        ("hTTp://e.com", "url"),
        ("my-group", "group"),
        ("My.Group_1", "group"),
        ("localhost", "group"),
        ("api/llm", "api"),
        ("api/email", "api"),
    ],
)
def test_a_destination_is_a_url_a_group_or_an_api(text: str, kind: str) -> None:
    assert wire.destination_kind(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://e.com",
        "//e.com",
        "http:/e.com",
        "https:e.com",
        "e.com/x",
        "localhost:3000",
        "javascript:alert(1)",
        "a b",
        "é",
    ],
)
def test_anything_else_has_an_invalid_scheme(text: str) -> None:
    with pytest.raises(WireError) as caught:
        wire.destination_kind(text)
    assert (str(caught.value), caught.value.status) == (INVALID_SCHEME, 400)


@pytest.mark.parametrize("text", ["https%3A%2F%2Fe.com", "HTTP%3a//e.com", "https%253A%252F%252Fe.com"])
def test_an_encoded_destination_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(WireError) as caught:
        wire.destination_kind(text)
    assert str(caught.value).startswith(INVALID_SCHEME + " (it is percent-encoded")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://example.com", "example.com:443"),
        ("http://Example.COM/", "example.com:80"),
        ("HTTP://e.com:8080/x?y", "e.com:8080"),
        ("http://127.0.0.1:3000", "127.0.0.1:3000"),
        ("http://[::1]:3000/x", "[::1]:3000"),
        ("http://[::FFFF:127.0.0.1]", "[::ffff:127.0.0.1]:80"),
        ("http://user:pass@e.com/", "e.com:80"),
        ("http://user@e.com:81?x=@b", "e.com:81"),
        ("http://my_service:8000/x", "my_service:8000"),
        ("http://localhost./", "localhost.:80"),
        ("http://xn--bcher-kva.example", "xn--bcher-kva.example:80"),
        ("http://1.2.3.4.example", "1.2.3.4.example:80"),
        ("https://e.com//c/%2e%2e/d;x?x=1&y=%2F", "e.com:443"),
        ("http://a?b", "a:80"),
        ("https://e.com/" + "x" * (4096 - 14), "e.com:443"),
    ],
)
def test_a_deliverable_url_has_a_host(url: str, host: str) -> None:
    wire.check_url(url)
    assert wire.host_of(url) == host


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("e.com", "invalid scheme"),
        ("http:///x", "host is missing"),
        ("http://", "host is missing"),
        ("http://?x", "host is missing"),
        ("http://:80/", "host is missing"),
        ("http://user@/", "host is missing"),
        ("http://a..b/", "not a host name"),
        ("http://.a/", "not a host name"),
        ("http://a%20b/", "not a host name"),
        ("http://127.0.0.1%00.ok.test/", "must be percent-encoded or left out"),
        ("http://e.com\\", "'\\' at position 12 must be percent-encoded"),
        ("http://e.com/%00", "must be percent-encoded or left out"),
        ("http://" + "a" * 64 + "/", "not a host name"),
        ("http://" + "a." * 130 + "b/", "not a host name"),
        ("http://e.com:0/", "port '0'"),
        ("http://e.com:/", "port ''"),
        ("http://e.com:65536/", "port '65536'"),
        ("http://e.com:-1/", "port '-1'"),
        ("http://e.com:8a/", "port '8a'"),
        ("http://e.com:080000/", "port '080000'"),
        ("http://a b/", "position 8"),
        ("http://e.com/a b", "must be percent-encoded"),
        ("http://e.com/\t", "must be percent-encoded"),
        ("http://e.com/\r\nX: y", "must be percent-encoded"),
        ("http://e.com/\x00", "must be percent-encoded"),
        ("http://e.com/ü", "must be percent-encoded"),
        ("http://e.com:٨٠/", "must be percent-encoded"),
        ("http://127。0。0。1/", "must be percent-encoded"),
        ("http://①②⑦.⓪.⓪.①/", "must be percent-encoded"),
        ("http://127.0.0.1\\@ok.test/", "must be percent-encoded or left out"),
        ("http://127.0.0.1#@ok.test/", "must be percent-encoded or left out"),
        ("http://e.com/#f", "must be percent-encoded or left out"),
        ("http://a@b@c/", "no host can be read"),
        ("http://[::1", "no host can be read"),
        ("http://[::1]x/", "no host can be read"),
        ("http://a:1:2/", "no host can be read"),
        ("http://[127.0.0.1]/", "an IPv6 address in brackets"),
        ("http://[]/", "an IPv6 address in brackets"),
        ("http://[::1%25lo]/", "an IPv6 address in brackets"),
        ("http://[::1%lo]/", "an IPv6 address in brackets"),
        ("http://127.1/", "four decimal numbers"),
        ("http://127.0.1/", "four decimal numbers"),
        ("http://2130706433/", "four decimal numbers"),
        ("http://0x7f000001/", "four decimal numbers"),
        ("http://0x7f.0x0.0x0.0x1/", "four decimal numbers"),
        ("http://0177.0.0.1/", "four decimal numbers"),
        ("http://017700000001/", "four decimal numbers"),
        ("http://127.0.0.1./", "four decimal numbers"),
        ("http://0/", "four decimal numbers"),
        ("http://256.1.1.1/", "four decimal numbers"),
        ("http://a.0x/", "four decimal numbers"),
    ],
)
def test_what_parsers_might_read_differently_is_refused(url: str, words: str) -> None:
    with pytest.raises(WireError, match=r"^invalid destination url: ") as caught:
        wire.check_url(url)
    assert words in str(caught.value)
    assert caught.value.status == 400


def test_a_url_beyond_4_kib_is_too_long() -> None:
    with pytest.raises(WireError, match="destination url too long: 4097 > 4096") as caught:
        wire.check_url("https://e.com/" + "x" * 4083)
    assert caught.value.status == 414


@given(st.text() | st.text("htps:/@[].0123456789ax%?#", max_size=30).map("http://".__add__))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        wire.check_url(text)
    except WireError:
        return
    host, _, port = wire.host_of(text).rpartition(":")
    assert host
    assert 1 <= int(port) <= 65535


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "x" * 128, "..."])
def test_names_are_plain(name: str) -> None:
    assert wire.check_name(name, "queue name") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 129,
        ".",
        "..",
        "a/b",
        "%2e%2e",
        "a\x00",
        "\u202ea",
        "🐱",
        "'; DROP",
        "{{7*7}}",
        "<img>",
        "a\n",
        "а",
        "a b",
    ],
)
def test_t15_other_names_are_refused(name: str) -> None:
    with pytest.raises(WireError, match=r"^invalid queue name "):
        wire.check_name(name, "queue name")


@pytest.mark.parametrize("query", ["a b", "a\\b", "a#b", "%00", "é", "\n", "a?b\\", "a" * MAX_URL])
def test_a_query_that_cannot_be_sent_makes_the_url_unusable(query: str) -> None:
    """Also behind a URL that was just read."""
    check_url("http://a.example/x?y")
    with pytest.raises(WireError, match=r"must be percent-encoded|too long"):
        check_url(f"http://a.example/x?{query}")
    assert before_query(f"http://a.example/x?{query}") is None


def test_urls_that_differ_in_their_queries_have_the_same_part_before_it() -> None:
    assert before_query("http://a.example/x?y") == before_query("http://a.example/x?z?") == "http://a.example/x?"
    assert before_query("http://a.example/x") is None
