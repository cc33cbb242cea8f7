"""From a delivery to its answer: the fixed table, in the order that keeps strangers out."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from qtasks import NonRetryable, QTasks, RetryAfter, TaskContext, injected
from qtasks.errors import ArgumentsError
from qtasks.protocol.messages import SigningKeys
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.results.backend import Lock, ResultRecord
from qtasks.tasks.results.memory import MemoryResults
from qtasks.tasks.results.sqlite import SQLiteResults
from qtasks.tasks.run.attempt import Delivery
from qtasks.tasks.run.decision import DispatchResponse
from qtasks.testing.fakes.virtual_clock import TaskClock, VirtualClock
from tests.support.tasks import BASE_URL, KEYS, dispatcher_of, envelope, signature, without_leases

pytestmark = pytest.mark.anyio


class Receipt(BaseModel):
    number: int
    at: datetime


TASKS = QTasks()
RAN: list[object] = []
WHERE: contextvars.ContextVar[str] = contextvars.ContextVar("WHERE", default="nowhere")


@TASKS.task
async def add(a: int, b: int = 2) -> int:
    RAN.append((a, b))
    return a + b


@TASKS.task
def where(ctx: TaskContext = injected) -> list[str]:
    assert ctx.call_id
    return [WHERE.get(), threading.current_thread().name.rsplit("_", 1)[0]]


@TASKS.task
def receipt(number: int) -> Receipt:
    return Receipt(number=number, at=datetime(2026, 1, 1, tzinfo=UTC))


CONTEXTS: list[TaskContext] = []


@TASKS.task
def remember(ctx: TaskContext = injected) -> None:
    CONTEXTS.append(ctx)


class Raising:
    error: BaseException = ValueError("no")


@TASKS.task
def fail() -> None:
    raise Raising.error


@TASKS.task
async def fail_async() -> None:
    raise Raising.error


class Returning:
    value: Any = None


@TASKS.task
def anything():  # type: ignore[no-untyped-def]
    return Returning.value


@TASKS.task
def number() -> int:
    return Returning.value  # type: ignore[no-any-return]


@TASKS.task
def size(data: bytes) -> bytes:
    return data + data


class Order(BaseModel, extra="forbid"):
    number: int


@TASKS.task
def ship(order: Order) -> None: ...


@TASKS.task
def hidden_coroutine() -> Any:
    return add.function(1, 1)


@TASKS.task(name="broken")
def broken(session: threading.Thread) -> None: ...


class Panic(BaseException):
    """An exception that is no `Exception`, like the panic of a Rust extension."""


class Harness:
    """A dispatcher with results in memory and a clock that stands still."""

    def __init__(self) -> None:
        self.clock = VirtualClock(int(time.time() * 1000))
        self.results = MemoryResults(ttl_ms=1000)
        self.written: list[ResultRecord] = []
        write = self.results.write

        def recorded(
            records: Sequence[ResultRecord], unlocked: Sequence[Lock] = (), released: Sequence[str] = ()
        ) -> None:
            self.written.extend(records)
            write(records, unlocked, released)

        self.results.write = recorded  # type: ignore[method-assign]
        self.dispatcher = dispatcher_of(
            TASKS, self.results, threads=2, secrets=("the-token", KEYS.current), clock=TaskClock(self.clock)
        )

    def delivery(self, task: str, body: bytes, **changes: Any) -> Delivery:
        made = Delivery(
            task=task, body=body, signature=signature(f"{BASE_URL}/{task}", body), message_id="msg_1", retried=0
        )
        return made._replace(**changes)

    async def deliver(self, task: str, body: bytes | None = None, **changes: Any) -> DispatchResponse:
        return await self.dispatcher.answer(self.delivery(task, envelope() if body is None else body, **changes))


@pytest.fixture
def harness() -> Iterator[Harness]:
    RAN.clear()
    CONTEXTS.clear()
    made = Harness()
    yield made
    made.dispatcher.close()


def error(answer: DispatchResponse) -> tuple[str, str]:
    document = json.loads(answer.body)
    return document["error"], document.get("code")


# --- running


async def test_a_signed_call_runs_and_its_result_is_the_answer(harness: Harness) -> None:
    answer = await harness.deliver("add", envelope(3, b=4))
    assert answer == DispatchResponse(200, b"7")


async def test_a_def_runs_in_a_thread_of_the_pool_with_the_context_variables(harness: Harness) -> None:
    WHERE.set("here")
    answer = await harness.deliver("where")
    assert json.loads(answer.body) == ["here", "qtasks-task"]


async def test_threads_are_bounded_and_the_loop_goes_on(harness: Harness) -> None:
    running = threading.Semaphore(0)
    going_on = threading.Event()
    Returning.value = None
    inside: list[int] = []

    def occupy() -> None:
        inside.append(1)
        running.release()
        assert going_on.wait(20)

    tasks = QTasks()
    tasks.task(name="occupy")(occupy)
    harness.dispatcher.tasks = tasks.tasks
    deliveries = [asyncio.create_task(harness.deliver("occupy")) for _ in range(3)]
    await asyncio.to_thread(running.acquire, True, 10)
    await asyncio.to_thread(running.acquire, True, 10)
    assert len(inside) == 2
    going_on.set()
    assert [answer.status for answer in await asyncio.gather(*deliveries)] == [200, 200, 200]
    assert len(inside) == 3


async def test_a_result_is_written_by_its_declared_type(harness: Harness) -> None:
    assert (await harness.deliver("receipt", envelope(3))).body == b'{"number":3,"at":"2026-01-01T00:00:00Z"}'


async def test_bytes_travel_as_base64_both_ways(harness: Harness) -> None:
    assert (await harness.deliver("size", envelope("/wA="))).body == b'"/wD/AA=="'
    assert error(await harness.deliver("size", envelope("not base64")))[1] == "QT153"


async def test_a_coroutine_that_a_def_returns_is_run_and_not_returned(harness: Harness) -> None:
    Returning.value = None
    assert await harness.deliver("hidden_coroutine") == DispatchResponse(200, b"2")


async def test_the_context_knows_the_delivery(harness: Harness) -> None:
    await harness.deliver("remember", envelope(call_id="call_9", retries=2), retried=2, schedule_id="scd_1")
    (context,) = CONTEXTS
    assert context == TaskContext(
        task="remember", call_id="call_9", message_id="msg_1", attempt=3, retries=2, schedule_id="scd_1"
    )
    assert context.is_last_attempt


async def test_a_body_without_an_id_has_one_of_its_message(harness: Harness) -> None:
    """The body of a schedule never changes: its message's id makes the difference."""
    for message_id in ("msg_1", "msg_1", "msg_2"):
        without_leases(harness.dispatcher)  # they would not let the second run
        await harness.deliver("remember", envelope(call_id=None, retries=None), message_id=message_id)
    first, again, second = (context.call_id for context in CONTEXTS)
    assert first == again == envelopes.call_id_of_message("msg_1")
    assert first != second
    assert CONTEXTS[0].retries == 3


