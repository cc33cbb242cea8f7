"""Bad input for the API, on a real socket: always a 4xx with ``{"error": ...}``, never a 5xx, and nothing stored."""

from __future__ import annotations

import ast
import inspect
import json
from types import ModuleType
from urllib.parse import quote

import pytest

from qtasks.broker.api import auth, routes
from qtasks.broker.api.auth import TokenScope
from qtasks.protocol import signing
from tests.support.api_client import LATER, ApiClient, Lines
from tests.support.running import Endpoint, RunningBroker

INVALID_SCHEME = "invalid destination url: endpoint has invalid scheme, add http:// or https://"


# -- who may enter


@pytest.mark.parametrize(
    "given",
    [
        None,
        "Bearer",
        "Bearer  ",
        "bearer x",
        "Basic dXNlcjpwYXNz",
        "Bearer wrong",
        "Bearer é",
        "Bearer a b",
        "Token {token}",
        "{token}",
        "Bearer {token}x",
        "Bearer {token}, Bearer {token}",
        "Bearer " + "x" * 20_000,
    ],
)
def test_whatever_is_wrong_with_a_token_the_answer_is_the_same(api: ApiClient, given: str | None) -> None:
    token = str(api.user.token)
    value = None if given is None else given.replace("{token}", token).encode().decode("latin-1")
    answer = api.ask("GET", "/v2/keys", authorization=value)
    assert (answer.status, answer.error) == (401, "unauthorized: missing or invalid token")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_two_tokens_are_none(api: ApiClient) -> None:
    answer = api.ask("GET", "/v2/keys", (("Authorization", f"Bearer {api.user.token}"),))
    assert answer.status == 401


@pytest.mark.parametrize("query", ["token={token}", "qstash_token=", "qstash_token=wrong", "xqstash_token={token}"])
def test_a_token_in_the_query_must_be_right_and_have_the_right_name(api: ApiClient, query: str) -> None:
    target = f"/v2/keys?{query.replace('{token}', str(api.user.token))}"
    assert api.ask("GET", target, authorization=None).status == 401


def test_the_scheme_of_a_token_has_no_case_and_may_be_padded(api: ApiClient) -> None:
    for form in ("bearer {}", "BEARER {}", "Bearer   {}", " Bearer {} "):
        assert api.ask("GET", "/v2/keys", authorization=form.format(api.user.token)).status == 200


@pytest.mark.parametrize(
    "lines",
    [
        (("Origin", "http://evil.example"),),
        (("Origin", "null"), ("Content-Type", "text/plain")),
        (("Sec-Fetch-Site", "cross-site"),),
        (("Sec-Fetch-Site", "same-site"), ("Origin", "http://localhost:3000")),
    ],
)
def test_a_web_page_cannot_use_a_token_in_the_query(api: ApiClient, lines: Lines) -> None:
    """A browser sends such a request without asking, and the development tokens are public."""
    target = f"/v2/publish/http://127.0.0.1:1/?qstash_token={quote(api.user.token or '')}"
    answer = api.ask("POST", target, (*LATER, *lines), b"", authorization=None)
    assert (answer.status, "webhooks" in answer.error) == (403, True)
    assert api.stored() == []
    typed = api.ask("POST", target, (*LATER, ("Sec-Fetch-Site", "none")), b"", authorization=None)
    assert typed.status == 201


