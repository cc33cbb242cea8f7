"""The same calls, of language models too, through a real broker and server, in bundles and singly: they end alike."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import Depends, FastAPI

from qtasks import NonRetryable, QTasks, TaskContext, injected
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.server.listen import listen
from qtasks.broker.settings import BrokerSettings
from qtasks.errors import TaskFailed
from qtasks.llm import upstash, user
from qtasks.protocol.messages import State
from qtasks.tasks.web import bundle_run
from tests.support.bundles import behind_uvicorn
from tests.support.running import RunningBroker
from tests.support.tasks import KEYS

CALLS = 700
PATIENCE_S = 60.0


class Passing:
    """Middleware that does nothing, and must see each delivery all the same."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def declare(tasks: QTasks) -> None:
    @tasks.task
    async def add(a: int) -> int:
        return a + 1

    @tasks.task
    def in_thread(a: int) -> int:
        return a + 2

    async def connection() -> AsyncIterator[int]:
        yield 3

    @tasks.task
    async def dependent(a: int, more: int = Depends(connection)) -> int:
        return a + more

    @tasks.task(retries=1, retry_delay="1ms")
    async def second_try(a: int, ctx: TaskContext = injected) -> int:
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return a + ctx.attempt

    @tasks.llm(provider=upstash(), model="echo")
    def ask(a: int) -> Any:
        return [user(f"say {a}")]

    @tasks.task
    def fails(a: int) -> None:
        raise NonRetryable(f"no {a}")


def ends(handle: Any) -> object:
    try:
        return handle.get(timeout=PATIENCE_S)
    except TaskFailed as error:
        return str(error.reason) if hasattr(error, "reason") else type(error).__name__


def run_all(*, singly: bool) -> tuple[list[object], Counter[str]]:
    """The ends of all calls, and the states of their messages at the broker."""
    token = "token-of-the-shop"
    credentials = AccountCredentials("shop", token, KEYS)
    broker = RunningBroker(BrokerSettings(path=":memory:", credentials=(credentials,), llm_echo=True))
    listener = listen("127.0.0.1", 0)
    tasks = QTasks(
        url=broker.url,
        token=token,
        current_signing_key=KEYS.current,
        next_signing_key=KEYS.next,
        base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/qtasks",
        results="memory://",
    )
    declare(tasks)
    app = FastAPI()
    if singly:
        app.add_middleware(Passing)
    app.include_router(tasks.router, prefix="/qtasks")
    with behind_uvicorn(app, listener=listener):
        names = ["add", "add", "add", "in_thread", "dependent", "second_try", "ask", "fails"]
        handles = []
        for start in range(0, CALLS, 100):  # a client waits for two seconds, and all three share this process
            with tasks.batch():
                handles += [tasks.tasks[names[n % len(names)]].delay(n) for n in range(start, start + 100)]
        ended = [ends(handle) for handle in handles]
        with broker._changed:  # a failure is reported by one more message, and so is a completion
            reported = {names.index("fails"), names.index("ask")}
            messages = CALLS + sum(number % len(names) in reported for number in range(CALLS))
            assert broker._changed.wait_for(lambda: _ended(broker) == messages, PATIENCE_S)
    tasks.close()
    states = Counter(str(event.state) for event in broker.events)
    broker.stop()
    return ended, states


def _ended(broker: RunningBroker) -> int:
    return sum(event.state in (State.DELIVERED, State.FAILED) for event in broker.events)


def test_calls_in_bundles_end_as_calls_that_are_delivered_singly(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    completions: list[str] = []
    begin, guard = bundle_run.BundleRun._begin, threading.Lock()

    def counted(run: Any) -> None:
        with guard:
            sizes.append(len(run._items))
            completions.extend(item.target for item in run._items if item.target.startswith("ask?"))
        begin(run)

    monkeypatch.setattr(bundle_run.BundleRun, "_begin", counted)
    single = run_all(singly=True)
    assert sizes == []
    bundled = run_all(singly=False)
    assert sum(sizes) > CALLS / 10  # how many wait for each other depends on the machine
    assert completions
    assert bundled == single
