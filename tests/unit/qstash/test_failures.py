"""What a failed call says."""

from typing import Any

import pytest

from qtasks import errors
from qtasks.errors import ApiError, BrokerUnreachable, QStashError
from qtasks.qstash import AsyncQStash, QStash, Reply, Request
from qtasks.qstash import errors as exported
from qtasks.qstash.conversation.failures import origin, refused, unreachable
from tests.unit.qstash.conftest import TOKEN, AsyncScriptedTransport, ScriptedTransport

REQUEST = Request("GET", "https://qstash.example/v2/x", (("Authorization", "Bearer SECRET"),), b"BODY")


@pytest.mark.parametrize(
    ("status", "body", "fix"),
    [
        (401, '{"error":"unauthorized"}', "compare QSTASH_TOKEN"),
        (
            404,
            '{"error":"user not found in this region"}',
            "another one than https://qstash.example",
        ),
        (404, '{"error":"message not found"}', None),
        (412, '{"error":"too many queues"}', "limit of the account"),
        (413, '{"error":"too large"}', "too large for this service"),
        (308, "", "never redirects"),
        (400, '{"error":"bad"}', None),
    ],
)
def test_a_refusal_shows_status_and_words_and_what_to_do(status: int, body: str, fix: str | None) -> None:
    error = refused(REQUEST, Reply(status, (), body.encode()))
    assert error.status == status
    assert error.message == f"Request failed with status: {status}, body: {body}"
    assert (fix is None) == (error.fix is None)
    assert (fix or "") in str(error)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"error":"the words"}', "the words"),
        (b'{"error":{"code":1}}', '{"error":{"code":1}}'),
        (b'["error"]', '["error"]'),
        (b"plain", "plain"),
        (b"\xff", "\ufffd"),
        (b"", ""),
    ],
)
def test_the_detail_is_the_services_own_words(body: bytes, detail: str) -> None:
    assert refused(REQUEST, Reply(500, (), body)).detail == detail


def test_a_long_answer_is_cut_in_the_text_and_whole_in_the_detail() -> None:
    error = refused(REQUEST, Reply(500, (), b"x" * 5000))
    assert len(str(error)) < 1200
    assert "(5000 characters)" in str(error)
    assert len(error.detail) == 5000


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/v2/publish/https://x?secret", "https://h"),
        ("http://[::1]:8080/v2", "http://[::1]:8080"),
        ("http://me:pw@h:1/v2", "http://h:1"),
    ],
)
def test_only_the_origin_of_a_url_is_shown(url: str, shown: str) -> None:
    assert origin(url) == shown
    assert f"No answer from {shown}: why" in str(unreachable(url, "why", sent=False))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "app.localhost"])
def test_a_missing_service_on_this_machine_can_be_started(host: str) -> None:
    assert "qtasks dev" in str(unreachable(f"http://{host}:8080/v2", "why", sent=False))


@pytest.mark.parametrize("host", ["qstash.upstash.io", "10.0.0.1", "localhost.example"])
def test_a_missing_service_elsewhere_can_be_looked_for(host: str) -> None:
    text = str(unreachable(f"http://{host}/v2", "why", sent=False))
    assert "qtasks dev" not in text
    assert "QSTASH_URL" in text


def test_an_error_is_a_few_lines() -> None:
    error = unreachable("http://127.0.0.1:8080/v2", "connection refused", sent=False)
    assert len(str(error).splitlines()) <= 6


def test_nothing_secret_is_shown_by_requests() -> None:
    assert "SECRET" not in repr(REQUEST)
    assert "BODY" not in repr(REQUEST)


def test_the_errors_have_the_official_module_name_too() -> None:
    assert {getattr(errors, name) for name in exported.__all__} == {
        getattr(exported, name) for name in exported.__all__
    }
    assert issubclass(ApiError, QStashError)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"[]", "TypeError"),
        (b"{}", "KeyError: 'messageId'"),
        (b"null", "TypeError"),
        (b"<html>", "JSONDecodeError"),
        (b"\xff", "UnicodeDecodeError"),
    ],
)
def test_a_success_that_says_something_else_is_an_error(answer: bytes, problem: str) -> None:
    client = QStash(TOKEN, transport=ScriptedTransport(Reply(200, (), answer)))
    with pytest.raises(ApiError, match="but the reply is not that of a QStash service") as caught:
        client.message.get("m")
    assert problem in str(caught.value)
    assert caught.value.status == 200


def test_a_batch_with_too_few_answers_is_an_error() -> None:
    client = QStash(TOKEN, transport=ScriptedTransport([{"messageId": "m"}]))  # type: ignore[arg-type]
    with pytest.raises(ApiError, match="1 answers for 2 messages"):
        client.message.batch([{"url": "https://a"}, {"url": "https://b"}])


def test_a_client_closes_its_transport_once_left() -> None:
    script = ScriptedTransport({})
    with QStash(TOKEN, transport=script):
        assert script.closed == 0
    assert script.closed == 1


@pytest.mark.anyio
async def test_an_async_client_closes_its_transport_once_left() -> None:
    script = AsyncScriptedTransport({})
    async with AsyncQStash(TOKEN, transport=script):
        assert script.sync.closed == 0
    assert script.sync.closed == 1


def test_what_is_no_matter_of_the_network_passes_through() -> None:
    class Broken(ScriptedTransport):
        def send(self, request: Request, timeout_s: float) -> Reply:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        QStash(TOKEN, transport=Broken({})).message.get("m")


def test_an_unreachable_broker_keeps_its_cause() -> None:
    cause = OSError("cause")
    lost: Any = BrokerUnreachable("lost", sent=False)
    lost.__cause__ = cause
    with pytest.raises(BrokerUnreachable) as caught:
        QStash(TOKEN, transport=ScriptedTransport(lost), retry={"retries": 1, "backoff": lambda _: 0}).message.get("m")
    assert caught.value.__cause__ is cause
    assert caught.value.sent is False
