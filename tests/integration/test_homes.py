"""One set of behaviours in every home: below a broker, embedded, in a script, and in the environments of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qtasks import chain, chord, group
from qtasks.errors import TaskCancelled, TaskFailed
from tests.support.homes import HOMES, Home, Receipt, at_home


@pytest.fixture(scope="module", params=HOMES)
def running(request: pytest.FixtureRequest) -> Iterator[Home]:
    with at_home(request.param) as home:
        yield home


@pytest.fixture
def home(running: Home) -> Home:
    running.shop.seen.clear()
    running.shop.events.clear()
    return running


def test_dependencies_open_and_close_around_the_run_with_overrides_and_the_state_of_the_application(home: Home) -> None:
    assert home.run("described") == ["/jobs/described of shop", 5]
    order = ["outer opened", "inner opened", "ran", "inner closed", "outer closed"]
    assert home.shop.events == order


def test_a_dependency_sees_the_request_that_a_server_would_show(home: Home) -> None:
    facts = home.run("of_the_request")
    assert facts == {
        "method": "POST",
        "path": "/jobs/of_the_request",
        "root": "",
        "query": "",
        "scheme": "http",
        "client": "127.0.0.1",
        "headers": {"content-type": True, "upstash-retried": True, "content-length": True},
        "is counted": True,
        "has message id": True,
        "has host": True,
        "url for": "/jobs/add",
        "pool": "a pool" if home.has_lifespan else None,
        "http version": "1.1",
        "body": "http",
    }


def test_each_delivery_passes_the_middleware_once(home: Home) -> None:
    home.run("add", 1)
    home.run("add", 2)
    assert home.shop.seen == ["/jobs/add", "/jobs/add"]


@pytest.mark.parametrize(("task", "seen"), [("tenants", ["acme", "acme"]), ("async_tenants", "acme")])
def test_a_context_variable_of_middleware_is_seen_in_the_run(home: Home, task: str, seen: object) -> None:
    assert home.run(task) == seen


def test_a_plain_function_runs_in_a_thread_and_a_coroutine_on_the_loop_of_the_application(home: Home) -> None:
    loop = home.run("on_the_loop")
    assert home.run("on_the_loop") == loop
    assert home.run("in_a_thread") != loop
    if home.has_lifespan:
        assert loop == home.shop.loop_thread


def test_arguments_and_results_keep_their_types_and_may_be_large(home: Home) -> None:
    receipt = home.run("receipt", 7)
    assert isinstance(receipt, Receipt)
    assert (receipt.order, receipt.at.year, receipt.at.tzinfo is not None) == (7, 2030, True)
    text = "ä" * 200_000
    assert home.run("echo", text, raw=b"\x00\xff") == (text, b"\x00\xff")


def test_the_context_of_a_run_is_the_same(home: Home) -> None:
    assert home.run("facts") == ["facts", 1, 3, 0, None]


def test_failed_attempts_are_repeated(home: Home) -> None:
    assert home.run("flaky") == 3
    assert home.run("later") == 2


def test_a_snoozed_call_comes_back(home: Home) -> None:
    assert home.run("snoozing") == [2, 1]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("error", "ValueError: no such order"),
        ("exit", "SystemExit: 3"),
        ("for good", "NonRetryable: the order vanished"),
        ("http", "HTTPException: 404: no such order"),
    ],
)
def test_a_failure_is_told_in_the_same_words_to_the_handle_and_to_the_hook(home: Home, kind: str, text: str) -> None:
    handle = home.send("fails", kind)
    with pytest.raises(TaskFailed) as failed:
        home.get(handle)
    assert str(failed.value).partition("\n")[0].endswith(text)
    home.shop.wait_for(f"failed: {text}")
    assert handle.error == text


def test_a_dependency_that_refuses_fails_the_call(home: Home) -> None:
    with pytest.raises(TaskFailed, match="HTTPException: 403: not for you"):
        home.run("refused")


def test_a_thread_that_a_task_has_started_goes_on(home: Home) -> None:
    home.run("starts_a_thread")
    home.shop.wait_for("thread")


def test_flows_go_on_from_step_to_step(home: Home) -> None:
    tasks = home.shop.tasks.tasks
    add, total = tasks["add"], tasks["total"]
    assert home.get(chain(add.s(1, 1), add.s(10)).delay()) == 12
    assert home.get(group(add.s(n) for n in range(5)).delay()) == [1, 2, 3, 4, 5]
    assert home.get(chord([add.s(n) for n in range(5)], total.s()).delay()) == 15


def test_many_calls_in_one_request_all_run(home: Home) -> None:
    handles = home.shop.tasks.tasks["add"].map(range(10))
    assert [home.get(handle) for handle in handles] == list(range(1, 11))


def test_a_unique_call_is_made_once_and_a_waiting_one_is_cancelled(home: Home) -> None:
    later = home.shop.tasks.tasks["once"].using(delay="1h")
    first, again = later.delay(1), later.delay(1)
    assert (again.id, again.deduplicated) == (first.id, True)
    assert first.cancel()
    with pytest.raises(TaskCancelled):
        first.get(timeout=20)


def test_a_task_that_gives_up_its_call_leaves_its_progress(home: Home) -> None:
    handle = home.send("steps")
    with pytest.raises(TaskCancelled, match="enough"):
        home.get(handle)
    progress = handle.progress
    assert progress is not None
    assert (progress.done, progress.total, progress.note) == (2, 4, "half")


def test_a_schedule_that_is_triggered_runs(home: Home) -> None:
    schedule = home.shop.tasks.tasks["facts"].schedule("0 0 1 1 *", name="new-year")
    [task, attempt, _, _, schedule_id] = home.get(schedule.trigger())
    schedule.delete()
    assert (task, attempt) == ("facts", 1)
    assert schedule_id is None or isinstance(schedule_id, str)