# --- answers to what goes wrong


async def test_the_names_of_the_tasks_are_for_signed_requests_only(harness: Harness) -> None:
    assert json.loads((await harness.deliver("_tasks", b"")).body) == sorted(TASKS.tasks)
    assert (await harness.deliver("_tasks", b"", signature="")).status == 401


@pytest.mark.parametrize("task", ["fail", "fail_async"])
@pytest.mark.parametrize(
    ("raised", "status", "text", "code"),
    [
        (ValueError("no"), 500, "ValueError: no", "QT407"),
        (KeyError(), 500, "KeyError", "QT407"),
        (SystemExit(3), 500, "SystemExit: 3", "QT407"),
        (GeneratorExit(), 500, "GeneratorExit", "QT407"),
        (Panic("index out of bounds"), 500, "Panic: index out of bounds", "QT407"),
        (StopIteration(3), 500, "RuntimeError: coroutine raised StopIteration", "QT407"),  # Python's own translation
        (asyncio.CancelledError(), 500, "CancelledError", "QT407"),
        (TimeoutError("slow"), 500, "TimeoutError: slow", "QT407"),
        (NonRetryable("order vanished"), 489, "NonRetryable: order vanished", "QT405"),
        (RetryAfter("90s", "busy"), 503, "RetryAfter: busy", "QT409"),
        (
            ArgumentsError("other: argument 'x' is missing"),
            500,
            "ArgumentsError: other: argument 'x' is missing",
            "QT407",
        ),
    ],
)
async def test_exceptions_have_a_fixed_answer(
    harness: Harness, task: str, raised: BaseException, status: int, text: str, code: str
) -> None:
    Raising.error = raised
    answer = await harness.deliver(task)
    assert answer.status == status
    assert error(answer) == (text, code)
    headers = {
        500: (),
        489: (("Upstash-NonRetryable-Error", "true"), ("Qtasks-Ended", "true")),
        503: (("Retry-After", "90"),),
    }
    assert answer.headers == headers[status]