@pytest.mark.parametrize("name", ["qstash_token", "QSTASH_TOKEN", "qstash%5Ftoken"])
def test_a_token_in_the_query_of_a_publish_opens_the_door_and_is_not_passed_on(api: ApiClient, name: str) -> None:
    target = f"/v2/publish/http://127.0.0.1:1/x?a=1&{name}={api.user.token}&b=%20&upstash-delay=1d"
    answer = api.ask("POST", target, body=b"", authorization=None)
    assert answer.status == 201
    assert answer.json["url"] == "http://127.0.0.1:1/x?a=1&b=%20"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/keys"),
        ("POST", "/v2/keys/rotate"),
        ("GET", "/v2/logs"),
        ("GET", "/v2/dlq"),
        ("DELETE", "/v2/messages/msg_1"),
        ("POST", "/v2/batch"),
        ("POST", "/v2/schedules/http://127.0.0.1:1/"),
        ("POST", "/v2/queues"),
        ("POST", "/v2/topics/g/endpoints"),
        ("POST", "/llm/v1/chat/completions"),
    ],
)
def test_a_token_in_the_query_opens_publishing_only(api: ApiClient, method: str, path: str) -> None:
    """Such a URL is given to other services, and is kept in the logs of proxies."""
    answer = api.ask(method, f"{path}?qstash_token={quote(api.user.token or '')}", body=b"", authorization=None)
    assert (answer.status, "Authorization: Bearer" in answer.body.decode()) == (403, True)


def test_a_token_in_the_query_opens_the_queues_to_messages(api: ApiClient) -> None:
    target = f"/v2/enqueue/q/http://127.0.0.1:1/?qstash_token={quote(api.user.token or '')}"
    assert api.ask("POST", target, body=b"", authorization=None).status == 201


def test_a_schedule_needs_the_token_in_a_header(api: ApiClient) -> None:
    target = f"/v2/publish/http://127.0.0.1:1/?qstash_token={quote(api.user.token or '')}&upstash-cron=*+*+*+*+*"
    answer = api.ask("POST", target, body=b"", authorization=None)
    assert (answer.status, "Authorization: Bearer" in answer.error) == (403, True)
    assert json.loads(api.ask("GET", "/v2/schedules").body) == []


def test_who_is_not_known_learns_nothing_about_the_endpoints(api: ApiClient) -> None:
    for method, path in (("GET", "/nothing/here"), ("PUT", "/v2/keys"), ("OPTIONS", "/v2/publish/http://h/")):
        assert api.ask(method, path, authorization=None).status == 401


@pytest.mark.parametrize("module", [auth, signing])
def test_no_secret_is_compared_with_an_operator(module: ModuleType) -> None:
    """A comparison of texts ends at the first difference, and so tells how far a guess was right."""
    secret = {"token", "digest", "signature", "key", "current", "next", "body_hash", "actual", "expected", "mac"}

    def names(node: ast.expr) -> set[str]:
        return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} | {
            one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)
        }

    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            compared = set.union(*(names(side) for side in (node.left, *node.comparators)))
            assert not compared & secret, f"line {node.lineno} of {module.__name__} compares {compared & secret}"


def test_every_route_declares_its_scope_and_a_token_to_read_with_changes_nothing(broker: RunningBroker) -> None:
    """A new route fails here until it says what it needs."""
    reader = ApiClient(int(broker.url.rpartition(":")[2]), broker.new_user(TokenScope.READ))
    for route in routes.ROUTES:
        assert isinstance(route.scope, TokenScope)
        assert route.scope >= (TokenScope.READ if route.method == "GET" else TokenScope.PUBLISH), route
        path = "/" + "/".join({"{}": "msg_1", "*": "http://127.0.0.1:1/"}.get(part, part) for part in route.path)
        answer = reader.ask(route.method, path, body=b"" if route.method == "POST" else None)
        if route.scope > TokenScope.READ:
            assert (answer.status, answer.error) == (403, "this token may read only"), route
        else:
            assert answer.status in (200, 404, 501), route
    assert reader.stored() == []


