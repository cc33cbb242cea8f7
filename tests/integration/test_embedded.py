"""The embedded broker: a broker inside the process, with nothing left out but the socket."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import Depends, FastAPI

from qtasks import Embedded, QTasks, TaskContext, TaskEvent, injected
from qtasks.broker.core import delivery_requests
from qtasks.broker.events import MessageEvent
from qtasks.broker.loops import single_attempts
from qtasks.errors import BrokerUnreachable, StoreLocked
from qtasks.protocol.messages import SigningKeys, State
from qtasks.tasks.results import backend
from tests.support.process import soon

PATIENCE_S = 10.0


class Watch:
    """Keeps events and lets a test wait for one."""

    def __init__(self) -> None:
        self.events: list[MessageEvent] = []
        self._changed = threading.Condition()

    def __call__(self, event: MessageEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, state: State, count: int = 1) -> list[MessageEvent]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._of(state)) >= count, PATIENCE_S), self.events
            return self._of(state)

    def _of(self, state: State) -> list[MessageEvent]:
        return [event for event in self.events if event.state is state]


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def tasks(tmp_path: Path, watch: Watch) -> Iterator[QTasks]:
    with QTasks(embedded=Embedded(tmp_path / "tasks.db", watch=watch)) as made:
        yield made


def test_sync_and_async_tasks_run_and_answer(tasks: QTasks) -> None:
    @tasks.task
    def add(a: int, b: int) -> int:
        return a + b

    @tasks.task
    async def greet(name: str) -> str:
        await asyncio.sleep(0)
        return f"hello {name}"

    assert add.delay(2, 3).get(timeout=PATIENCE_S) == 5
    assert greet.delay("Ada").get(timeout=PATIENCE_S) == "hello Ada"


def test_delay_needs_nothing_of_the_callers_loop(tasks: QTasks) -> None:
    @tasks.task
    async def double(n: int) -> int:
        return 2 * n

    async def main() -> tuple[int, int]:
        blocking = double.delay(1)
        waiting = await double.adelay(2)
        return await blocking.aget(timeout=PATIENCE_S), await waiting.aget(timeout=PATIENCE_S)

    assert asyncio.run(main()) == (2, 4)
    assert asyncio.run(main()) == (2, 4)


def test_a_task_may_delay_another(tasks: QTasks) -> None:
    @tasks.task
    def inner(n: int) -> int:
        return n + 1

    @tasks.task
    async def outer(n: int) -> int:
        return await (await inner.adelay(n)).aget(timeout=PATIENCE_S)

    assert outer.delay(1).get(timeout=PATIENCE_S) == 2


def test_failures_retry_and_count(tasks: QTasks, watch: Watch) -> None:
    @tasks.task(retries=2, retry_delay="10ms")
    def flaky(ctx: TaskContext = injected) -> int:
        if ctx.attempt < 3:
            raise OSError("not yet")
        return ctx.attempt

    assert flaky.delay().get(timeout=PATIENCE_S) == 3
    watch.wait_for(State.DELIVERED)
    assert len(watch.wait_for(State.RETRY)) == 2


def test_a_message_that_nobody_signed_for_us_runs_nothing(
    tasks: QTasks, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    signed_request = delivery_requests.signed_request
    forged = SigningKeys("sig_" + "f" * 40, "sig_" + "g" * 40)

    @tasks.task(retries=0)
    def touch() -> None:
        ran.append(1)

    monkeypatch.setattr(
        single_attempts, "signed_request", lambda message, keys, **facts: signed_request(message, forged, **facts)
    )
    touch.delay()
    [dead] = watch.wait_for(State.FAILED)
    assert "401" in (dead.error or "")
    assert ran == []


def test_a_body_changed_on_the_way_runs_nothing(tasks: QTasks, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    signed_request = delivery_requests.signed_request

    @tasks.task(retries=0)
    def touch(n: int) -> None:
        ran.append(n)

    def tampered(message: object, keys: object, **facts: object) -> object:
        request = signed_request(message, keys, **facts)  # type: ignore[arg-type]
        return replace(request, body=request.body.replace(b"1", b"2"))

    monkeypatch.setattr(single_attempts, "signed_request", tampered)
    touch.delay(1)
    watch.wait_for(State.FAILED)
    assert ran == []


def test_what_a_stopped_process_left_runs_at_the_next_start(tmp_path: Path) -> None:
    def application(watch: Watch | None = None) -> QTasks:
        made = QTasks(embedded=Embedded(tmp_path / "tasks.db", watch=watch))

        @made.task
        def note(text: str) -> str:
            return text

        return made

    with application() as first:
        waiting = first.tasks["note"].using(delay="300ms").delay("kept")
    watch = Watch()
    with application(watch) as second:
        second.tasks["note"].delay("new")
        delivered = watch.wait_for(State.DELIVERED, 2)
    assert waiting.message_id in {event.message.id for event in delivered}


class Interrupted:
    """A task without retries that ends at its second run only, and what was seen of it."""

    def __init__(self, tasks: QTasks, *, is_async: bool) -> None:
        self.attempts: list[int] = []
        self.failures = 0
        self.begun, self.may_end = threading.Event(), threading.Event()

        async def coroutine(ctx: TaskContext = injected) -> int:
            if self._begin(ctx):
                await asyncio.Event().wait()
            return ctx.attempt

        def thread(ctx: TaskContext = injected) -> int:
            if self._begin(ctx):
                assert self.may_end.wait(PATIENCE_S)
            return ctx.attempt

        self.task = tasks.task(retries=0, name="work")(coroutine if is_async else thread)

        @tasks.on_failure
        def failed(event: object) -> None:
            self.failures += 1

    def _begin(self, ctx: TaskContext) -> bool:
        """Keep the attempt; True for the first one."""
        self.attempts.append(ctx.attempt)
        self.begun.set()
        return len(self.attempts) == 1


@pytest.mark.parametrize("is_async", [True, False])
def test_a_close_hands_back_what_runs_and_the_next_use_makes_the_same_attempt(tmp_path: Path, is_async: bool) -> None:
    with QTasks(embedded=Embedded(tmp_path / "tasks.db", drain_s=0)) as tasks:
        work = Interrupted(tasks, is_async=is_async)
        result = work.task.delay()
        assert work.begun.wait(PATIENCE_S)
        tasks.close()
        assert result.status == "queued"
        assert result.get(timeout=PATIENCE_S) == 1
        work.may_end.set()
        assert (work.attempts, work.failures) == ([1, 1], 0)


@pytest.mark.anyio
@pytest.mark.parametrize("is_async", [True, False])
async def test_the_end_of_an_application_hands_back_what_runs_and_its_next_start_makes_the_same_attempt(
    tmp_path: Path, is_async: bool
) -> None:
    tasks = QTasks(embedded=Embedded(tmp_path / "tasks.db", drain_s=0))
    work = Interrupted(tasks, is_async=is_async)
    app = FastAPI()
    app.include_router(tasks.router, prefix="/jobs")
    async with asyncio.timeout(PATIENCE_S):  # the drain of an application without an embedded broker takes longer
        async with app.router.lifespan_context(app):
            result = await work.task.adelay()
            assert await asyncio.to_thread(work.begun.wait, PATIENCE_S)
        assert result.status == "queued"
        async with app.router.lifespan_context(app):
            assert await result.aget(timeout=PATIENCE_S) == 1
        work.may_end.set()
    assert (work.attempts, work.failures) == ([1, 1], 0)
    tasks.close()


def test_a_call_made_after_the_end_of_the_home_is_told_so(tmp_path: Path) -> None:
    home = Embedded(tmp_path / "tasks.db")
    with QTasks(embedded=home) as tasks:
        task = tasks.task(name="work")(lambda: None)
        task.delay().get(timeout=PATIENCE_S)
        home._stop_at_exit()
        with pytest.raises(BrokerUnreachable, match="the embedded broker has stopped"):
            task.delay()


def test_ctrl_c_at_the_end_of_the_process_ends_the_wait_without_a_traceback() -> None:
    class Impatient(Embedded):
        def stop(self) -> None:
            raise KeyboardInterrupt

    Impatient(":memory:")._stop_at_exit()


def test_a_second_process_is_told_who_holds_the_file_and_what_to_do(tmp_path: Path, tasks: QTasks) -> None:
    program = (
        "import sys\n"
        "from qtasks import Embedded, QTasks\n"
        "tasks = QTasks(embedded=Embedded(sys.argv[1]))\n"
        "@tasks.task\n"
        "def note() -> None: ...\n"
        "note.delay()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    path = str(tmp_path / "shared.db")
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        second = QTasks(embedded=Embedded(path))

        @second.task
        def note() -> None: ...

        with pytest.raises(StoreLocked, match=f"in use by process {other.pid}") as refused:
            note.delay()
        assert "qtasks broker" in str(refused.value)
        other.kill()


FORKS = """
import os, sys, time
from qtasks import Embedded, QTasks
from qtasks.errors import BrokerUnreachable

