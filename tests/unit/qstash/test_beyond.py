"""What the service can and the official Python SDK cannot: bulk actions by filter, retries of dead letters, ..."""

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from qtasks.errors import InvalidCallError
from qtasks.protocol import wire
from qtasks.protocol.messages import PublishOptions
from qtasks.qstash import QStash, Request
from qtasks.qstash.dlq import DeleteDlqMessagesResponse, RetryDlqMessagesResponse
from qtasks.qstash.log import LogState
from qtasks.qstash.message import PublishResponse
from qtasks.qstash.schedule import ScheduleState
from tests.unit.qstash.conftest import TOKEN, ScriptedTransport
from tests.unit.qstash.test_drop_in import DEAD, EVENT, FLOW, GROUP, MESSAGE, SCHEDULE


def asked(script: ScriptedTransport) -> tuple[str, str, list[tuple[str, str]]]:
    """Method, path and query of the last request."""
    request: Request = script.sent[-1]
    parts = urlsplit(request.url)
    return request.method, parts.path, parse_qsl(parts.query, keep_blank_values=True)


def test_messages_are_cancelled_by_filter() -> None:
    script = ScriptedTransport({"cancelled": 3})
    chosen: Any = {"url": ["https://a", "https://b?x,y"], "flow_control_key": "k", "queue": "q", "from_time": 1}
    assert QStash(TOKEN, transport=script).message.cancel_all(filter=chosen, count=10) == 3
    assert asked(script) == (
        "DELETE",
        "/v2/messages",
        [
            ("count", "10"),
            ("url", "https://a"),
            ("url", "https://b?x,y"),
            ("flowControlKey", "k"),
            ("queueName", "q"),
            ("fromDate", "1"),
        ],
    )
    assert script.sent[0].body == b""


DESTRUCTIVE = {
    "cancel": lambda client, given: client.message.cancel_all(filter=given),
    "delete": lambda client, given: client.dlq.delete_all(filter=given),
    "retry": lambda client, given: client.dlq.retry_all(filter=given),
}


@pytest.mark.parametrize("action", DESTRUCTIVE)
@pytest.mark.parametrize(
    "filter",
    [{}, {"label": None}, {"label": ""}, {"label": []}, {"label": ["a", ""]}, {"queue": "q", "label": " "}],
)
def test_a_filter_that_would_choose_more_than_was_meant_is_refused(action: str, filter: Any) -> None:
    script = ScriptedTransport({})
    with pytest.raises(InvalidCallError, match=f"would {action}"):
        DESTRUCTIVE[action](QStash(TOKEN, transport=script), filter)
    assert script.sent == []


@pytest.mark.parametrize("action", DESTRUCTIVE)
def test_an_unknown_filter_is_refused(action: str) -> None:
    script = ScriptedTransport({})
    with pytest.raises(TypeError, match="'labeel'; did you mean 'label'"):
        DESTRUCTIVE[action](QStash(TOKEN, transport=script), {"labeel": "x"})
    assert script.sent == []


def test_a_list_may_be_filtered_by_nothing() -> None:
    script = ScriptedTransport({"events": []})
    chosen: Any = {"label": None, "state": LogState.IN_PROGRESS, "host": ["h"]}
    QStash(TOKEN, transport=script).log.list(filter=chosen)
    assert asked(script) == ("GET", "/v2/events", [("state", "IN_PROGRESS"), ("host", "h")])


def test_dead_letters_are_deleted_by_filter_a_page_at_a_time() -> None:
    script = ScriptedTransport({"deleted": 100, "cursor": "9-0"}, {"deleted": 7})
    client = QStash(TOKEN, transport=script)
    first = client.dlq.delete_all(filter={"response_status": [500, 502], "label": "x"})
    assert first == DeleteDlqMessagesResponse(cursor="9-0", deleted=100)
    labelled = [("responseStatus", "500"), ("responseStatus", "502"), ("label", "x")]
    assert asked(script) == ("DELETE", "/v2/dlq", [("count", "100"), *labelled])
    assert client.dlq.delete_all(cursor=first.cursor, count=50).cursor is None
    assert asked(script) == ("DELETE", "/v2/dlq", [("cursor", "9-0"), ("count", "50")])


def test_a_dead_letter_is_retried_with_other_options() -> None:
    script = ScriptedTransport({"messageId": "msg_2"})
    answer = QStash(TOKEN, transport=script).dlq.retry("1-0", retries=0, delay="5s", callback_headers={"Retries": "1"})
    assert answer == PublishResponse("msg_2", deduplicated=False)
    assert asked(script) == ("POST", "/v2/dlq/retry/1-0", [])
    assert wire.read(script.sent[0].headers) == PublishOptions(retries=0, delay_ms=5000)
    assert ("Upstash-Callback-Retries", "1") in script.sent[0].headers


