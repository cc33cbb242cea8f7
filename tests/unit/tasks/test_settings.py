"""Which service is chosen, where each value comes from, and the errors for missing values."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from qtasks.errors import ConfigurationError
from qtasks.protocol.messages import SigningKeys
from qtasks.tasks.dev_server import DevServer, find_dev_server
from qtasks.tasks.ports import Connection
from qtasks.tasks.settings import DEV_SIGNING_KEYS, DEV_TOKEN, Settings, SettingsOverrides, embedded, resolve
from tests.support.tasks import KEYS, RecordingTransport

DEV = DevServer(
    path=Path("/p/.qtasks/dev.json"),
    url="http://127.0.0.1:9999",
    token="dev-token",
    keys=SigningKeys("sig_1" + "d" * 27, "sig_2" + "d" * 27),
    base_url="http://127.0.0.1:8001/jobs",
    results="sqlite:////p/.qtasks/results.db",
)


def read(environment: dict[str, str] | None = None, dev: DevServer | str = "not found", **overrides: Any) -> Settings:
    return resolve(environment or {}, cast("SettingsOverrides", overrides), lambda url: dev)


def test_a_token_in_the_environment_chooses_the_hosted_service() -> None:
    settings = read({"QSTASH_TOKEN": "t", "QTASKS_BASE_URL": "https://app.example.com/qtasks/"}, dev=DEV)
    assert settings.sender() == ("https://qstash.upstash.io", "t", "https://app.example.com/qtasks")
    assert settings.origin("token") == "environment"
    assert settings.origin("url") == "default"


def test_a_url_in_the_environment_chooses_a_broker_of_ones_own() -> None:
    settings = read({"QSTASH_TOKEN": "t", "QSTASH_URL": "https://broker.example.com/v2/publish/"})
    assert settings.url == "https://broker.example.com"
    assert settings.origin("url") == "environment"


def test_an_argument_wins_over_the_environment() -> None:
    settings = read({"QSTASH_TOKEN": "t", "QTASKS_RESULTS": "sqlite:///a"}, results="memory://")
    assert settings.results == "memory://"
    assert settings.origin("results") == "argument"


def test_without_a_token_a_running_development_server_is_used() -> None:
    settings = read({"QTASKS_RESULTS": "memory://"}, dev=DEV)
    assert settings.sender() == (DEV.url, "dev-token", DEV.base_url)
    assert settings.receiver() == (DEV.keys, DEV.base_url)
    assert settings.origin("token") == ".qtasks/dev.json"
    assert settings.results == "memory://"


def test_a_development_server_knows_where_its_application_is_better_than_the_environment() -> None:
    production = {
        "QTASKS_BASE_URL": "https://app.example.com/qtasks",
        "QSTASH_CURRENT_SIGNING_KEY": "sig_" + "p" * 28,
        "QSTASH_NEXT_SIGNING_KEY": "sig_" + "q" * 28,
    }
    settings = read(production, dev=DEV)
    assert settings.sender() == (DEV.url, "dev-token", DEV.base_url)
    assert settings.receiver() == (DEV.keys, DEV.base_url)
    assert settings.results == DEV.results


def test_the_development_server_is_asked_about_the_url_that_was_given() -> None:
    asked: list[str | None] = []

    def find(url: str | None) -> str:
        asked.append(url)
        return "no"

    resolve({"QSTASH_URL": "http://127.0.0.1:8080/"}, {}, find)
    resolve({}, {}, find)
    assert asked == ["http://127.0.0.1:8080", None]


def test_the_development_switch_means_the_official_development_server() -> None:
    settings = read({"QSTASH_DEV": "true", "QSTASH_DEV_PORT": "8088"})
    assert settings.sender() == ("http://127.0.0.1:8088", DEV_TOKEN, "http://127.0.0.1:8000/qtasks")
    assert settings.receiver()[0] == DEV_SIGNING_KEYS
    assert settings.origin("token") == "QSTASH_DEV"


def test_a_switch_that_is_neither_on_nor_off_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="QSTASH_DEV is 'maybe'; expected 1 or 0"):
        read({"QSTASH_DEV": "maybe"})


def test_without_a_service_the_error_says_where_it_looked_and_what_to_start() -> None:
    settings = read(dev="not found in /here or above")
    with pytest.raises(ConfigurationError) as caught:
        settings.sender()
    assert str(caught.value).splitlines() == [
        "no QStash service is configured, so tasks cannot be sent",
        "  looked for  QSTASH_TOKEN (not set)",
        "  looked for  .qtasks/dev.json (not found in /here or above)",
        "  looked for  QSTASH_DEV (not set)",
        (
            "  fix         start `qtasks dev`, or set QSTASH_TOKEN (and QSTASH_URL for a broker of your own), "
            "or give QTasks(embedded=...)"
        ),
    ]


def test_a_missing_base_url_is_named_to_senders_and_receivers() -> None:
    settings = read({"QSTASH_TOKEN": "t"}, current_signing_key=KEYS.current, next_signing_key=KEYS.next)
    for ask in (settings.sender, settings.receiver):
        with pytest.raises(ConfigurationError, match="QTASKS_BASE_URL is not set"):
            ask()


@pytest.mark.parametrize("url", ["", "https://qstash-us-east-1.upstash.io"])
def test_the_hosted_service_cannot_reach_this_machine_from_any_region(url: str) -> None:
    settings = read({"QSTASH_URL": url, "QSTASH_TOKEN": "t", "QTASKS_BASE_URL": "http://localhost:8000/qtasks"})
    with pytest.raises(ConfigurationError) as caught:
        settings.sender()
    assert caught.value.code == "QT306"


@pytest.mark.parametrize(
    ("current", "following", "missing"),
    [
        (None, None, "QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY not set"),
        (KEYS.current, None, "QSTASH_NEXT_SIGNING_KEY not set"),
        (None, KEYS.next, "QSTASH_CURRENT_SIGNING_KEY not set"),
    ],
)
def test_missing_signing_keys_are_named(current: str | None, following: str | None, missing: str) -> None:
    settings = read({"QSTASH_TOKEN": "t"}, current_signing_key=current, next_signing_key=following)
    with pytest.raises(ConfigurationError, match=missing):
        settings.receiver()


PRODUCTION = {"QSTASH_TOKEN": "t", "QTASKS_BASE_URL": "https://app.example.com/qtasks"}
PUBLIC = {"current_signing_key": DEV_SIGNING_KEYS.current, "next_signing_key": DEV_SIGNING_KEYS.next}


def test_published_development_keys_are_refused_in_production() -> None:
    with pytest.raises(ConfigurationError, match="published development key"):
        read(PRODUCTION, **PUBLIC).receiver()


def test_a_broker_on_this_machine_alone_does_not_make_published_keys_safe() -> None:
    settings = read({**PRODUCTION, "QSTASH_URL": "http://127.0.0.1:8080"}, **PUBLIC)
    with pytest.raises(ConfigurationError, match="published development key"):
        settings.receiver()


@pytest.mark.parametrize(
    "environment",
    [
        {"QSTASH_TOKEN": "t", "QSTASH_URL": "http://localhost:8080", "QTASKS_BASE_URL": "http://127.0.0.1:1/q"},
        {**PRODUCTION, "QTASKS_DEV": "1"},
    ],
)
def test_published_keys_are_trusted_in_development(environment: dict[str, str]) -> None:
    assert read(environment, **PUBLIC).receiver()[0] == DEV_SIGNING_KEYS


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("base_url", "app.example.com", "QTASKS_BASE_URL"),
        ("base_url", "https://user:hunter2@app.example.com/q", "QTASKS_BASE_URL"),
        ("base_url", "https://app.example.com/q?x=1", "QTASKS_BASE_URL"),
        ("url", "ftp://broker", "QSTASH_URL"),
        ("url", "http://[::1", "QSTASH_URL"),
        ("threads", "many", "QTASKS_THREADS"),
        ("threads", 0, "QTASKS_THREADS"),
        ("result_ttl", "soon", "QTASKS_RESULT_TTL"),
        ("allow_dev_keys", "perhaps", "QTASKS_DEV"),
        ("colour", "red", "no setting 'colour'"),
    ],
)
def test_a_malformed_value_is_named_without_its_secrets(name: str, value: object, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as caught:
        read({"QSTASH_TOKEN": "t"}, **cast("Any", {name: value}))
    assert "hunter2" not in str(caught.value)


def test_no_secret_shows_in_the_text_of_settings() -> None:
    settings = read(
        {"QSTASH_TOKEN": "the-token", "QTASKS_SECRET_KEY": "the-secret-key"},
        current_signing_key=KEYS.current,
        next_signing_key=KEYS.next,
    )
    for secret in ("the-token", "the-secret-key", KEYS.current, KEYS.next):
        assert secret not in repr(settings)


def test_an_embedded_broker_describes_the_service_and_leaves_the_other_settings() -> None:
    connection = Connection(
        url="http://broker.internal",
        token="embedded-token",
        keys=DEV_SIGNING_KEYS,
        base_url="http://embedded.internal/t",
        results="memory://",
        transport=RecordingTransport(),
    )
    environment = {"QSTASH_TOKEN": "production", "QSTASH_URL": "https://x.example", "QTASKS_THREADS": "3"}
    settings = embedded(connection, environment, {"result_ttl": "1h"})
    assert settings.sender() == ("http://broker.internal", "embedded-token", "http://embedded.internal/t")
    assert settings.receiver()[0] == DEV_SIGNING_KEYS
    assert (settings.results, settings.threads, settings.result_ttl_ms) == ("memory://", 3, 3_600_000)
    assert settings.origin("token") == "embedded"
    assert embedded(connection, {"QTASKS_RESULTS": "sqlite:///r"}, {}).results == "sqlite:///r"
    pickling = embedded(connection, {"QTASKS_SECRET_KEY": "s" * 32, "QTASKS_ALLOW_PICKLE": "1"}, {}).pickling()
    assert pickling == ("s" * 32,)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "not permitted"),
        ({"secret_key": "s" * 32}, "not permitted"),
        ({"secret_key": "s" * 32, "allow_pickle": "0"}, "not permitted"),
        ({"allow_pickle": True}, "QTASKS_SECRET_KEY is not set"),
        ({"allow_pickle": True, "secret_key": "s" * 31}, "has 31 characters; at least 32"),
        ({"allow_pickle": True, "secret_key": "s" * 32 + ","}, "has 0 characters; at least 32"),
        ({"allow_pickle": True, "secret_key": KEYS.current}, "known to the broker"),
        ({"allow_pickle": True, "secret_key": "s" * 32 + "," + KEYS.next}, "known to the broker"),
        ({"allow_pickle": True, "secret_key": "t" * 40}, "known to the broker"),
        ({"allow_pickle": True, "secret_key": DEV_TOKEN}, "known to the broker"),
    ],
)
def test_pickles_take_a_permission_and_a_key_that_no_broker_knows(given: dict[str, Any], text: str) -> None:
    settings = read({"QSTASH_TOKEN": "t" * 40}, current_signing_key=KEYS.current, next_signing_key=KEYS.next, **given)
    with pytest.raises(ConfigurationError, match=text) as caught:
        settings.pickling()
    assert caught.value.fix is not None
    assert KEYS.current not in str(caught.value)


def test_of_several_secret_keys_each_is_good() -> None:
    both = {"QTASKS_ALLOW_PICKLE": "1", "QTASKS_SECRET_KEY": f"{'n' * 32}, {'o' * 32}"}
    assert read({"QSTASH_TOKEN": "t", **both}).pickling() == ("n" * 32, "o" * 32)


# --- the file that a running development server leaves


@contextmanager
def broker(status: int = 200, answer: object = None, *, expect: str = "dev-token") -> Iterator[str]:
    """A server on a free port that answers ``GET /v2/keys``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right = self.path == "/v2/keys" and self.headers["Authorization"] == f"Bearer {expect}"
            body = json.dumps(answer or {"current": DEV.keys.current, "next": DEV.keys.next}).encode()
            self.send_response(status if right else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def write(folder: Path, url: str, **facts: object) -> Path:
    path = folder / ".qtasks" / "dev.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"broker": url, "token": "dev-token", "base_url": DEV.base_url, "results": DEV.results, **facts})
    )
    return path