async def test_a_long_error_is_cut_and_a_secret_is_hidden(harness: Harness) -> None:
    Raising.error = RuntimeError("token the-token " + "x" * 5000)
    text, _ = error(await harness.deliver("fail"))
    assert len(text) == 2048
    assert "the-token" not in text
    assert text.startswith("RuntimeError: token *** xxx")


async def test_a_fraction_of_a_second_is_asked_for_in_milliseconds(harness: Harness) -> None:
    Raising.error = RetryAfter(0.25)
    assert (await harness.deliver("fail")).headers == (("Retry-After", "250ms"),)


async def test_an_error_whose_text_cannot_be_made_or_encoded_is_still_answered(harness: Harness) -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    Raising.error = OddError()
    assert error(await harness.deliver("fail"))[0].startswith("OddError: ")
    Raising.error = ValueError("half \ud800")
    assert error(await harness.deliver("fail"))[0] == "ValueError: half \ud800"


async def test_wrong_arguments_are_never_tried_again_and_have_the_words_of_the_call(harness: Harness) -> None:
    with pytest.raises(ArgumentsError) as at_the_call:
        add.parameters.check(add.parameters.bind(("x",), {}))
    answer = await harness.deliver("add", envelope("x"))
    assert answer.status == 489
    assert error(answer) == (f"ArgumentsError: {at_the_call.value}", "QT153")
    assert RAN == []
    answer = await harness.deliver("add", envelope())
    assert (answer.status, error(answer)[1]) == (489, "QT151")


async def test_a_field_of_a_newer_version_of_a_model_waits_for_it_and_a_wrong_one_does_not(harness: Harness) -> None:
    answers = [await harness.deliver("ship", envelope({"number": number, "gift": True})) for number in (1, "x")]
    assert [(answer.status, error(answer)[1]) for answer in answers] == [(503, "QT152"), (489, "QT153")]


@pytest.mark.parametrize("call", [envelope(1, c=3), envelope(1, 2, 3)])
async def test_an_argument_of_a_newer_version_waits_for_it_as_an_unknown_task_does(
    harness: Harness, call: bytes
) -> None:
    waits = []
    for retried in (0, 1):
        newer = await harness.deliver("add", call, retried=retried)
        unknown = await harness.deliver("of_a_newer_version", call, retried=retried)
        assert (newer.status, newer.headers) == (unknown.status, unknown.headers)
        waits.append(newer.headers)
    assert waits == [(("Retry-After", "10"),), (("Retry-After", "40"),)]
    assert error(newer)[1] == "QT152"
    assert "add(a: int, b: int = 2)" in error(newer)[0]
    assert RAN == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"a":1}',
        b'{"v":1,"args":3}',
        b'{"v":1,"id":7}',
        b'{"v":1,"retries":-1}',
        b'{"v":"1"}',
        b"[" * 100_000,
        b'{"v":1,"args":[NaN]}',
        b'{"v":1,"v":1}',
        b"\xff\xfe",
    ],
)
async def test_a_signed_body_that_is_no_envelope_is_never_tried_again(harness: Harness, body: bytes) -> None:
    answer = await harness.deliver("add", body)
    assert answer.status == 489
    assert error(answer)[1] == "QT402"
    assert RAN == []


async def test_an_envelope_of_a_newer_program_is_kept_for_a_newer_dispatcher(harness: Harness) -> None:
    answer = await harness.deliver("add", b'{"v":3}')
    assert answer.status == 503
    assert error(answer)[1] == "QT429"
    assert answer.headers == (("Retry-After", "10"),)


async def test_an_unknown_task_is_kept_and_retried_ever_later(harness: Harness) -> None:
    answers = [await harness.deliver("ad", retried=retried) for retried in (0, 1, 2, 9)]
    assert {answer.status for answer in answers} == {503}
    assert [dict(answer.headers)["Retry-After"] for answer in answers] == ["10", "40", "160", "3600"]
    text, code = error(answers[0])
    assert code == "QT401"
    assert "there is no task 'ad' here; did you mean 'add'?; known tasks: add, anything, " in text


