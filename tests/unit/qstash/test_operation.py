"""What goes into the path of a request, and what must never."""

from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qtasks.errors import InvalidCallError, QStashError
from qtasks.qstash import QStash
from qtasks.qstash.conversation.operation import destination, segment
from tests.unit.qstash.conftest import TOKEN, ScriptedTransport

PRINTABLE = st.text(st.characters(min_codepoint=0x20, exclude_characters="\x7f", exclude_categories=("Cs", "Cc")))


@settings(max_examples=300)
@given(path=PRINTABLE, query=st.none() | PRINTABLE)
@example(path="/a b/ü/%2F/%zz", query='a=b c&d=`{}`"<>')
@example(path="", query="")
def test_a_destination_travels_as_httpx_would_send_it(path: str, query: str | None) -> None:
    text = f"https://example.com/{path}" + ("" if query is None else f"?{query}")
    try:
        ready = destination(text)
    except InvalidCallError:
        parts = text.partition("#")[0].partition("?")[0].lower().replace("%2e", ".").split("/")
        assert {".", ".."} & set(parts)
        return
    sent = httpx.URL(f"http://h/v2/publish/{text}").raw_path.decode()
    assert f"/v2/publish/{ready}" == sent
    assert httpx.URL(f"http://h/v2/publish/{ready}").raw_path.decode() == sent


@pytest.mark.parametrize(
    "kept",
    [
        "https://example.com",
        "https://example.com/",
        "https://example.com/123/?asdasd=ooo",
        "https://e.com/a%2Fb?x=1&y=%20",
        "https://e.com//x",
        "http://[::1]:8000/x",
        "http://me:pw@e.com/x",
        "https://e.com?../a",
        "https://e.com/...",
        "my-group",
        "api/llm",
    ],
)
def test_what_is_a_url_already_is_not_touched(kept: str) -> None:
    assert destination(kept) == kept


@pytest.mark.parametrize(
    "dots",
    ["https://e.com/../up", "https://e.com/./x", "https://e.com/a/..", "https://e.com/%2e%2E/x", "..", "."],
)
def test_dot_segments_are_refused_because_clients_resolve_them_over_our_own_path(dots: str) -> None:
    with pytest.raises(InvalidCallError, match="dot segment"):
        destination(dots)


def test_a_fragment_never_travels() -> None:
    assert destination("https://e.com/a#b?c") == "https://e.com/a"


@pytest.mark.parametrize("bad", ["", "  ", None])
def test_an_empty_destination_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidCallError, match="a destination must be"):
        destination(bad)


@pytest.mark.parametrize("bad", ["https://e.com/\n", "https://e.com/\x00", "https://e.com/a\x7f"])
def test_control_characters_are_refused(bad: str) -> None:
    with pytest.raises(InvalidCallError, match="control character"):
        destination(bad)


BY_ID = {
    "message.get": lambda client, given: client.message.get(given),
    "message.cancel": lambda client, given: client.message.cancel(given),
    "message.cancel_many": lambda client, given: client.message.cancel_many(["m", given]),
    "message.enqueue": lambda client, given: client.message.enqueue(queue=given, url="https://e.com"),
    "dlq.get": lambda client, given: client.dlq.get(given),
    "dlq.delete": lambda client, given: client.dlq.delete(given),
    "dlq.delete_many": lambda client, given: client.dlq.delete_many([given]),
    "dlq.retry": lambda client, given: client.dlq.retry(given),
    "dlq.retry_many": lambda client, given: client.dlq.retry_many([given]),
    "schedule.get": lambda client, given: client.schedule.get(given),
    "schedule.delete": lambda client, given: client.schedule.delete(given),
    "schedule.pause": lambda client, given: client.schedule.pause(given),
    "queue.delete": lambda client, given: client.queue.delete(given),
    "queue.upsert": lambda client, given: client.queue.upsert(given),
    "url_group.delete": lambda client, given: client.url_group.delete(given),
    "url_group.remove_endpoints": lambda client, given: client.url_group.remove_endpoints(given, [{"name": "x"}]),
    "flow_control.reset": lambda client, given: client.flow_control.reset(given),
}


@pytest.mark.parametrize("ask", BY_ID.values(), ids=BY_ID.keys())
@pytest.mark.parametrize("empty", ["", " ", ".", "..", None])
def test_an_empty_id_is_refused_before_anything_is_sent(ask: Any, empty: Any) -> None:
    script = ScriptedTransport({})
    with pytest.raises(ValueError, match="must name something") as caught:
        ask(QStash(TOKEN, transport=script), empty)
    assert isinstance(caught.value, QStashError)
    assert script.sent == []


@given(name=PRINTABLE.filter(lambda name: name.strip() not in {"", ".", ".."}))
def test_an_id_stays_one_segment_whatever_is_in_it(name: str) -> None:
    path = httpx.URL(f"http://h/v2/flowControl/{segment(name, 'key')}/pin?rate=1")
    assert path.path == f"/v2/flowControl/{name}/pin"
    assert path.raw_path.count(b"/") == 4
    assert path.query == b"rate=1"


@pytest.mark.parametrize("plain", ["msg_7YoJxFpwk", "1725323658779-0", "my.queue_1-x", "key:with=signs@x"])
def test_an_ordinary_id_goes_out_as_it_is(plain: str) -> None:
    assert segment(plain, "id") == plain


def test_empty_lists_of_ids_ask_for_nothing_instead_of_everything() -> None:
    script = ScriptedTransport({})
    client = QStash(TOKEN, transport=script)
    assert client.message.cancel_many([]) == 0
    assert client.dlq.delete_many([]) == 0
    assert client.dlq.retry_many([]).responses == []
    assert script.sent == []


def test_a_single_id_in_place_of_a_list_is_not_taken_for_its_letters() -> None:
    client = QStash(TOKEN, transport=ScriptedTransport({}))
    with pytest.raises(InvalidCallError, match="message_ids must be a list"):
        client.message.cancel_many("msg_1")  # type: ignore[arg-type]