def test_a_browser_is_given_no_leave_to_read(api: ApiClient) -> None:
    """No answer carries a CORS header, and a preflight has no token."""
    origin: Lines = (("Origin", "http://evil.test"), ("Access-Control-Request-Method", "POST"))
    preflight = api.ask("OPTIONS", "/v2/publish/http://127.0.0.1:1/", origin, authorization=None)
    simple = api.ask("POST", "/v2/publish/http://127.0.0.1:1/", origin, b"x", authorization=None)
    allowed = api.ask("GET", "/v2/keys", origin)
    assert (preflight.status, simple.status, allowed.status) == (401, 401, 200)
    for answer in (preflight, simple, allowed):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_what_belongs_to_somebody_else_is_as_unknown_as_what_never_was(broker: RunningBroker, api: ApiClient) -> None:
    other = ApiClient(api.port, broker.new_user())
    theirs = other.publish().json["messageId"]
    invented = theirs[:-4] + "zzzz"
    for method in ("GET", "DELETE"):
        seen = api.ask(method, f"/v2/messages/{theirs}")
        unknown = api.ask(method, f"/v2/messages/{invented}")
        assert seen.status == unknown.status == 404
        assert seen.error.replace(theirs, "") == unknown.error.replace(invented, "")
    assert other.ask("GET", f"/v2/messages/{theirs}").status == 200


# -- paths and destinations (docs/protocol.md 2.0 and 2.1)


def test_paths_have_no_case_and_a_trailing_slash_is_ignored(api: ApiClient) -> None:
    message_id = api.publish().json["messageId"]
    for path in ("/v2/keys", "/V2/Keys/", "/v2/EVENTS/", "/v2/dlq/?count=1", f"/v2/Messages/{message_id}/"):
        assert api.ask("GET", path).status == 200, path
    assert api.ask("POST", "/V2/PUBLISH/http://127.0.0.1:1/", LATER, b"").status == 201
    assert api.ask("GET", f"/v2/messages/{message_id.lower()}").status == 404, "ids have a case"


@pytest.mark.parametrize(
    "path",
    [
        "/v2",
        "/v1/publish/http://h/",
        "/v2/keys/x",
        "//v2/keys",
        "/v2//keys",
        "/v2/keys;x",
        "/v2/%6beys",
        "/v2/../v2/keys",
        "/v2/messages/a/b",
    ],
)
def test_an_unknown_path_is_not_found(api: ApiClient, path: str) -> None:
    answer = api.ask("GET", path)
    assert answer.status == 404
    assert "no such endpoint: GET" in answer.error


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/publish/http://h/", "POST"),
        ("PUT", "/v2/messages/msg_1", "GET, DELETE"),
        ("POST", "/v2/keys", "GET"),
        ("PATCH", "/v2/dlq", "GET, DELETE"),
        ("GET", "/v2/messages", "DELETE"),
        ("GET", "/v2/messages/", "DELETE"),
        ("OPTIONS", "/v2/events", "GET"),
    ],
)
def test_a_known_path_with_another_method_says_which_it_has(
    api: ApiClient, method: str, path: str, allowed: str
) -> None:
    answer = api.ask(method, path, body=b"")
    assert answer.status == 405
    assert answer.headers["allow"] == allowed
    assert f"{method} is not allowed here" in answer.error


@pytest.mark.parametrize(
    ("destination", "text"),
    [
        ("", INVALID_SCHEME),
        ("no-such-group", INVALID_SCHEME + " (there is no URL group named 'no-such-group')"),
        ("ftp://h.example/x", INVALID_SCHEME),
        ("//h.example/x", INVALID_SCHEME),
        ("h.example/x", INVALID_SCHEME),
        ("javascript:alert(1)", INVALID_SCHEME),
        ("https%3A%2F%2Fh.example", INVALID_SCHEME + " (it is percent-encoded"),
        ("HTTP%3a//h.example", INVALID_SCHEME + " (it is percent-encoded"),
        ("https%253A%252F%252Fh.example", INVALID_SCHEME + " (it is percent-encoded"),
        ("a b".replace(" ", "%20"), INVALID_SCHEME),
        ("http://", "invalid destination url: the host is missing"),
        ("http:///x", "invalid destination url: the host is missing"),
        ("http://h:0/", "invalid destination url: port '0'"),
        ("http://h:99999/", "invalid destination url: port '99999'"),
        ("http://h:8_0/", "invalid destination url: port '8_0'"),
        ("http://127.1/", "invalid destination url: '127.1' looks like an address"),
        ("http://2130706433/", "looks like an address"),
        ("http://0x7f.1/", "looks like an address"),
        ("http://[::1", "invalid destination url"),
        ("http://[::1%2525lo]/", "invalid destination url"),
        ("http://h.example/%00", "'%00' at position"),
        ("http://h\\.example/", "at position"),
        ("http://169.254.169.254/latest", "invalid destination url: endpoint resolves to a metadata address"),
        ("http://metadata.google.internal/", "invalid destination url: endpoint resolves to a metadata address"),
        ("http://[fd00:ec2::254]/", "invalid destination url: endpoint resolves to a metadata address"),
    ],
)
def test_a_destination_that_cannot_be_delivered_to_is_refused_with_the_known_words(
    api: ApiClient, destination: str, text: str
) -> None:
    answer = api.publish(destination)
    assert answer.status == 400
    assert text in answer.error
    assert api.stored() == []