async def test_a_task_that_cannot_work_keeps_its_messages(harness: Harness) -> None:
    answer = await harness.deliver("broken", envelope("x"))
    assert answer.status == 500
    assert error(answer)[1] == "QT103"


@pytest.mark.parametrize(
    "value",
    [object(), float("nan"), {1, 2}, datetime(2026, 1, 1, tzinfo=UTC), {"a": [object()]}, "x" * 1024 * 1024],
    ids=lambda value: type(value).__name__,
)
async def test_a_result_that_does_not_fit_is_a_named_error_and_no_reason_to_run_again(
    harness: Harness, value: object
) -> None:
    Returning.value = value
    answer = await harness.deliver("anything")
    assert answer.status == 489
    text, code = error(answer)
    assert code == "QT406"
    assert f"the {type(value).__name__} returned by anything" in text


async def test_a_result_of_another_type_than_declared_is_named(harness: Harness) -> None:
    Returning.value = "five"
    text, code = error(await harness.deliver("number"))
    assert code == "QT406"
    assert "the str returned by number does not fit int" in text


@pytest.mark.parametrize(("value", "body"), [((1, (2,)), b"[1,[2]]"), (None, b"null"), ({"ü": 1}, '{"ü":1}'.encode())])
async def test_plain_values_need_no_annotation(harness: Harness, value: object, body: bytes) -> None:
    Returning.value = value
    assert await harness.deliver("anything") == DispatchResponse(200, body)


# --- trust


