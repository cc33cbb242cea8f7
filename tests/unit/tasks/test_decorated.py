"""Functions below decorators of other packages run as they do when they are called directly."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, cast

import pytest

from qtasks import QTasks
from qtasks.tasks.results.memory import MemoryResults
from qtasks.tasks.run.attempt import Delivery
from qtasks.tasks.run.decision import DispatchResponse
from tests.support.tasks import BASE_URL, application, dispatcher_of, envelope, signature

pytestmark = pytest.mark.anyio


class Deliveries:
    """Delivers calls to tasks, each with a dispatcher of its own."""

    def __init__(self) -> None:
        self.tasks = application()
        self.dispatcher = dispatcher_of(self.tasks, MemoryResults(ttl_ms=60_000), threads=2)

    async def call(self, name: str, body: bytes) -> DispatchResponse:
        return await self.dispatcher.answer(
            Delivery(
                task=name, body=body, signature=signature(f"{BASE_URL}/{name}", body), message_id="msg_1", retried=0
            )
        )

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> bytes:
        task = self.tasks.task(name="work")(function)
        return (await self.call(task.name, envelope(*args, **kwargs))).body


@pytest.fixture
def deliveries() -> Iterator[Deliveries]:
    made = Deliveries()
    yield made
    made.dispatcher.close()


def running_a_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return wrapper


async def test_a_wrapper_that_runs_a_loop_of_its_own_works(deliveries: Deliveries) -> None:
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        return 2 * n

    assert await deliveries.run(running_a_loop(double), 4) == b"8"


async def test_a_wrapper_that_blocks_does_not_block_the_loop(deliveries: Deliveries) -> None:
    is_on_loop = threading.Event()

    def waiting(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper() -> Any:
            return function(is_on_loop.wait(10))

        return wrapper

    async def work(has_waited: bool = False) -> list[Any]:
        return [has_waited, threading.current_thread() is threading.main_thread()]

    running = asyncio.create_task(deliveries.run(waiting(work)))
    await asyncio.sleep(0)
    is_on_loop.set()
    assert await running == b"[true,true]"


LANGUAGE: contextvars.ContextVar[str] = contextvars.ContextVar("LANGUAGE", default="en")


async def test_what_a_wrapper_sets_is_seen_by_the_coroutine_that_it_returns(deliveries: Deliveries) -> None:
    async def language() -> str:
        return LANGUAGE.get()

    @functools.wraps(language)
    def in_german() -> Awaitable[str]:
        LANGUAGE.set("de")
        return language()

    assert await deliveries.run(in_german) == b'"de"'
    assert LANGUAGE.get() == "en"


@pytest.mark.parametrize("moment", ["in the wrapper", "in the coroutine"])
async def test_a_coroutine_behind_a_plain_wrapper_is_cancelled(deliveries: Deliveries, moment: str) -> None:
    has_begun, may_end, ran = asyncio.Event(), threading.Event(), list[str]()
    loop = asyncio.get_running_loop()

    async def for_ever() -> None:
        ran.append("began")
        has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ran.append("cancelled")
            raise

    @functools.wraps(for_ever)
    def wrapper() -> Awaitable[None]:
        if moment == "in the wrapper":
            loop.call_soon_threadsafe(has_begun.set)
            may_end.wait(10)
        return for_ever()

    deliveries.tasks.task(name="work")(wrapper)
    running = asyncio.create_task(deliveries.call("work", envelope(call_id="call_1")))
    await has_begun.wait()
    assert deliveries.dispatcher.cancel_run("call_1")
    may_end.set()
    answer = await asyncio.wait_for(running, 10)
    assert (answer.status, b"QT404" in answer.body or b"cancel" in answer.body) == (200, True)
    assert ran == ([] if moment == "in the wrapper" else ["began", "cancelled"])


async def test_a_decorator_gets_the_arguments_as_the_caller_passed_them(deliveries: Deliveries) -> None:
    def shown(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(first: Any, *rest: Any, **named: Any) -> list[Any]:
            return [first, list(rest), named]

        return wrapper

    def work(a: int, b: int = 2, *, c: int = 3) -> list[Any]:
        raise AssertionError("only the decorator runs")

    assert await deliveries.run(shown(work), 1) == b"[1,[],{}]"
    assert (await deliveries.call("work", envelope(1, 5, c=6))).body == b'[1,[5],{"c":6}]'
    assert (await deliveries.call("work", envelope(1, b=5))).body == b'[1,[],{"b":5}]'


async def test_a_single_dispatch_runs_by_the_type_of_its_argument(deliveries: Deliveries) -> None:
    @functools.singledispatch
    def kind(value: int | str) -> Any:
        return "other"

    @kind.register
    async def _(value: str) -> str:
        return "text"

    assert await deliveries.run(kind, "x") == b'"text"'
    assert (await deliveries.call("work", envelope(1))).body == b'"other"'


async def test_a_decorator_with_a_context_surrounds_the_run(deliveries: Deliveries) -> None:
    steps: list[str] = []

    @contextlib.contextmanager
    def noted() -> Iterator[None]:
        steps.append("opened")
        yield
        steps.append("closed")

    @contextlib.asynccontextmanager
    async def noted_async() -> AsyncIterator[None]:
        with noted():
            yield

    @noted()
    def one() -> None:
        steps.append("ran")

    @noted_async()
    async def two() -> None:
        steps.append("ran")

    for name, function in (("one", one), ("two", two)):
        deliveries.tasks.task(name=name)(cast("Any", function))
        await deliveries.call(name, envelope())
    assert steps == ["opened", "ran", "closed"] * 2


# --- names of arguments

NAMES = (
    "self", "cls", "task", "ctx", "args", "kwargs", "values", "value", "function", "context", "options", "message",
    "call_id", "id", "name", "result", "positional", "dependencies", "request", "response", "model_config", "copy",
    "json", "validate", "schema", "fields", "__init__", "__class__", "_private", "__dunder__", "größe", "数", "class",
    "lambda", "None", "a b", "a-b", "$ref", "", "key", "queue", "delay", "retries", "envelope", "v", "flow",
)  # fmt: skip


def test_an_argument_may_have_any_name() -> None:
    tasks = QTasks()

    @tasks.task
    def links(**links: str) -> dict[str, str]:
        return links

    given = {name: f"value of {name}" for name in NAMES}
    assert links(**given) == given
    parameters = links.parameters
    for message in (links.message((), given), links.s(**given).task.message((), links.s(**given).kwargs)):
        values = links.codec.decode(message.envelope)
        assert parameters.call(links.function, values) == given


async def test_a_parameter_may_have_any_name(deliveries: Deliveries) -> None:
    for name in NAMES:
        if name.isidentifier() and name not in ("class", "lambda", "None"):
            space: dict[str, Any] = {}
            exec(f"def work({name}: int, *, {name}_: int = 1) -> int:\n    return {name} + {name}_\n", space)
            task = deliveries.tasks.task(name=f"work{NAMES.index(name)}")(space["work"])
            body = task.message((), {name: 2, f"{name}_": 3}).body
            assert (await deliveries.call(task.name, body)).body == b"5", name
            assert (await deliveries.call(task.name, envelope(2))).body == b"3", name