@pytest.mark.parametrize(
    "destination",
    [
        "http://127.0.0.1:1/a%2Fb//c/%2e%2e/../d?x=1&y=%20&&z",
        "http://127.0.0.1:1",
        "http://127.0.0.1:1/",
        "HTTP://LocalHost:1/",
        "http://user:pa%40ss@127.0.0.1:1/",
        "http://127.0.0.1:1/;x?a=b;c=d",
        "http://[::1]:1/?u=http://other/",
        "http://127.0.0.1:1/ö".replace("ö", "%C3%B6"),
        "http://127.0.0.1:1/?" + "&".join(f"p{n}={n}" for n in range(300)),
    ],
)
def test_a_destination_is_kept_byte_for_byte(api: ApiClient, destination: str) -> None:
    answer = api.publish(destination)
    assert answer.status == 201
    assert answer.json["url"] == destination
    kept = api.ask("GET", f"/v2/messages/{answer.json['messageId']}")
    assert kept.json["url"] == destination


def test_configuration_in_the_query_is_taken_out_and_a_header_wins_over_it(api: ApiClient) -> None:
    target = "http://127.0.0.1:1?Upstash-Retries=7&upstash-delay=2d&upstash-label=a%2Cb"
    answer = api.publish(target, (("Upstash-Retries", "1"),))
    kept = api.ask("GET", f"/v2/messages/{answer.json['messageId']}").json
    assert (kept["url"], kept["maxRetries"], kept["labels"]) == ("http://127.0.0.1:1", 1, ["a", "b"])
    assert kept["notBefore"] - kept["createdAt"] == 2 * 86_400_000