tasks = QTasks(embedded=Embedded("tasks.db"))

@tasks.task
def add(a: int, b: int) -> int:
    return a + b

add.delay(1, 2).get(timeout=10)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_is_told_that_it_has_no_broker_and_ends_at_once(tmp_path: Path) -> None:
    script = """
began_s = time.monotonic()
if os.fork() == 0:
    try:
        add.delay(3, 4)
    except BrokerUnreachable as error:
        print(error)
    sys.exit()
os.wait()
print("the child ended after", time.monotonic() - began_s)
print("the parent goes on:", add.delay(5, 6).get(timeout=10))
"""
    done = subprocess.run(
        [sys.executable, "-c", FORKS + script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 4,
        check=True,
    )
    assert "from which this one was forked" in done.stdout, done.stderr
    assert "the parent goes on: 11" in done.stdout
    (ended_s,) = re.findall(r"the child ended after ([0-9.]+)", done.stdout)
    assert float(ended_s) < PATIENCE_S


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    script = """
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), 9)
"""
    parent = subprocess.Popen([sys.executable, "-c", FORKS + script], cwd=tmp_path, stdin=subprocess.PIPE)
    assert parent.stdin is not None
    assert parent.wait(PATIENCE_S) == -9
    with QTasks(embedded=Embedded(tmp_path / "tasks.db")) as tasks:

        @tasks.task
        def add(a: int, b: int) -> int:
            return a + b

        assert add.delay(1, 2).get(timeout=PATIENCE_S) == 3
    parent.stdin.close()


@pytest.mark.anyio
async def test_tasks_of_a_running_application_run_on_its_loop_with_its_dependencies(tmp_path: Path) -> None:
    tasks = QTasks(embedded=Embedded(tmp_path / "tasks.db"))
    app = FastAPI()
    app.include_router(tasks.router, prefix="/somewhere")
    opened: list[str] = []

    async def database() -> AsyncIterator[str]:
        opened.append("open")
        yield "real"
        opened.append("closed")

    @tasks.task
    async def where(db: str = Depends(database)) -> list[object]:
        return [db, id(asyncio.get_running_loop())]

    @app.get("/start")
    async def start() -> list[object]:
        result = await where.adelay()
        return [*await result.aget(timeout=PATIENCE_S), id(asyncio.get_running_loop())]

    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        db, task_loop, app_loop = (await client.get("/start")).json()
        assert (db, task_loop) == ("real", app_loop)
        app.dependency_overrides[database] = lambda: "fake"
        assert (await client.get("/start")).json()[0] == "fake"
    assert opened == ["open", "closed"]


def test_importing_and_declaring_start_nothing(tmp_path: Path) -> None:
    tasks = QTasks(embedded=Embedded(tmp_path / "tasks.db"))

    @tasks.task
    def note() -> None: ...

    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['aiohttp'] = None  # as if it were not installed\n"
        "from qtasks import Embedded, QTasks\n"
        "tasks = QTasks(embedded=Embedded(sys.argv[1]))\n"
        "@tasks.task\n"
        "def note() -> None: ...\n"
        "note.delay()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "tasks.db")], capture_output=True, text=True, check=False
    )
    assert "ConfigurationError: the embedded broker needs aiohttp, which is not installed" in done.stderr
    assert 'pip install "qstash-tasks[broker]"' in done.stderr


