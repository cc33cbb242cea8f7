"""Who gets into the console, and the attacks on it: forged requests, other origins, frames, rebound names, sessions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qtasks.broker.api import auth
from qtasks.broker.console.access import SCOPES
from qtasks.broker.console.console_context import Role
from qtasks.broker.console.sessions import MOST, TRIES
from qtasks.broker.console.view_table import VIEWS, Right
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.settings import BrokerSettings
from qtasks.broker.store.verbs import accounts
from tests.support.console import TOKENS, Browser, add_tokens
from tests.support.process import PATIENCE_S
from tests.support.running import RunningBroker

ROLES = tuple(TOKENS)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """A broker with credentials of its own, where people must sign in."""
    path = tmp_path_factory.mktemp("console") / "broker.db"
    broker = RunningBroker(BrokerSettings(path=str(path), credentials=(AccountCredentials("default", "own-token"),)))
    add_tokens(broker)
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def development(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """A broker with the public development credentials on a loopback address."""
    broker = RunningBroker(BrokerSettings(path=str(tmp_path_factory.mktemp("dev") / "broker.db")))
    yield broker
    broker.stop()


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def signed_in(running: RunningBroker, token: str = "operator") -> Browser:
    return Browser(running.url, token)


# -- the sign-in


def test_a_stranger_sees_the_page_and_nothing_else(running: RunningBroker) -> None:
    browser = Browser(running.url)
    assert browser.client.get("/").status_code == 200
    assert browser.ask("GET", "session").json() == {"signedIn": False}
    for path in ("queues", "system", "events", "v2/queues", "no-such-view"):
        answer = browser.ask("GET", path)
        assert (answer.status_code, answer.json()) == (401, {"error": "sign in with a token of this broker"}), path


def test_a_token_becomes_a_session_of_its_role(running: RunningBroker, role: str) -> None:
    browser = signed_in(running, role)
    session = browser.ask("GET", "session").json()
    assert session["signedIn"] is session["canSignOut"] is True
    assert (session["role"], session["account"], session["csrf"]) == (role, "default", browser.csrf)
    assert session["service"] == {"kind": "broker", "url": None, "lacks": ["llm"]}


def test_the_cookie_is_kept_from_scripts_and_from_other_sites(running: RunningBroker) -> None:
    plain = Browser(running.url).ask("POST", "session", json={"token": "operator"}).headers["set-cookie"]
    parts = [part.strip().lower() for part in plain.split(";")]
    assert {"httponly", "samesite=strict", "max-age=43200"} <= set(parts)
    assert not any(part.startswith(("path", "domain")) for part in parts), "the browser keeps it to console/api"
    assert "secure" not in parts, "over plain HTTP the browser would drop it"
    port = running.url.rpartition(":")[2]
    assert plain.startswith(f"qtasks_session_{port}="), "two brokers on one host do not overwrite each other's"
    for line in ({"X-Forwarded-Proto": "https"}, {"Origin": f"https://127.0.0.1:{port}"}):
        answer = Browser(running.url).ask("POST", "session", json={"token": "operator"}, headers=line)
        assert answer.headers["set-cookie"].endswith("; Secure")


def test_the_session_ends_with_the_sign_out(running: RunningBroker) -> None:
    browser = signed_in(running)
    [(name, value)] = browser.client.cookies.items()
    assert browser.ask("DELETE", "session").status_code == 200
    assert dict(browser.client.cookies) == {}
    browser.client.cookies.set(name, value)
    assert browser.ask("GET", "queues").status_code == 401, "the old cookie is worth nothing"


def test_a_session_ends_with_its_token(tmp_path: Path) -> None:
    broker = RunningBroker(
        BrokerSettings(path=str(tmp_path / "b.db"), credentials=(AccountCredentials("default", "own-token"),))
    )
    try:
        account = broker.broker.accounts["default"]
        write = broker.broker.store.write
        broker.call(write(accounts.add_token, "temporary", account, "guest", read_only=True, now_ms=1))
        browser = signed_in(broker, "temporary")
        assert browser.ask("GET", "queues").status_code == 200
        broker.call(write(accounts.remove_token, account, "guest"))
        broker.broker.tokens._read_s = float("-inf")  # a second has passed
        assert browser.ask("GET", "queues").status_code == 401
        assert browser.ask("GET", "session").json() == {"signedIn": False}
    finally:
        broker.stop()


def test_the_id_of_a_session_is_never_chosen_by_a_request(running: RunningBroker) -> None:
    victim = Browser(running.url)
    port = running.url.rpartition(":")[2]
    victim.client.cookies.set(f"qtasks_session_{port}", "chosen-by-an-attacker", domain="127.0.0.1")
    answer = victim.ask("POST", "session", json={"token": "operator"})
    assert "chosen-by-an-attacker" not in answer.headers["set-cookie"]
    attacker = Browser(running.url)
    attacker.client.cookies.set(f"qtasks_session_{port}", "chosen-by-an-attacker")
    assert attacker.ask("GET", "queues").status_code == 401


def test_a_new_sign_in_ends_the_session_before(running: RunningBroker) -> None:
    browser = signed_in(running)
    before = dict(browser.client.cookies)
    assert browser.ask("POST", "session", json={"token": "viewer"}).status_code == 200
    old = Browser(running.url)
    old.client.cookies.update(before)
    assert old.ask("GET", "queues").status_code == 401


def test_after_ten_wrong_tokens_a_minute_an_address_must_wait_and_a_right_one_still_signs_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = RunningBroker(
        BrokerSettings(path=str(tmp_path / "b.db"), credentials=(AccountCredentials("default", "own-token"),))
    )
    try:
        browser = Browser(broker.url)
        for token in ("wrong", "", None, 7, "x" * 5000, *["guess"] * (TRIES - 5)):
            answer = browser.ask("POST", "session", json={"token": token})
            assert (answer.status_code, answer.json()) == (401, {"error": "this is not a token of this broker"})
        answer = browser.ask("POST", "session", json={"token": "guess"})
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= 61
        visitor = Browser(broker.url)
        assert visitor.ask("POST", "session", json={"token": "own-token"}).status_code == 200, "of the same address"
        lines = [record.getMessage() for record in caplog.records if "wrong token" in record.getMessage()]
        assert lines == ["POST of /console/api/session from 127.0.0.1: missing or wrong token"], (
            "the others are counted"
        )
    finally:
        broker.stop()


def test_sessions_are_bounded(running: RunningBroker) -> None:
    access = running.broker.console()._access
    for _ in range(MOST + 10):
        access._sessions.begin("operator")
    assert len(access._sessions._sessions) == MOST


def test_a_bearer_token_needs_neither_session_nor_header(running: RunningBroker, role: str) -> None:
    answer = httpx.get(f"{running.url}/console/api/session", headers={"Authorization": f"Bearer {role}"})
    assert (answer.json()["role"], answer.json()["canSignOut"], answer.json()["csrf"]) == (role, False, None)
    wrong = httpx.get(f"{running.url}/console/api/queues", headers={"Authorization": "Bearer wrong"})
    assert wrong.status_code == 401


def test_a_stream_ends_with_its_bearer_token(running: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "STALE_S", 0.0)
    write, account = running.broker.store.write, next(iter(running.broker.accounts.values()))
    assert running.call(write(accounts.add_token, "leaves", account, "leaves", read_only=True, now_ms=0))
    lines = {"Authorization": "Bearer leaves"}
    with httpx.stream("GET", f"{running.url}/console/api/events", headers=lines, timeout=PATIENCE_S) as stream:
        events = stream.iter_lines()
        next(events)
        assert running.call(write(accounts.remove_token, account, "leaves"))
        own = {"Authorization": "Bearer own-token", "Upstash-Delay": "1d"}
        httpx.post(f"{running.url}/v2/publish/http://127.0.0.1:9/", headers=own).raise_for_status()
        assert "CREATED" not in "".join(events)


def test_in_development_no_sign_in_is_needed(development: RunningBroker) -> None:
    session = Browser(development.url).ask("GET", "session").json()
    assert (session["signedIn"], session["canSignOut"], session["role"]) == (True, False, "operator")


# -- what each role may do


def paths(right: Right) -> list[tuple[str, str]]:
    return [
        (view.method, "/".join("x" if part == "{}" else part for part in view.path))
        for view in VIEWS
        if view.right is right
    ]


def test_every_request_that_changes_something_needs_an_operator() -> None:
    assert {view.method for view in VIEWS if view.right is not Right.ACT} == {"GET"}
    assert {view.method for view in VIEWS if view.right is Right.ACT} == {"POST"}


def test_only_an_operator_acts(running: RunningBroker, role: str) -> None:
    browser = signed_in(running, role)
    for method, path in [*paths(Right.ACT), ("POST", "v2/queues"), ("DELETE", "v2/messages/x"), ("GET", "v2/keys")]:
        answer = browser.ask(method, path, json={} if method == "POST" else None)
        assert (answer.status_code == 403) is (role != "operator"), (path, answer.text)
    assert set(SCOPES) == set(Role)


def test_everyone_looks(running: RunningBroker, role: str) -> None:
    browser = signed_in(running, role)
    for method, path in paths(Right.LOOK):
        assert browser.ask(method, path).status_code in ((404,) if "/x" in path else (200,)), path


def test_what_is_made_of_payloads_is_for_those_who_see_them(running: RunningBroker, role: str) -> None:
    browser = signed_in(running, role)
    for method, path in paths(Right.READ):
        assert browser.ask(method, path).status_code == (403 if role == "metadata" else 404), path


def test_a_token_without_payloads_opens_no_endpoint_of_the_api(running: RunningBroker) -> None:
    browser = signed_in(running, "metadata")
    for path in ("v2/messages/x", "v2/logs", "v2/dlq", "v2/schedules"):
        assert browser.ask("GET", path).status_code == 403, path
    direct = httpx.get(f"{running.url}/v2/logs", headers={"Authorization": "Bearer metadata"})
    assert (direct.status_code, direct.json()) == (403, {"error": "this token opens the console and /metrics only"})


# -- forged requests


@pytest.mark.parametrize("csrf", [None, "wrong", "ä"])
def test_a_change_needs_the_text_of_its_session(running: RunningBroker, csrf: str | None) -> None:
    browser = signed_in(running)
    other = signed_in(running)
    for header in (csrf, other.csrf if csrf == "wrong" else csrf):
        lines = {} if header is None else {"QTasks-CSRF": header.encode()}
        answer = browser.client.post("/console/api/v2/queues", headers=lines, json={"queueName": "forged"})  # type: ignore[arg-type]
        assert answer.status_code == 403
    assert browser.ask("GET", "v2/queues").json() == []


@pytest.mark.parametrize(
    "lines",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://[broken"},
    ],
    ids=str,
)
def test_pages_of_other_origins_change_nothing(development: RunningBroker, lines: dict[str, str]) -> None:
    browser = Browser(development.url)
    csrf = browser.ask("GET", "session").json()["csrf"]
    answer = browser.client.post(
        "/console/api/v2/queues", headers={**lines, "QTasks-CSRF": csrf}, json={"queueName": "forged"}
    )
    assert answer.status_code == (200 if lines.get("Sec-Fetch-Site") == "same-origin" else 403)


def test_pages_of_other_origins_read_nothing(development: RunningBroker) -> None:
    for lines in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.example"}):
        answer = httpx.get(f"{development.url}/console/api/queues", headers=lines)
        assert answer.status_code == 403, lines
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    own = {"Origin": development.url}
    assert httpx.get(f"{development.url}/console/api/queues", headers=own).status_code == 200


@pytest.mark.parametrize("path", ["/console/api/session", "/console/api/queues", "/metrics"])
def test_a_publisher_does_not_reach_the_console_through_a_broker(development: RunningBroker, path: str) -> None:
    chosen = {"Sec-Fetch-Site": "same-origin", "Origin": development.url}  # a publisher forwards any headers
    assert httpx.get(f"{development.url}{path}", headers=chosen).status_code == 200
    answer = httpx.get(f"{development.url}{path}", headers={**chosen, "Upstash-Message-Id": "msg_1"})
    assert (answer.status_code, "csrf" in answer.text) == (403, False)


@pytest.mark.parametrize("path", ["/", "/console/static/app.js", "/console/api/session", "/console/api/queues"])
def test_a_rebound_name_gets_nothing(development: RunningBroker, path: str) -> None:
    answer = httpx.get(development.url + path, headers={"Host": "evil.example"})
    assert answer.status_code == 421


# -- headers and files


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/console/static/app.js",
        "/console/static/none.js",
        "/console/api/session",
        "/console/api/none",
        "/console/api/v2/queues",
    ],
)
def test_every_answer_says_how_it_may_be_used(development: RunningBroker, path: str) -> None:
    answer = httpx.get(development.url + path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == ("no-store" if "/api/" in path or "none" in path else "no-cache")
    assert "access-control-allow-origin" not in answer.headers


def test_the_page_and_its_files_are_served_packed_and_are_asked_for_again(development: RunningBroker) -> None:
    page = httpx.get(development.url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for path in re.findall(r'(?:href|src)="([^"#:]+)"', page.text):
        packed = httpx.get(f"{development.url}/{path}")
        plain = httpx.get(f"{development.url}/{path}", headers={"Accept-Encoding": "identity, gzip;q=0"})
        assert packed.content == plain.content
        assert "content-encoding" not in plain.headers
        tag = packed.headers["etag"]
        assert (tag != plain.headers["etag"]) is ("content-encoding" in packed.headers)
        again = httpx.get(f"{development.url}/{path}", headers={"If-None-Match": f'"other", {tag}'})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/console/static/../console.py",
        "/console/static/%2e%2e/console.py",
        "/console/static/..%2fconsole.py",
        "/console/static//etc/passwd",
        "/console/static/app.js%00.html",
        "/console/static/",
        "/console/",
        "/console/static/pages/../app.js",
    ],
)
def test_only_listed_files_are_served(development: RunningBroker, path: str) -> None:
    import http.client

    connection = http.client.HTTPConnection(development.url.removeprefix("http://"), timeout=10)
    connection.putrequest("GET", path)
    connection.endheaders()
    assert connection.getresponse().status == 404
    connection.close()


def test_a_large_request_is_refused_before_it_is_read(running: RunningBroker) -> None:
    answer = Browser(running.url).ask("POST", "session", json={"token": "x" * 20_000})
    assert answer.status_code == 413


def test_metrics_take_a_token_of_any_role(running: RunningBroker, role: str) -> None:
    answer = httpx.get(f"{running.url}/metrics", headers={"Authorization": f"Bearer {role}"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "qtasks_log_entries_behind 0" in answer.text
    assert httpx.get(f"{running.url}/metrics").status_code == 401
    assert httpx.post(f"{running.url}/metrics", headers={"Authorization": f"Bearer {role}"}).status_code == 405


def test_in_development_metrics_need_no_token(development: RunningBroker) -> None:
    assert httpx.get(f"{development.url}/metrics").status_code == 200