# -- the options of a publish


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("Upstash-Delay", v) for v in ("10", "-1s", "", "9e99d", "1_0s", "1h1h", "1h 2m", "367d", "s", "1" * 9_000)),
        *(("Upstash-Not-Before", v) for v in ("-1", "1.5", "NaN", "1e3", "1_0", "99999999999999999999", "soon")),
        *(("Upstash-Retries", v) for v in ("-1", "1e3", "1_0", "", "3.0", "0x3", "many")),
        *(("Upstash-Timeout", v) for v in ("0s", "-1s", "30", "3h", "9e9s", "forever")),
        *(("Upstash-Method", v) for v in ("CONNECT", "TRACE", "HEAD", "foo", "", "GET / HTTP/1.1")),
        *(("Upstash-Retry-Delay", v) for v in ("1/0", "pow(10,pow(10,10))", "pow(-1,0.5)", "foo(1)", "1 +", "")),
        ("Upstash-Retry-Delay", "retried.__class__"),
        ("Upstash-Retry-Delay", "__import__('os').system('id')"),
        ("Upstash-Retry-Delay", "(" * 200 + "1" + ")" * 200),
        ("Upstash-Retry-Delay", "+".join("1" * 5_000)),
        ("Upstash-Retry-Delay", "exp(exp(exp(9)))"),
        ("Upstash-Deduplication-Id", "a:b"),
        ("Upstash-Deduplication-Id", "x" * 600),
        ("Upstash-Deduplication-Id", ""),
        ("Upstash-Content-Based-Deduplication", "perhaps"),
        ("Upstash-Callback", "not-a-url"),
        ("Upstash-Callback", "http://169.254.169.254/"),
        ("Upstash-Failure-Callback", "ftp://h.example/"),
        ("Upstash-Flow-Control-Key", "alone"),
        ("Upstash-Redact-Fields", "everything"),
        ("Upstash-Label", ",".join("l" * 600 for _ in range(2))),
        ("Upstash-Label", ",".join(str(n) for n in range(100))),
        ("Upstash-Forward-", "no name"),
        ("Upstash-Forward-X", "ümlaut"),
    ],
)
def test_a_value_that_could_not_be_carried_out_is_refused_by_name(api: ApiClient, name: str, value: str) -> None:
    """At publish, while there is a caller to read the error."""
    extra: Lines = (("Upstash-Callback", "http://127.0.0.1:1/"),) if "Callback-" in name else ()
    answer = api.publish(headers=((name, value), *extra))
    assert answer.status in (400, 412, 431)
    field = name.removeprefix("Upstash-Forward-").removeprefix("Upstash-Callback-Forward-")
    assert (
        field in answer.error
        or "DeduplicationId" in answer.error
        or "forwarded header" in answer.error
        or ("destination" in answer.error and "169.254" in value)
    )
    assert len(answer.body) < 1_000, "an error repeats no more of the input than people can read"
    assert api.stored() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Upstash-Delay", "٣s"),
        ("Upstash-Retries", "٣"),
        ("Upstash-Not-Before", "١٢٣"),
        ("Upstash-Timeout", "３s"),
    ],
)
def test_digits_are_those_of_ascii(api: ApiClient, name: str, value: str) -> None:
    answer = api.publish(headers=((name, value),))
    assert answer.status == 400
    assert name in answer.error


def test_too_many_retries_are_beyond_what_the_service_allows(api: ApiClient) -> None:
    for value in ("1000", str(2**63), "9" * 18):
        answer = api.publish(headers=(("Upstash-Retries", value),))
        assert (answer.status in (400, 412), "Upstash-Retries" in answer.error) == (True, True)


@pytest.mark.parametrize("name", ["Upstash-Retries", "Upstash-Delay", "Upstash-Method", "Upstash-Callback"])
def test_an_option_given_twice_with_different_values_is_refused(api: ApiClient, name: str) -> None:
    answer = api.publish(headers=((name, "1"), (name.upper(), "2")))
    assert answer.status == 400
    assert f"{name} is given 2 times, with different values" in answer.error


@pytest.mark.parametrize(
    "forged",
    ["Upstash-Signature", "UPSTASH-signature", "Upstash-Message-Id", "Upstash-Retried", "Upstash-Caller-Ip"],
)
def test_the_brokers_own_headers_reach_the_endpoint_once_and_unforged(
    api: ApiClient, broker: RunningBroker, forged: str
) -> None:
    endpoint = Endpoint()
    try:
        headers = ((f"Upstash-Forward-{forged}", "forged"), (f"upstash-forward-{forged}", "twice"))
        message_id = api.publish(endpoint.url, headers).json["messageId"]
        [received] = endpoint.wait_for(1)
    finally:
        endpoint.close()
    names = [name.lower() for name, _ in received.lines]
    assert names.count(forged.lower()) == 1
    assert not {"forged", "twice"} & {value for _, value in received.lines}
    assert received.headers["Upstash-Message-Id"] == message_id


# -- lists