@pytest.mark.parametrize(
    ("forge", "code"),
    [
        (lambda body: "", "QT207"),
        (lambda body: "a.b.c", "QT207"),
        (lambda body: signature(f"{BASE_URL}/add", body + b" "), "QT202"),
        (lambda body: signature(f"{BASE_URL}/fail", body), "QT201"),
        (lambda body: signature("http://app.example.com/qtasks/add", body), "QT201"),
        (lambda body: signature(f"{BASE_URL}/add", body, key="sig_" + "x" * 28), "QT203"),
        (lambda body: signature(f"{BASE_URL}/add", body, age_s=1000), "QT204"),
        (lambda body: signature(f"{BASE_URL}/add", body, age_s=-1000), "QT205"),
    ],
)
async def test_what_cannot_be_verified_runs_nothing_and_learns_nothing(
    harness: Harness, forge: Callable[[bytes], str], code: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = envelope(1)
    answer = await harness.deliver("add", body, signature=forge(body))
    assert answer == DispatchResponse(401, b'{"error":"invalid signature"}')
    assert RAN == []
    assert harness.written == []
    (entry,) = caplog.records
    assert entry.levelname == "WARNING"
    assert entry.getMessage().startswith(f"{code} signature rejected")
    for secret in (KEYS.current, KEYS.next):
        assert secret not in caplog.text


@pytest.mark.parametrize(
    ("task", "changes", "level"),
    [
        ("_tasks", {"body": b"", "signature": ""}, "INFO"),
        ("_tasks", {"body": b"", "signature": "a.b.c"}, "WARNING"),
        ("_tasks", {"body": b"{}", "signature": ""}, "WARNING"),
        ("add", {"body": b"", "signature": ""}, "WARNING"),
    ],
)
async def test_only_the_unsigned_question_of_doctor_is_refused_without_a_warning(
    harness: Harness, caplog: pytest.LogCaptureFixture, task: str, changes: dict[str, Any], level: str
) -> None:
    caplog.set_level("INFO")
    for _ in range(2):
        answer = await harness.deliver(task, **changes)
        assert answer == DispatchResponse(401, b'{"error":"invalid signature"}')
    (entry,) = caplog.records
    assert entry.levelname == level
    assert ("`qtasks doctor`" in entry.getMessage()) == (level == "INFO")


async def test_strangers_do_not_learn_which_tasks_there_are(harness: Harness) -> None:
    assert (await harness.deliver("nothing", signature="a.b.c")).status == 401


async def test_the_next_key_is_trusted_as_well(harness: Harness) -> None:
    body = envelope(1)
    signed = signature(f"{BASE_URL}/add", body, key=KEYS.next)
    assert (await harness.deliver("add", body, signature=signed)).status == 200


async def test_without_keys_nothing_is_trusted() -> None:
    open_door = dispatcher_of(TASKS, None, keys=SigningKeys("", ""))
    body = envelope(1)
    delivery = Delivery(task="add", body=body, signature=signature(f"{BASE_URL}/add", body), message_id="m", retried=0)
    assert (await open_door.answer(delivery)).status == 401


# --- results


async def test_a_success_is_noted_before_it_is_answered(harness: Harness) -> None:
    await harness.deliver("add", envelope(1, call_id="call_7"), retried=1)
    assert [(record.status.value, record.value, record.attempt) for record in harness.written] == [
        ("running", None, 2),
        ("succeeded", "3", 2),
    ]
    assert {(record.call_id, record.message_id, record.task) for record in harness.written} == {
        ("call_7", "msg_1", "add")
    }


@pytest.mark.parametrize(
    ("raised", "retried", "status"),
    [
        (ValueError("no"), 0, "retrying"),
        (ValueError("no"), 1, "retrying"),
        (ValueError("no"), 2, "failed"),
        (RetryAfter(1), 1, "retrying"),
        (RetryAfter(1), 2, "failed"),
        (NonRetryable("no"), 0, "failed"),
    ],
)
async def test_a_failure_is_final_on_the_last_attempt_or_when_it_says_so(
    harness: Harness, raised: Exception, retried: int, status: str
) -> None:
    Raising.error = raised
    await harness.deliver("fail", envelope(retries=2), retried=retried)
    assert [record.status.value for record in harness.written] == ["running", status]
    assert harness.written[-1].error == f"{type(raised).__name__}: {raised}"


async def test_wrong_arguments_are_a_failed_call(harness: Harness) -> None:
    await harness.deliver("add", envelope("x"))
    assert [record.status.value for record in harness.written] == ["failed"]


async def test_a_result_is_in_the_file_when_the_answer_leaves(tmp_path: Path) -> None:
    results = SQLiteResults(tmp_path / "r.db", ttl_ms=1000)
    dispatcher = dispatcher_of(TASKS, results)
    body = envelope(1, call_id="call_1")
    delivery = Delivery(task="add", body=body, signature=signature(f"{BASE_URL}/add", body), message_id="m", retried=0)
    assert (await dispatcher.answer(delivery)).status == 200
    record = await asyncio.to_thread(results.read, "call_1")
    assert record is not None
    assert (record.status, record.value) == ("succeeded", "3")
    dispatcher.close()
    results.close()


class SlowResults(MemoryResults):
    """Results whose writes are seen from outside, as if there were a disk."""

    blocking = True

    def __init__(self) -> None:
        super().__init__(ttl_ms=1000)
        self.writing = threading.Event()
        self.may_write = threading.Event()
        self.writes = 0

    def write(
        self, records: Sequence[ResultRecord], unlocked: Sequence[Lock] = (), released: Sequence[str] = ()
    ) -> None:
        super().write(records, unlocked, released)
        self.writes += 1
        self.writing.set()
        assert self.may_write.wait(20)


async def test_results_that_arrive_during_a_write_share_the_next_one() -> None:
    results = SlowResults()
    dispatcher = dispatcher_of(TASKS, results)
    without_leases(dispatcher)  # they use the same thread, which is busy here

    async def deliver(number: int) -> DispatchResponse:
        body = envelope(number, call_id=f"call_{number}")
        signed = signature(f"{BASE_URL}/add", body)
        return await dispatcher.answer(
            Delivery(task="add", body=body, signature=signed, message_id=f"m{number}", retried=0)
        )

    first = asyncio.create_task(deliver(0))
    await asyncio.to_thread(results.writing.wait, 10)
    others = [asyncio.create_task(deliver(number)) for number in range(1, 20)]
    for _ in range(100):  # each turn of the loop lets every delivery wait for its write
        await asyncio.sleep(0)
    assert len(dispatcher._executor._writer._records) == len(others)
    assert not any(task.done() for task in (first, *others))
    results.may_write.set()
    assert [(await task).status for task in (first, *others)] == [200] * 20
    assert results.writes == 2
    dispatcher.close()


async def test_where_writing_costs_only_a_task_that_takes_its_time_is_said_to_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qtasks.tasks.run.executor.ANNOUNCE_AFTER_S", 0.001)
    results = SlowResults()
    results.may_write.set()
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await may_end.wait()

    tasks = QTasks()
    tasks.task(slow)
    dispatcher = dispatcher_of(tasks, results)
    body = envelope(call_id="call_1")
    signed = signature(f"{BASE_URL}/slow", body)
    running = asyncio.create_task(
        dispatcher.answer(Delivery(task="slow", body=body, signature=signed, message_id="m", retried=0))
    )
    await begun.wait()
    await asyncio.to_thread(results.writing.wait, 10)
    record = results.read("call_1")
    assert record is not None
    assert record.status == "running"
    may_end.set()
    assert (await running).status == 200
    assert results.writes == 2
    dispatcher.close()


async def test_results_are_kept_after_the_dispatcher_was_closed_and_used_again() -> None:
    results = SlowResults()
    results.may_write.set()
    dispatcher = dispatcher_of(TASKS, results)
    for number in range(2):
        body = envelope(1)
        signed = signature(f"{BASE_URL}/add", body)
        delivery = Delivery(task="add", body=body, signature=signed, message_id=f"m{number}", retried=0)
        assert (await dispatcher.answer(delivery)).status == 200
        await asyncio.to_thread(dispatcher.close)
    assert results.writes == 2


async def test_a_result_without_a_place_does_not_make_the_task_run_again(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    from qtasks.errors import ResultError

    def write(records: Sequence[ResultRecord], unlocked: Sequence[Lock] = (), released: Sequence[str] = ()) -> None:
        raise ResultError("disk full")

    harness.results.write = write  # type: ignore[method-assign]
    assert (await harness.deliver("add", envelope(1))).status == 200
    assert "results cannot be written: disk full; records lost: 1" in caplog.text


async def test_without_a_backend_tasks_run_all_the_same() -> None:
    dispatcher = dispatcher_of(TASKS, None)
    body = envelope(1)
    delivery = Delivery(task="add", body=body, signature=signature(f"{BASE_URL}/add", body), message_id="m", retried=0)
    assert await dispatcher.answer(delivery) == DispatchResponse(200, b"3")


# --- logs


async def test_a_failure_is_logged_with_the_user_s_frames_only(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    Raising.error = ValueError("no")
    await harness.deliver("fail", envelope(retries=0, call_id="call_1"))
    (entry,) = caplog.records
    assert entry.levelname == "ERROR"
    assert entry.getMessage() == "fail failed on attempt 1 of 1: ValueError: no"
    facts = entry.__dict__
    assert (facts["action"], facts["task"], facts["call_id"], facts["message_id"]) == (
        "failed",
        "fail",
        "call_1",
        "msg_1",
    )
    assert "test_dispatcher.py" in caplog.text
    assert "qtasks/tasks/run/" not in caplog.text


async def test_a_failure_that_is_not_retried_is_logged_as_a_dead_letter(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    Raising.error = NonRetryable("no such order")
    await harness.deliver("fail")
    text = "fail failed on attempt 1 of 4, not retried, kept as a dead letter: NonRetryable: no such order"
    assert caplog.messages == [text]


async def test_a_wish_is_not_logged_as_an_error(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    Raising.error = RetryAfter(1)
    with caplog.at_level(logging.INFO):
        await harness.deliver("fail")
    assert [entry.levelname for entry in caplog.records] == ["INFO"]
    assert "Traceback" not in caplog.text


# --- the end


async def test_draining_waits_for_what_runs_and_sends_the_rest_away(harness: Harness) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        begun.set()
        await may_end.wait()
        return "done"

    tasks = QTasks()
    tasks.task(slow)
    harness.dispatcher.tasks = tasks.tasks
    running = asyncio.create_task(harness.deliver("slow"))
    await begun.wait()
    draining = asyncio.create_task(harness.dispatcher.drain(20))
    await asyncio.sleep(0)
    answer = await harness.deliver("slow")
    assert answer.status == 503
    assert answer.headers == (("Retry-After", "5"), ("Qtasks-Interrupted", "draining"))
    assert error(answer)[1] == "QT408"
    may_end.set()
    assert await draining is True
    assert (await running).body == b'"done"'


async def test_a_cancelled_delivery_is_cancelled_and_not_answered(harness: Harness) -> None:
    begun = asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.Event().wait()

    tasks = QTasks()
    tasks.task(slow)
    harness.dispatcher.tasks = tasks.tasks
    running = asyncio.create_task(harness.deliver("slow"))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await harness.dispatcher.drain(1) is True