def test_dead_letters_are_retried_by_id_and_by_filter() -> None:
    script = ScriptedTransport(
        {"responses": [{"messageId": "m1"}, {"messageId": "m2"}], "cursor": ""}, {"responses": []}
    )
    client = QStash(TOKEN, transport=script)
    both = [PublishResponse("m1", False), PublishResponse("m2", False)]
    assert client.dlq.retry_many(["1-0", "2-0"], retries=1) == RetryDlqMessagesResponse(cursor=None, responses=both)
    assert asked(script) == ("POST", "/v2/dlq/retry", [("dlqIds", "1-0"), ("dlqIds", "2-0")])
    assert wire.read(script.sent[0].headers).retries == 1
    assert client.dlq.retry_all(filter={"queue": "q"}, count=1).responses == []
    assert asked(script) == ("POST", "/v2/dlq/retry", [("count", "1"), ("queueName", "q")])


def test_flow_control_keys_are_listed_searched_and_reset() -> None:
    script = ScriptedTransport([FLOW], [], {})  # type: ignore[arg-type]
    client = QStash(TOKEN, transport=script)
    (key,) = client.flow_control.list()
    assert (key.key, key.wait_list_size, key.is_paused) == ("k", 1, True)
    assert asked(script) == ("GET", "/v2/flowControl", [])
    assert client.flow_control.list(search="a&b") == []
    assert asked(script) == ("GET", "/v2/flowControl", [("search", "a&b")])
    client.flow_control.reset("a/b")
    assert asked(script)[:2] == ("POST", "/v2/flowControl/a%2Fb/reset")


def test_a_group_gets_default_headers() -> None:
    script = ScriptedTransport({}, {**GROUP, "headers": {"Upstash-Retries": ["3"]}})
    client = QStash(TOKEN, transport=script)
    headers: Any = {"Upstash-Header-Forward": ["true"], "Upstash-Retries": "3"}
    client.url_group.set_default_headers("g", headers)
    assert asked(script)[:2] == ("PATCH", "/v2/topics/g")
    assert json.loads(script.sent[0].body) == {"headers": headers}
    assert client.url_group.get("g").headers == {"Upstash-Retries": ["3"]}


def test_the_log_can_be_asked_under_its_older_name() -> None:
    script = ScriptedTransport({"events": [EVENT], "cursor": "5-0"})
    page = QStash(TOKEN, transport=script).event.list(count=1, filter={"state": LogState.RETRY, "api": "llm"})
    assert asked(script) == ("GET", "/v2/events", [("count", "1"), ("state", "RETRY"), ("api", "llm")])
    assert page.cursor == "5-0"
    assert page.events[0].message_id == "msg_1"


def test_all_labels_are_shown() -> None:
    client = QStash(TOKEN, transport=ScriptedTransport(MESSAGE, {"messages": [DEAD]}, {"events": [EVENT]}, [SCHEDULE]))  # type: ignore[arg-type]
    assert client.message.get("m").labels == ["l1", "l2"]
    assert client.dlq.list().messages[0].labels == ["l1", "l2"]
    assert client.log.list().logs[0].labels == ["l1", "l2"]
    assert client.schedule.list()[0].labels is None


def test_the_last_page_has_no_cursor_however_the_service_says_so() -> None:
    client = QStash(TOKEN, transport=ScriptedTransport({"events": [], "cursor": ""}, {"messages": []}))
    assert client.log.list().cursor is None
    assert client.dlq.list().cursor is None


def test_states_of_other_versions_do_not_spoil_a_page() -> None:
    events = [{**EVENT, "state": state} for state in ("CANCELLED", "POSTPONED", "DELIVERED")]
    states = {"msg_1": "POSTPONED", "msg_2": "FAIL"}
    script = ScriptedTransport(
        {"events": events}, {**SCHEDULE, "lastScheduleStates": states}, {**SCHEDULE, "lastScheduleStates": None}
    )
    client = QStash(TOKEN, transport=script)
    assert [entry.state for entry in client.log.list().logs] == [
        LogState.CANCELED,
        LogState.UNKNOWN,
        LogState.DELIVERED,
    ]
    assert client.schedule.get("s").last_schedule_states == {
        "msg_1": ScheduleState.UNKNOWN,
        "msg_2": ScheduleState.FAIL,
    }
    assert client.schedule.get("s").last_schedule_states is None


def test_both_spellings_of_a_log_entry_are_read() -> None:
    newer = {key: value for key, value in EVENT.items() if key not in ("responseHeader", "retryDelayExpr")}
    newer.update(responseHeaders={"E": ["5"]}, retryDelayExpression="1000")
    (entry,) = QStash(TOKEN, transport=ScriptedTransport({"events": [newer]})).log.list().logs
    assert entry.response_headers == {"E": ["5"]}
    assert entry.retry_delay_expression == "1000"


def test_signing_keys_are_not_in_their_repr() -> None:
    keys = QStash(TOKEN, transport=ScriptedTransport({"current": "sig_a", "next": "sig_b"})).signing_key.get()
    assert keys.current == "sig_a"
    assert "sig_" not in repr(keys)
