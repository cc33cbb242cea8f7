"""Where a client finds its service and its token."""

import pytest

from qtasks.errors import ConfigurationError
from qtasks.qstash import AsyncQStash, QStash
from qtasks.qstash.conversation import request_builder
from qtasks.qstash.conversation.credentials import BASE_URL, Credentials, resolve
from qtasks.qstash.conversation.operation import Operation, nothing


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
    [
        "http://h:1/v2/publish",
        "http://h:1/v2/publish/",
        "http://h:1/v2",
        "http://h:1/v2/",
        "http://h:1//v2//publish//",
        "http://h:1/",
        "http://h:1//",
        " http://h:1 ",
    ],
)
def test_common_slips_in_the_url_are_repaired(slip: str) -> None:
    assert resolve("t", slip, {}).usable_url == "http://h:1"


@pytest.mark.parametrize("slip", ["https://h/queue/v2/publish", "https://h/queue/v2"])
def test_a_path_in_front_of_the_api_is_kept(slip: str) -> None:
    assert resolve("t", slip, {}).usable_url == "https://h/queue"


@pytest.mark.parametrize("url", ["https://h/v22", "https://h/v2x", "https://v2", "https://h/v2/other"])
def test_what_only_looks_like_the_path_of_the_api_is_kept(url: str) -> None:
    assert resolve("t", url, {}).usable_url == url


@pytest.mark.parametrize(
    ("no_url", "what", "fix"),
    [
        ("localhost:8080", "does not begin with http:// or https://", "write http://localhost:8080"),
        ("127.0.0.1:8080/x", "does not begin with http:// or https://", "write http://127.0.0.1:8080/x"),
        ("qstash.upstash.io", "does not begin with http:// or https://", "write https://qstash.upstash.io"),
        ("//h", "does not begin with http:// or https://", "write https://h"),
        ("https:/h", "does not begin with http:// or https://", "write https://h"),
        ("https//h", "does not begin with http:// or https://", "write https://h"),
        ("redis://h", "begins with redis://", "write a URL that begins with http:// or https://"),
        ("http:///x", "has no valid host and port", "write a URL such as "),
        ("http://h:x", "has no valid host and port", "write a URL such as "),
        ("http://h:0", "has no valid host and port", "write a URL such as "),
        ("http://[::1", "has no valid host and port", "write a URL such as "),
        ("http://a..example", "has no valid host and port", "write a URL such as "),
        (f"http://{'a' * 64}.example", "has no valid host and port", "write a URL such as "),
        ("http://a b", "contains a space or a control character", "remove that character"),
        ("http://a\tb", "contains a space or a control character", "remove that character"),
        ('"http://h"', "is in quotation marks", "remove the quotation marks"),
        ("http://h?x=1", "contains a query or a fragment", "leave out what follows the path"),
        ("http://h#x", "contains a query or a fragment", "leave out what follows the path"),
    ],
)
def test_what_is_no_url_of_a_service_is_refused_when_it_is_used(no_url: str, what: str, fix: str) -> None:
    found = resolve("t", None, {"QSTASH_URL": no_url})
    for _ in range(2):
        with pytest.raises(ConfigurationError) as caught:
            _ = found.usable_url
        assert caught.value.message.startswith("QSTASH_URL is ")
        assert caught.value.message.endswith(f", which {what}")
        assert (caught.value.fix or "").startswith(fix)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@h",
        "redis://me:secret@h",
        "http://me:secret@h?x=1",
        "http://:secret/more@h",
        "me:secret@h:8080",
        "https:/me:secret@h",
        "http://h?token=secret",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with QStash("t", base_url=url) as client, pytest.raises(ConfigurationError) as caught:
        client.message.cancel("m")
    assert "secret" not in str(caught.value) + repr(client) + repr(client.http.credentials)


@pytest.mark.parametrize("url", ["disabled-client", "", "not a url"])
@pytest.mark.anyio
async def test_a_client_that_is_never_used_may_have_any_url(url: str) -> None:
    QStash("disabled-client", base_url=url).close()
    async with AsyncQStash("disabled-client", base_url=url) as client:
        assert "AsyncQStash" in repr(client)


def test_a_request_to_another_service_does_not_use_the_url_of_the_client() -> None:
    operation: Operation[None] = Operation("GET", "/x", nothing, base_url="https://provider.test")
    assert request_builder.of(operation, resolve("t", "disabled-client", {})).url == "https://provider.test/x"


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
