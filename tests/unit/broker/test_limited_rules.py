"""Rules of the destination policy that open one application behind an origin: some paths, some methods."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.broker.transport.destination import parse
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.errors import ConfigurationError

TASKS = DestinationPolicy("public", ("POST http://10.0.0.5:8000/qtasks",))

BELOW = (
    "/qtasks",
    "/qtasks/",
    "/qtasks/add",
    "/qtasks/reports.daily",
    "/qtasks/_end?call=1&x=../..",
    "/qtasks/add?to=%2e%2e%2fadmin",
    "/qtasks/a%20b",
    "/qtasks/..a",
)
ELSEWHERE = (
    "",
    "/",
    "/admin",
    "/qtasks-admin",
    "/qtasks.admin",
    "/qtasksadmin/add",
    "/QTASKS/add",
    "/?/qtasks/add",
    "/qtask%73/add",
    "/qtasks%2fadd",
    "//qtasks/add",
    "/x/../qtasks/add",
    "/./qtasks/add",
)
AMBIGUOUS = (
    "/qtasks/../admin",
    "/qtasks/..",
    "/qtasks/./x",
    "/qtasks/.",
    "/qtasks/x/../../admin",
    "/qtasks//admin",
    "/qtasks//",
    "/qtasks/%2e%2e/admin",
    "/qtasks/%2E%2e/admin",
    "/qtasks/.%2e/admin",
    "/qtasks/%252e%252e/admin",
    "/qtasks/..%2fadmin",
    "/qtasks/..%5cadmin",
    "/qtasks/%2f/admin",
    "/qtasks/..;/admin",
    "/qtasks/..%3b/admin",
    "/qtasks/add;x=1/../admin",
    "/qtasks/%c0%ae%c0%ae/admin",
    "/qtasks/%ef%bc%8e%ef%bc%8e/admin",
    "/qtasks/%0d%0aX:%20y",
    "/qtasks/%09",
    "/qtasks/%7f",
    "/qtasks/%u002e%u002e/admin",
    "/qtasks/%",
    "/qtasks/%2",
)


@pytest.mark.parametrize("path", BELOW)
def test_paths_below_the_prefix_are_open_for_the_method(path: str) -> None:
    assert TASKS.check_url(f"http://10.0.0.5:8000{path}", "POST") is None
    for method in ("GET", "DELETE", "PUT", "PATCH", "HEAD"):
        assert TASKS.check_url(f"http://10.0.0.5:8000{path}", method) is not None, method


@pytest.mark.parametrize("path", [*ELSEWHERE, *AMBIGUOUS])
def test_every_other_path_is_closed(path: str) -> None:
    refusal = TASKS.check_url(f"http://10.0.0.5:8000{path}", "POST") or ""
    assert "resolves to a private address" in refusal
    assert DestinationPolicy("public", ("http://10.0.0.5:8000/",)).check_url(f"http://10.0.0.5:8000{path}") is None


PIECES = st.sampled_from(
    [
        "/",
        "//",
        ".",
        "..",
        "%2e",
        "%2E",
        "%252e",
        "%2f",
        "%5c",
        "%3b",
        ";",
        "%c0%ae",
        "%00",
        "qtasks",
        "admin",
        "-",
        "a",
        "?",
    ]
)


@given(st.lists(PIECES, max_size=8).map("".join))
def test_no_server_reads_a_path_that_is_open_as_one_that_is_not(text: str) -> None:
    """Decoded as often as you like and resolved at any time, it stays below the prefix."""
    path = f"/qtasks{text}"
    if TASKS.check_url(f"http://10.0.0.5:8000{path}") is not None:
        return
    seen = path.partition("?")[0]
    for _ in range(4):
        resolved = posixpath.normpath(seen.replace("\\", "/").partition(";")[0])
        assert resolved == "/qtasks" or resolved.startswith("/qtasks/"), path
        seen = unquote(seen)


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.5:8001/qtasks/add",
        "http://10.0.0.6:8000/qtasks/add",
        "http://10.0.0.5/qtasks/add",
        "http://user@10.0.0.5:8000/qtasks/add",
        "http://10.0.0.5:8000@evil.test/qtasks/add/../../x",
        "http://10.0.0.5:8000\\@evil.test/qtasks/add",
        "http://169.254.169.254:8000/qtasks/add",
    ],
)
def test_other_places_are_closed(url: str) -> None:
    refusal = TASKS.check_url(url)
    assert refusal is not None or "evil.test" in url, "a name elsewhere is nothing to this rule"


@pytest.mark.parametrize(
    ("rule", "host", "address"),
    [
        ("POST http://worker:8000/qtasks", "worker", "10.0.0.5"),
        ("POST http://worker:8000/qtasks/", "WORKER.", "127.0.0.1"),
        ("POST,PUT http://worker:8000/qtasks", "worker", "10.0.0.5"),
        ("http://worker:8000/qtasks", "worker", "10.0.0.5"),
        ("POST http://10.0.0.5:8000/qtasks", "worker", "10.0.0.5"),
    ],
)
def test_a_name_is_judged_with_the_path_and_the_method_of_the_request(rule: str, host: str, address: str) -> None:
    """A connection is allowed for the request that opens it, so the rules that count are chosen for that request."""
    policy = DestinationPolicy("public", (rule,))

    def reaches(path: str, method: str = "POST", host: str = host, port: int = 8000) -> bool:
        limited = policy.limited_rules(parse(f"http://{host}:{port}{path}"), method)
        return policy.check_address(address, host, port, limited) is None

    assert policy.check_address(address, host, 8000) is not None
    assert reaches("/qtasks/add")
    assert not any(reaches(path) for path in (*ELSEWHERE, *AMBIGUOUS))
    assert not reaches("/qtasks/add", port=8001)
    assert reaches("/qtasks/add", "GET") is not rule.startswith("POST")


def test_a_rule_with_a_path_opens_no_port_and_no_metadata_service_beyond_it() -> None:
    policy = DestinationPolicy("public", ("POST http://mail.test:25/hook", "http://169.254.169.254/latest/user-data"))
    assert policy.check_url("http://mail.test:25/hook") is None
    assert policy.check_url("http://mail.test:25/other") is not None
    assert policy.check_url("http://169.254.169.254/latest/user-data", "GET") is None
    assert policy.check_url("http://169.254.169.254/latest/meta-data", "GET") is not None


@pytest.mark.parametrize(
    "rule",
    [
        "POST worker:8000",
        "POST 10.0.0.0/8",
        "post http://worker/x",
        "POST, http://worker/x",
        "POST  http://worker/x",
        "http://worker/x?y=1",
        "http://worker/x/../y",
        "http://worker//x",
        "http://worker/%2e%2e",
    ],
)
def test_a_rule_that_can_be_read_in_several_ways_is_refused(rule: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        DestinationPolicy("public", (rule,))


# --- what a publisher learns


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("10.1.2.3", "a private address (allow it with --allow-destination db.internal:8000)"),
        ("127.0.0.1", "a loopback address (allow it with --allow-destination db.internal:8000)"),
        ("169.254.169.254", "a metadata address (allow that address itself with --allow-destination)"),
        ("fe80::1", "a link-local address (allow that address itself with --allow-destination)"),
        ("64:ff9b::a01:203", "an address that embeds an IPv4 address (allow that address itself with"),
    ],
)
def test_a_refusal_says_the_kind_of_address_and_not_the_address(address: str, words: str) -> None:
    refusal = DestinationPolicy("public").check_address(address, "db.internal", 8000) or ""
    assert words in refusal
    assert address not in refusal


def test_a_refusal_of_the_brokers_own_address_names_it_only_if_the_publisher_did() -> None:
    policy = DestinationPolicy("public", own=frozenset({("0.0.0.0", 8080), ("10.1.2.3", 8080)}))
    by_name = policy.check_address("10.1.2.3", "me.internal", 8080) or ""
    everywhere = policy.check_address("10.1.2.4", "me.internal", 8080, on_this_machine=True) or ""
    for refusal in (by_name, everywhere):
        assert "this broker's own address (it" in refusal
        assert "10.1.2." not in refusal
    assert "own address: 10.1.2.3:8080" in (policy.check_address("10.1.2.3", "10.1.2.3", 8080) or "")


def test_a_name_server_that_answers_nonsense_is_not_quoted() -> None:
    assert "secret" not in (DestinationPolicy("public").check_address("secret", "db.internal", 80) or "secret")