@pytest.mark.parametrize("path", ["/v2/events", "/v2/logs", "/v2/dlq"])
@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("cursor=x", "cursor"),
        ("cursor=1-1;DROP%20TABLE%20log", "cursor"),
        ("cursor=99999999999999999999-1", "cursor"),
        ("cursor=%D9%A1-1", "cursor"),
        ("count=0", "count"),
        ("count=-1", "count"),
        ("count=1e3", "count"),
        ("count=%D9%A3", "count"),
        ("count=99999999999999999999", "count"),
        ("fromDate=yesterday", "fromDate"),
        ("toDate=1.5", "toDate"),
        ("toDate=" + "9" * 400, "toDate"),
        ("url=%ff", "malformed query"),
        ("label=a%00b", "label"),
        ("&".join(f"x{n}=1" for n in range(1100)), "malformed query"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused_by_name(api: ApiClient, path: str, query: str, name: str) -> None:
    answer = api.ask("GET", f"{path}?{query}")
    assert answer.status == 400
    assert name in answer.error
    assert len(answer.body) < 1_000


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/v2/events?state=SLEEPING", "state: unknown state 'SLEEPING'; expected one of CREATED, ACTIVE"),
        ("/v2/dlq?responseStatus=4xx", "responseStatus: expected an HTTP status such as 404, got '4xx'"),
        ("/v2/dlq?dlqIds=nonsense", "nonsense"),
    ],
)
def test_a_filter_with_its_own_values_says_which(api: ApiClient, path: str, text: str) -> None:
    answer = api.ask("GET", path)
    assert answer.status == 400
    assert text in answer.error


@pytest.mark.parametrize(
    "text", ["' OR 1=1 --", "%", "_", "\\", '"; DROP TABLE messages; --', "{{7*7}}", "\u202e", "🙂"]
)
def test_hostile_text_in_a_filter_is_text(api: ApiClient, text: str) -> None:
    api.publish()
    quoted = "".join(f"%{byte:02X}" for byte in text.encode())
    for name in ("messageId", "url", "label", "topicName", "queueName", "scheduleId", "flowControlKey", "callerIp"):
        for path, key in (("/v2/events", "events"), ("/v2/dlq", "messages")):
            answer = api.ask("GET", f"{path}?{name}={quoted}")
            assert (answer.status, answer.json[key]) == (200, [])
    for path in (f"/v2/messages/{quoted}", f"/v2/dlq/{quoted}"):
        assert api.ask("GET", path).status == 404
    assert api.ask("DELETE", f"/v2/messages/{quoted}").status == 404
    assert len(api.stored()) == 1


def test_as_many_filter_values_as_fit_into_a_request_are_served(api: ApiClient) -> None:
    kept = api.publish().json["messageId"]
    ids = "&".join(f"messageIds=m{n}" for n in range(450))
    assert [entry["messageId"] for entry in api.ask("GET", f"/v2/events?{ids}&messageIds={kept}").json["events"]] == [
        kept
    ]
    many = ",".join(f"{n}-{n}" for n in range(700))
    assert api.ask("GET", f"/v2/dlq?dlqIds={many}").json == {"messages": []}
    states = ",".join(["CREATED"] * 800)
    assert len(api.ask("GET", f"/v2/events?state={states}").json["events"]) == 1


@pytest.mark.parametrize("path", ["/v2/messages/%ff", "/v2/messages/%00", "/v2/dlq/%C3%28"])
def test_an_id_that_is_no_text_is_refused(api: ApiClient, path: str) -> None:
    answer = api.ask("GET", path)
    assert answer.status == 400
    assert "UTF-8" in answer.error or "NUL" in answer.error


def test_both_names_of_the_log_show_the_same_under_both_keys(api: ApiClient) -> None:
    """docs/compatibility.md A3."""
    api.publish()
    events, logs = api.ask("GET", "/v2/events").json, api.ask("GET", "/v2/logs").json
    assert events == logs
    assert events["events"] == events["logs"]
    assert len(events["events"]) == 1
    assert "cursor" not in events


def test_both_spellings_of_cancelled_find_the_same(api: ApiClient) -> None:
    """docs/compatibility.md A4."""
    message_id = api.publish().json["messageId"]
    assert api.ask("DELETE", f"/v2/messages/{message_id}").json == {"cancelled": 1}
    for spelling in ("CANCELED", "CANCELLED", "canceled"):
        [entry] = api.ask("GET", f"/v2/events?state={spelling}").json["events"]
        assert entry["state"] == "CANCELED"