@pytest.mark.parametrize("path", [":memory:", "tasks.db"])
@pytest.mark.parametrize("is_async", [False, True])
def test_who_waits_for_a_result_finds_the_success_hooks_done(
    path: str, is_async: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    noted: list[object] = []
    nothing = threading.Event()

    def note(event: TaskEvent) -> None:
        nothing.wait(0.05)  # the record can be read meanwhile
        noted.append((event.value, own.result(event.context.call_id).status))

    with QTasks(embedded=Embedded(path)) as own:

        @own.task
        def double(number: int) -> int:
            return 2 * number

        double.on_success(note)
        handle = double.delay(2)
        value = asyncio.run(handle.aget(timeout=PATIENCE_S)) if is_async else handle.get(timeout=PATIENCE_S)
        assert (value, noted) == (4, [(4, "succeeded")])


def test_a_success_hook_that_does_not_end_holds_nobody_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "HOOKS_S", 0.1)
    seen: list[object] = []
    may_end, has_read = threading.Event(), threading.Event()

    def hold(event: TaskEvent) -> None:
        if event.value == 4:
            seen.append(own.result(event.context.call_id).get(timeout=PATIENCE_S))  # it waits for its own end
            has_read.set()
        may_end.wait(PATIENCE_S)

    with QTasks(embedded=Embedded(":memory:")) as own:

        @own.task
        def double(number: int) -> int:
            return 2 * number

        double.on_success(hold)
        assert double.delay(2).get(timeout=PATIENCE_S) == 4
        assert has_read.wait(PATIENCE_S)
        monkeypatch.setattr(backend, "HOOKS_S", PATIENCE_S)
        handle = double.delay(3)
        soon(lambda: handle.status == "succeeded", "the second call ends")
        assert handle.get(timeout=0.05) == 6
        may_end.set()
    assert seen == [4]
