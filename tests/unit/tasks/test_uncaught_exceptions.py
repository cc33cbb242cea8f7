"""Whatever a task raises is a failure of its attempt, also if it is no `Exception`; only a real end goes on."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import Depends
from pydantic import BaseModel, field_serializer, field_validator

from qtasks import Embedded, QTasks, TaskContext, TaskEvent, injected
from qtasks.errors import TaskFailed
from qtasks.tasks.run.outside import comes_from_outside
from qtasks.tasks.run.run import Run
from qtasks.tasks.run.run_middleware import CallNext
from tests.unit.tasks.manual_broker import ManualBroker, json_of

PATIENCE_S = 20.0


class Panic(BaseException):
    """Like the panic of a Rust extension."""


ERRORS = (Panic("index out of bounds"), GeneratorExit(), KeyboardInterrupt(), SystemExit(3))
FORMS = ("def", "async def", "a child of async def", "a dependency", "an async dependency")


@pytest.fixture
def home() -> Iterator[QTasks]:
    with QTasks(embedded=Embedded(":memory:", drain_s=0.1)) as made:
        yield made


# --- in the embedded home, whose event loop an exception could end


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("form", FORMS)
def test_it_is_a_failed_attempt_and_the_home_goes_on(home: QTasks, error: BaseException, form: str) -> None:
    told = threading.Event()

    def fail() -> None:
        # asyncio closes what awaits a foreign thread that raises GeneratorExit, as if its loop were gone.
        raise Panic if isinstance(error, GeneratorExit) and form == "a dependency" else error

    async def afail() -> None:
        raise error

    async def fail_in_child() -> None:
        async with asyncio.TaskGroup() as children:
            children.create_task(afail())

    async def depend(nothing: None = Depends(fail)) -> None: ...

    def adepend(nothing: None = Depends(afail)) -> None: ...

    functions: dict[str, Any] = {
        "def": fail,
        "async def": afail,
        "a child of async def": fail_in_child,
        "a dependency": depend,
        "an async dependency": adepend,
    }
    failing = home.task(retries=0, name="failing")(functions[form])

    @failing.on_failure
    async def tell(event: TaskEvent) -> None:
        told.set()

    @home.task
    def good() -> int:
        return 1

    with pytest.raises(TaskFailed):
        failing.delay().get(timeout=PATIENCE_S)
    assert told.wait(PATIENCE_S)
    assert good.delay().get(timeout=PATIENCE_S) == 1


def test_it_is_tried_again_and_its_queue_goes_on(home: QTasks) -> None:
    @home.task(retries=3, retry_delay="1ms", queue="line")
    async def panics_once(*, ctx: TaskContext = injected) -> int:
        if ctx.attempt == 1:
            raise Panic
        return ctx.attempt

    @home.task(queue="line")
    def behind() -> int:
        return 1

    first, second = panics_once.delay(), behind.delay()
    assert first.get(timeout=PATIENCE_S) == 2
    assert second.get(timeout=PATIENCE_S) == 1


def test_a_chain_ends_with_it(home: QTasks) -> None:
    @home.task(retries=0)
    def panics() -> int:
        raise Panic

    @home.task
    def after(n: int) -> int:
        return n

    with pytest.raises(TaskFailed, match="Panic"):
        (panics.s() | after.s()).delay().get(timeout=PATIENCE_S)


# --- at every step of an attempt


class Brittle(BaseModel):
    """A model whose validator and serializer raise what they are told."""

    n: int = 0

    @field_validator("n")
    @classmethod
    def validate_n(cls, value: int) -> int:
        if value == 1:
            raise Panic("validator")
        return value

    @field_serializer("n")
    def write_n(self, value: int) -> int:
        if value == 2:
            raise Panic("serializer")
        return value


@pytest.mark.anyio
async def test_arguments_whose_validator_panics_are_a_failed_attempt(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=1)
    def work(item: Brittle) -> None: ...

    result = work.delay(Brittle())
    message = broker.take()
    message.body = message.body.replace(b'"n":0', b'"n":1')
    answer = json_of(await broker.deliver(message))
    assert answer.pop("at")[-1].endswith("in validate_n")
    assert answer == {"error": "Panic: validator", "code": "QT407"}
    assert result.status == "retrying"
    assert (await broker.deliver(message, retried=1)).status == 500
    assert (result.status, result.error) == ("failed", "Panic: validator")


@pytest.mark.anyio
async def test_a_result_whose_serializer_panics_is_a_failed_attempt(broker: ManualBroker) -> None:
    @broker.tasks.task(retries=3)
    def work() -> Brittle:
        return Brittle.model_construct(n=2)

    result = work.delay()
    assert json_of(await broker.deliver())["code"] == "QT406"  # pydantic wraps it
    assert result.status == "failed"
    assert result.error is not None
    assert "Panic: serializer" in result.error


@pytest.mark.anyio
async def test_a_middleware_that_panics_is_a_failed_attempt(broker: ManualBroker) -> None:
    @broker.tasks.run_middleware
    async def panic(run: Run, call_next: CallNext) -> Any:
        await call_next(run)
        raise Panic("middleware")

    @broker.tasks.task(retries=0)
    def work() -> None: ...

    result = work.delay()
    assert (await broker.deliver()).status == 500
    assert (result.status, result.error) == ("failed", "Panic: middleware")


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["def", "async def"])
async def test_a_hook_that_panics_changes_nothing(
    broker: ManualBroker, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    @broker.tasks.task
    def work() -> int:
        return 1

    def panic(event: TaskEvent) -> None:
        raise Panic("hook")

    async def apanic(event: TaskEvent) -> None:
        raise Panic("hook")

    work.on_success(panic if form == "def" else apanic)
    work.delay()
    assert (await broker.deliver()).body == b"1"
    assert "a hook of work failed" in caplog.text


@pytest.mark.anyio
async def test_an_exception_that_is_its_own_cause_fails_one_attempt(broker: ManualBroker) -> None:
    @broker.tasks.task
    def again() -> None:
        try:
            raise KeyError("x")
        except KeyError as error:
            raise error from error

    again.delay()
    answer = await broker.deliver()
    assert (answer.status, json_of(answer)["error"]) == (500, "KeyError: 'x'")


# --- what does not come from the task goes on


@pytest.fixture
def python_handles_ctrl_c() -> Iterator[None]:
    """Python's own handler, which a process in the background of a shell does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_ctrl_c")
def test_ctrl_c_on_the_thread_of_a_server_without_a_handler_ends_it(broker: ManualBroker) -> None:
    @broker.tasks.task
    async def long() -> None:
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGINT)

    long.delay()
    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(broker.deliver())
    loop.run_until_complete(asyncio.sleep(0))  # for the renewal of the lease, which was cancelled
    loop.close()


@pytest.mark.usefixtures("python_handles_ctrl_c")
def test_ctrl_c_ends_a_server_that_asyncio_runs(broker: ManualBroker) -> None:
    @broker.tasks.task
    async def long() -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    long.delay()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(broker.deliver())


def test_a_closed_coroutine_is_told_apart_from_one_that_raises() -> None:
    assert comes_from_outside(GeneratorExit(), object())  # type: ignore[arg-type]  # a task that has ended
    assert not comes_from_outside(GeneratorExit(), None)
    assert not comes_from_outside(Panic(), None)