def test_a_running_server_is_found_from_below_with_the_keys_it_has_now(tmp_path: Path) -> None:
    below = tmp_path / "src" / "app"
    below.mkdir(parents=True)
    with broker() as url:
        path = write(tmp_path, url, current_signing_key="sig_old", next_signing_key="sig_older")
        found = find_dev_server(None, start=below)
        assert isinstance(found, DevServer)
        assert (found.path, found.url, found.keys, found.results) == (path, url, DEV.keys, DEV.results)
        assert isinstance(find_dev_server(url, start=below), DevServer)
        assert find_dev_server("http://127.0.0.1:1", start=below) == (
            f"at {path} is for {url}, but QSTASH_URL is http://127.0.0.1:1"
        )


def test_a_server_that_is_gone_or_somebody_else_is_not_used(tmp_path: Path) -> None:
    path = write(tmp_path, "http://127.0.0.1:9")
    assert find_dev_server(None, start=tmp_path) == f"at {path} names http://127.0.0.1:9, which does not answer"
    with broker(expect="another-token") as url:
        write(tmp_path, url)
        assert "does not answer" in str(find_dev_server(None, start=tmp_path))
    with broker(answer=["what"]) as url:
        write(tmp_path, url)
        assert "does not answer" in str(find_dev_server(None, start=tmp_path))


def test_a_file_that_names_another_machine_is_ignored(tmp_path: Path) -> None:
    write(tmp_path, "http://broker.example.com")
    assert "not this machine" in str(find_dev_server(None, start=tmp_path))


def test_a_file_of_another_user_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "http://127.0.0.1:9")
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert "belongs to another user" in str(find_dev_server(None, start=tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"broker": "http://127.0.0.1:1"}'])
def test_a_broken_file_is_said_to_be_broken(tmp_path: Path, text: str) -> None:
    write(tmp_path, "http://127.0.0.1:9").write_text(text)
    assert "cannot be read" in str(find_dev_server(None, start=tmp_path))


def test_without_a_file_the_place_is_named(tmp_path: Path) -> None:
    assert find_dev_server(None, start=tmp_path) == f"not found in {tmp_path} or above"
