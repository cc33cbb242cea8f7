"""Hooks, middleware, traces and log records: what an application puts around its tasks."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel
from opentelemetry import trace

from qtasks import (
    Cancel,
    NonRetryable,
    RetryAfter,
    RetryPolicy,
    Snooze,
    TaskContext,
    TaskEvent,
    TaskLogFilter,
    TaskRouter,
    current_context,
    injected,
)
from qtasks.errors import ArgumentsError, BrokerUnreachable
from qtasks.tasks.run.run import Run
from qtasks.tasks.run.run_middleware import CallNext
from qtasks.tasks.send import tracing
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.send_middleware import Sending
from tests.unit.tasks.manual_broker import ManualBroker, json_of

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.anyio


class RecordedEvents:
    """Records the events that the hooks of an application receive."""

    def __init__(self, broker: ManualBroker) -> None:
        self.events: list[tuple[str, TaskEvent]] = []
        broker.tasks.on_success(lambda event: self.note("success", event))
        broker.tasks.on_retry(lambda event: self.note("retry", event))
        broker.tasks.on_failure(lambda event: self.note("failure", event))

    def note(self, kind: str, event: TaskEvent) -> None:
        self.events.append((kind, event))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


# --- hooks


async def test_a_failure_is_notified_once_after_the_last_attempt_and_not_after_each(broker: ManualBroker) -> None:
    recorded = RecordedEvents(broker)

    @broker.tasks.task(retries=2)
    def work(n: int) -> None:
        raise OSError("no")

    work.delay(5)
    message = broker.take()
    for retried in range(3):
        await broker.deliver(message, retried=retried)
    assert recorded.kinds == ["retry", "retry", "failure"]
    event = recorded.events[-1][1]
    assert (event.context.attempt, dict(event.arguments), event.reason) == (3, {"n": 5}, "OSError: no")
    assert isinstance(event.error, OSError)


@pytest.mark.parametrize(
    ("raised", "kinds"),
    [
        (NonRetryable("x"), ["failure"]),
        (KeyError(), ["failure"]),
        (RetryAfter(1), ["retry"]),
        (OSError(), ["retry"]),
        (Snooze(1), []),
        (Cancel(), []),
    ],
)
async def test_each_end_calls_the_hooks_for_it(broker: ManualBroker, raised: Exception, kinds: list[str]) -> None:
    recorded = RecordedEvents(broker)

    @broker.tasks.task(retries=RetryPolicy(on=(OSError, RetryAfter)))
    async def work() -> None:
        raise raised

    work.delay()
    await broker.deliver()
    assert recorded.kinds == kinds


async def test_wrong_arguments_are_a_failure_that_hooks_get(broker: ManualBroker) -> None:
    recorded = RecordedEvents(broker)

    @broker.tasks.task
    def work(n: int) -> None: ...

    work.delay(1)
    message = broker.take()
    message.body = message.body.replace(b"[1]", b'["x"]')
    await broker.deliver(message)
    assert recorded.kinds == ["failure"]
    assert isinstance(recorded.events[0][1].error, ArgumentsError)


async def test_hooks_of_a_task_hear_of_it_alone_and_copies_share_them(broker: ManualBroker) -> None:
    heard: list[str] = []

    @broker.tasks.task
    def one() -> int:
        return 1

    @broker.tasks.task
    def two() -> int:
        return 2

    @one.on_success
    async def note(event: TaskEvent) -> None:
        heard.append(f"{event.context.task} {event.value} {threading.current_thread() is threading.main_thread()}")

    @one.on_success
    def note_aside(event: TaskEvent) -> None:
        heard.append(threading.current_thread().name.rsplit("_", 1)[0])

    one.using(retries=1).delay()
    await broker.deliver()
    two.delay()
    await broker.deliver()
    assert heard == ["one 1 True", "qtasks-task"]


async def test_a_hook_that_fails_changes_nothing(broker: ManualBroker, caplog: pytest.LogCaptureFixture) -> None:
    recorded = RecordedEvents(broker)

    @broker.tasks.task
    def work() -> int:
        return 1

    @work.on_success
    def broken(event: TaskEvent) -> None:
        raise RuntimeError("hook")

    work.delay()
    assert (await broker.deliver()).body == b"1"
    assert recorded.kinds == ["success"]
    assert "a hook of work failed" in caplog.text


# --- middleware where calls are sent


async def test_what_a_middleware_gives_along_is_signed_and_reaches_the_task(broker: ManualBroker) -> None:
    seen: list[str] = []

    @broker.tasks.send_middleware
    def tenant(message: Outgoing) -> Sending:
        seen.append(f"before {message.task}")
        result = yield message.carrying({"tenant": "acme"})
        seen.append(f"after {result.message_id}")

    @broker.tasks.send_middleware
    def inner(message: Outgoing) -> Sending:
        seen.append(f"inner sees {message.carried['tenant']}")
        yield message

    @broker.tasks.task
    def work(ctx: TaskContext = injected) -> str:
        return ctx.carried["tenant"]

    work.delay()
    assert seen == ["before work", "inner sees acme", "after msg_1"]
    message = broker.take()
    assert message.envelope["carried"] == {"tenant": "acme"}
    assert (await broker.deliver(message)).body == b'"acme"'
    await work.adelay()
    with broker.tasks.batch():
        work.delay()
        assert seen[-1] == "inner sees acme"
    assert seen[-1] == "after msg_3"
    assert all(message.envelope["carried"] == {"tenant": "acme"} for message in broker.messages)


async def test_a_middleware_hears_that_nothing_was_sent(broker: ManualBroker) -> None:
    seen: list[str] = []

    @broker.tasks.send_middleware
    def watch(message: Outgoing) -> Sending:
        try:
            yield message
        except BrokerUnreachable:
            seen.append("unreachable")
            raise

    @broker.tasks.task
    def work() -> None: ...

    def down(_: object, timeout_s: float = 0) -> Any:
        raise BrokerUnreachable("down")

    publisher = broker.tasks.runtime.publisher()
    publisher.publish = down  # type: ignore[method-assign, assignment]
    publisher.publish_many = down  # type: ignore[method-assign, assignment]
    with pytest.raises(BrokerUnreachable):
        work.delay()
    with pytest.raises(BrokerUnreachable):
        work.starmap([()])
    assert seen == ["unreachable", "unreachable"]


async def test_a_middleware_that_sends_never_or_twice_is_an_error(broker: ManualBroker) -> None:
    times = 0

    def odd(message: Outgoing) -> Generator[Outgoing, Any, None]:
        for _ in range(times):
            yield message

    broker.tasks.send_middleware(odd)

    @broker.tasks.task
    def work() -> None: ...

    with pytest.raises(RuntimeError, match="did not yield"):
        work.delay()
    assert broker.messages == []
    times = 2
    with pytest.raises(RuntimeError, match="yielded twice"):
        work.delay()
    assert len(broker.messages) == 1


async def test_what_middleware_gives_along_must_fit(broker: ManualBroker) -> None:
    @broker.tasks.send_middleware
    def heavy(message: Outgoing) -> Sending:
        yield message.carrying({"x": "y" * (1024 * 1024)})

    @broker.tasks.task
    def work() -> None: ...

    with pytest.raises(ArgumentsError, match=r"what the message carries make a message of 1,048,\d+ bytes"):
        work.delay()


# --- middleware where tasks run


async def test_middleware_stands_around_the_run_in_the_order_it_was_added(broker: ManualBroker) -> None:
    seen: list[str] = []

    def layer(name: str) -> Any:
        async def middleware(run: Run, call_next: CallNext) -> Any:
            seen.append(f"{name} in {run.values}")
            value = await call_next(run)
            seen.append(f"{name} out")
            return value + 1

        return middleware

    broker.tasks.run_middleware(layer("outer"))
    broker.tasks.run_middleware(layer("inner"))

    @broker.tasks.task
    def work(n: int) -> int:
        seen.append("work")
        return n

    work.delay(1)
    assert (await broker.deliver()).body == b"3"
    assert seen == ["outer in {'n': 1}", "inner in {'n': 1}", "work", "inner out", "outer out"]


async def test_what_middleware_raises_the_task_has_raised(broker: ManualBroker) -> None:
    @broker.tasks.run_middleware
    async def closed(run: Run, call_next: CallNext) -> Any:
        raise NonRetryable("closed")

    @broker.tasks.task
    def work() -> None: ...

    work.delay()
    assert (await broker.deliver()).status == 489


# --- traces and logs


async def test_a_trace_goes_on_where_the_task_runs(broker: ManualBroker) -> None:
    seen: list[trace.SpanContext] = []

    @broker.tasks.task
    def work() -> None:
        seen.append(trace.get_current_span().get_span_context())

    span = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1)))
    token = otel.attach(trace.set_span_in_context(span))
    work.delay()
    otel.detach(token)
    message = broker.take()
    assert message.envelope["carried"]["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    await broker.deliver(message)
    assert seen[0].trace_id == 0xABC
    work.delay()
    assert "carried" not in broker.take().envelope


async def test_a_run_without_a_trace_opens_no_span_if_no_tracer_is_set_up(
    broker: ManualBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    get_tracer = trace.get_tracer

    def note(name: str) -> trace.Tracer:
        opened.append(name)
        return get_tracer(name)

    monkeypatch.setattr(trace, "get_tracer", note)

    @broker.tasks.task
    async def work() -> None: ...

    work.delay()
    await broker.deliver()
    assert opened == []
    monkeypatch.setattr(tracing, "_SEARCH", tracing.TracerSearch())  # a second has passed
    monkeypatch.setattr(
        trace, "get_tracer_provider", trace.NoOpTracerProvider
    )  # one that an application may have chosen
    work.delay()
    await broker.deliver()
    assert opened == ["qtasks"]


def test_a_program_without_opentelemetry_does_not_load_it() -> None:
    program = """
