"""Where a client finds its service and its token."""

import pytest

from qtasks.errors import ConfigurationError
from qtasks.qstash import AsyncQStash, QStash
from qtasks.qstash.conversation.credentials import BASE_URL, Credentials, resolve


def test_arguments_win_over_the_environment() -> None:
    environ = {"QSTASH_URL": "http://env", "QSTASH_TOKEN": "env"}
    assert resolve("arg", "http://arg", environ) == Credentials("http://arg", "arg")
    assert resolve(None, None, environ) == Credentials("http://env", "env")


def test_without_a_url_the_hosted_service_is_meant() -> None:
    assert resolve("t", None, {}).base_url == BASE_URL == "https://qstash.upstash.io"
    assert resolve("t", None, {"QSTASH_URL": "  "}).base_url == BASE_URL


@pytest.mark.parametrize("region", ["EU_CENTRAL_1", "eu-central-1"])
def test_the_variables_of_the_region_come_before_the_plain_ones(region: str) -> None:
    environ = {
        "QSTASH_REGION": region,
        "QSTASH_URL": "http://plain",
        "QSTASH_TOKEN": "plain",
        "EU_CENTRAL_1_QSTASH_URL": "http://eu",
        "EU_CENTRAL_1_QSTASH_TOKEN": "eu",
        "US_EAST_1_QSTASH_TOKEN": "us",
    }
    assert resolve(None, None, environ) == Credentials("http://eu", "eu")
    assert resolve("arg", None, environ) == Credentials("http://eu", "arg")
    del environ["QSTASH_REGION"]
    assert resolve(None, None, environ) == Credentials("http://plain", "plain")


def test_an_incomplete_region_falls_back_to_the_plain_variables() -> None:
    environ = {"QSTASH_REGION": "US_EAST_1", "QSTASH_URL": "http://plain", "QSTASH_TOKEN": "plain"}
    assert resolve(None, None, environ) == Credentials("http://plain", "plain")


def test_an_unknown_region_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'MARS'") as caught:
        resolve(None, None, {"QSTASH_REGION": "MARS", "QSTASH_TOKEN": "t"})
    assert "US_EAST_1 or EU_CENTRAL_1" in str(caught.value)


@pytest.mark.parametrize(
    "slip",
    ["http://h:1/v2/publish", "http://h:1/v2/publish/", "http://h:1/", "http://h:1//", " http://h:1 "],
)
def test_common_slips_in_the_url_are_repaired(slip: str) -> None:
    assert resolve("t", slip, {}).base_url == "http://h:1"


def test_a_path_in_front_of_the_api_is_kept() -> None:
    assert resolve("t", "https://h/queue/v2/publish", {}).base_url == "https://h/queue"


@pytest.mark.parametrize("no_url", ["localhost:8080", "redis://h", "http://", "http://h:x", "http://[::1", "qstash"])
def test_what_is_no_http_url_is_refused_and_shown(no_url: str) -> None:
    with pytest.raises(ConfigurationError, match="expected    a URL with http:// or https:// and a host") as caught:
        resolve("t", None, {"QSTASH_URL": no_url})
    assert f"QSTASH_URL is {no_url!r}" in str(caught.value)


@pytest.mark.parametrize("url", ["http://me:secret@h", "redis://me:secret@h", "http://me:secret@h?x=1"])
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve("t", url, {})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h?x=1", "http://h#x"])
def test_a_base_url_has_no_query_and_no_fragment(url: str) -> None:
    with pytest.raises(ConfigurationError, match="plain URL"):
        resolve("t", url, {})


@pytest.mark.parametrize("client", [QStash, AsyncQStash])
def test_without_a_token_no_client_is_made(client: type) -> None:
    with pytest.raises(ConfigurationError) as caught:
        client()
    assert str(caught.value) == (
        'A token for the QStash service is missing.\n  fix         set QSTASH_TOKEN, or write QStash(token="...")'
    )


def test_a_token_with_a_line_break_behind_it_works_and_one_inside_it_is_refused() -> None:
    assert resolve("t\n", None, {}).token == "t"
    for token in ("a\nb", "a b", "tökén"):
        with pytest.raises(ConfigurationError, match="characters that are not allowed in a token") as caught:
            resolve(token, None, {})
        assert token not in str(caught.value)


@pytest.mark.parametrize("client", [QStash, AsyncQStash])
def test_a_client_reads_the_environment_when_it_is_made(client: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSTASH_URL", "http://from.env")
    monkeypatch.setenv("QSTASH_TOKEN", "very-secret")
    made = client()
    assert made.http.credentials == Credentials("http://from.env", "very-secret")
    assert "very-secret" not in repr(made) + repr(made.http.credentials)
    assert "http://from.env" in repr(made)