import sys
from qtasks.protocol.messages import PublishOptions
from qtasks.tasks.encode.envelope import Envelope
from qtasks.tasks.send import tracing
from qtasks.tasks.send.outgoing import Outgoing
message = Outgoing(task="work", call_id="c", options=PublishOptions(), envelope=Envelope("c"))
assert tracing.carry(message) is message
sys.exit(any(name.startswith("opentelemetry") for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60, cwd=ROOT).returncode == 0


async def test_log_records_say_which_call_they_belong_to(broker: ManualBroker) -> None:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep()
    handler.addFilter(TaskLogFilter())
    logger = logging.getLogger("application.code")
    logger.addHandler(handler)

    @broker.tasks.task
    def work() -> None:
        logger.warning("in a thread")

    @broker.tasks.task
    async def later() -> str:
        await asyncio.sleep(0)
        logger.warning("on the loop", extra={"task": "mine"})
        context = current_context()
        return context.call_id if context is not None else "unknown"

    try:
        logger.warning("outside")
        first = work.delay()
        await broker.deliver()
        second = later.delay()
        assert json_of(await broker.deliver()) == second.id
    finally:
        logger.removeHandler(handler)
    facts = [[getattr(record, name) for name in ("task", "call_id", "message_id", "attempt")] for record in records]
    assert facts == [["-", "-", "-", "-"], ["work", first.id, "msg_1", 1], ["mine", second.id, "msg_2", 1]]
    assert current_context() is None


async def test_hooks_and_middleware_see_the_tasks_of_routers(broker: ManualBroker) -> None:
    recorded = RecordedEvents(broker)
    router = TaskRouter()

    @router.task
    def work() -> None: ...

    broker.tasks.include_router(router)
    work.delay()
    assert json.loads((await broker.deliver()).body) is None
    assert recorded.kinds == ["success"]


async def test_failure_hooks_that_a_dying_process_owes_are_called_by_the_next_delivery(broker: ManualBroker) -> None:
    """The failure is recorded, and the process dies before its hook has ended: the broker delivers the call again."""
    events: list[TaskEvent] = []
    hook_began = asyncio.Event()

    @broker.tasks.task(retries=0)
    async def fails(n: int) -> None:
        raise ValueError("of its own")

    @fails.on_failure
    async def note(event: TaskEvent) -> None:
        if not hook_began.is_set():
            hook_began.set()
            await asyncio.Event().wait()  # for ever: here the process dies
        events.append(event)

    await fails.adelay(7)
    message = broker.take()
    dying = asyncio.ensure_future(broker.deliver(message))
    await hook_began.wait()
    dying.cancel()
    await asyncio.wait([dying])
    assert events == []

    assert (await broker.deliver(message)).status == 500
    assert [(dict(event.arguments), event.reason) for event in events] == [({"n": 7}, "ValueError: of its own")]
    assert (await broker.deliver(message)).status == 500
    assert len(events) == 1, "nothing is owed any more"
