"""A task is still a function, and `.delay()` sends what the dispatcher will read."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import inspect
import json
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

import qtasks
from qtasks import NonRetryable, QTasks, RetryAfter, TaskContext, TaskResult, injected
from qtasks.errors import ApiError, ArgumentsError, BrokerUnreachable, ConfigurationError, DefinitionError, ResultError
from qtasks.qstash.conversation.transport import AsyncTransport, Reply, Request
from qtasks.tasks.ports import Connection
from qtasks.tasks.send.outgoing import once
from qtasks.tasks.task import AsyncTask, SyncTask, Task
from tests.support.tasks import BASE_URL, KEYS, RecordingBroker, RecordingTransport, application


def with_broker(broker: RecordingBroker | None = None) -> tuple[QTasks, RecordingTransport]:
    used = broker or RecordingBroker(base_url=BASE_URL)
    return QTasks(embedded=used), used.transport


def header(request: Request, name: str) -> str | None:
    return next((value for key, value in request.headers if key.lower() == name.lower()), None)


# --- declaring


def test_calling_a_task_runs_the_function() -> None:
    tasks = QTasks()

    @tasks.task
    def add(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    @tasks.task(retries=5)
    async def later(a: int) -> int:
        return a

    assert add(1) == 3
    assert asyncio.run(later(4)) == 4
    assert isinstance(add, SyncTask)
    assert isinstance(later, AsyncTask)
    assert add.__doc__ == "Add."
    assert str(inspect.signature(add)) == "(a: 'int', b: 'int' = 2) -> 'int'"


def test_a_task_is_named_after_its_function_or_as_told() -> None:
    tasks = QTasks()

    @tasks.task
    def one() -> None: ...

    @tasks.task(name="mail.send-2")
    def two() -> None: ...

    assert (one.name, two.name) == ("one", "mail.send-2")
    assert list(tasks.tasks) == ["one", "mail.send-2"]


def test_two_tasks_of_one_name_are_an_error_that_names_both_places() -> None:
    tasks = QTasks()

    @tasks.task
    def one() -> None: ...

    with pytest.raises(DefinitionError, match=r"two tasks named 'one': .*test_task.py:\d+\) and .*test_task.py:\d+\)"):

        @tasks.task(name="one")
        def two() -> None: ...


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ü", "x" * 129])
def test_a_name_that_cannot_stand_in_a_url_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match="is not a valid name for a task"):

        @QTasks().task(name=name)
        def one() -> None: ...


def test_what_is_no_function_cannot_be_a_task() -> None:
    def numbers() -> Any:
        yield 1

    async def more() -> Any:
        yield 1

    class Callable_:  # noqa: N801
        def __call__(self) -> None: ...

    for thing in (numbers, more, Callable_(), functools.partial(len), print):
        with pytest.raises(DefinitionError) as caught:
            QTasks().task(cast("Any", thing))
        assert caught.value.code == "QT102"


def test_an_option_that_does_not_fit_fails_where_the_task_is_declared() -> None:
    with pytest.raises(DefinitionError, match="retries is -1"):

        @QTasks().task(retries=-1)
        def one() -> None: ...

    with pytest.raises(DefinitionError, match="no option 'delay'"):

        @QTasks().task(**cast("Any", {"delay": 3}))
        def two() -> None: ...


def test_the_outermost_function_decides_where_a_task_runs() -> None:
    tasks = QTasks()

    def plain_around(function: Callable[[], Awaitable[int]]) -> Callable[[], Awaitable[int]]:
        @functools.wraps(function)
        def wrapper() -> Awaitable[int]:
            return function()

        return wrapper

    def async_around(function: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(function)
        async def wrapper() -> Any:
            return function()

        return wrapper

    async def one() -> int:
        return 1

    def two() -> int:
        return 2

    assert isinstance(tasks.task(cast("Any", plain_around(one))), SyncTask)
    assert isinstance(tasks.task(async_around(two)), AsyncTask)


def test_using_returns_another_task_and_changes_nothing() -> None:
    tasks, transport = with_broker()

    @tasks.task(retries=5, label="a")
    def work() -> None: ...

    changed = work.using(retries=1, delay="10s")
    assert type(changed) is type(work)
    assert changed.name == "work"
    assert tasks.tasks["work"] is work
    changed.using(eta=datetime(2030, 1, 1, tzinfo=UTC)).delay()
    changed.delay()
    work.delay()
    sent = [
        [header(request, f"Upstash-{name}") for name in ("Retries", "Delay", "Not-Before", "Label")]
        for request in transport.requests
    ]
    assert sent == [["1", None, "1893456000", "a"], ["1", "10s", None, "a"], ["5", None, None, "a"]]


# --- sending


def test_delay_publishes_a_small_json_envelope_to_the_task_s_url() -> None:
    tasks, transport = with_broker()

    @tasks.task(retries=7, timeout="30s")
    def work(a: int, b: str, *, when: datetime) -> None: ...

    result = work.delay(1, b="ü", when=datetime(2026, 1, 1, tzinfo=UTC))
    (request,) = transport.requests
    assert request.url == f"http://broker.internal/v2/publish/{BASE_URL}/work"
    assert header(request, "Authorization") == "Bearer token-of-the-embedded-broker"
    assert header(request, "Content-Type") == "application/json"
    assert header(request, "Upstash-Retries") == "7"
    assert header(request, "Upstash-Timeout") == "30s"
    expected = (
        '{"v":1,"id":"ID","args":[1],"kwargs":{"b":"ü","when":"2026-01-01T00:00:00Z"},"retries":7,"timeout_ms":30000}'
    )
    assert request.body.decode() == expected.replace("ID", result.id)
    assert result.id.startswith("call_")
    assert result.message_id == "msg_published"
    assert not result.deduplicated
    assert "work" in repr(result)


def test_every_call_has_an_id_of_its_own() -> None:
    tasks, _ = with_broker()

    @tasks.task
    def work() -> None: ...

    assert len({work.delay().id for _ in range(20)}) == 20


@pytest.mark.anyio
async def test_adelay_sends_the_same_without_blocking_the_loop() -> None:
    tasks, transport = with_broker()

    @tasks.task
    async def work(a: int) -> None: ...

    threads: list[int] = []
    send = transport.send

    def recorded(request: Request, timeout_s: float) -> Reply:
        threads.append(threading.get_ident())
        return send(request, timeout_s)

    transport.send = recorded  # type: ignore[method-assign]
    result = await work.adelay(1)
    assert json.loads(transport.requests[0].body)["id"] == result.id
    assert threads != [threading.get_ident()]
    await asyncio.to_thread(tasks.close)


@pytest.mark.anyio
async def test_adelay_uses_the_home_s_async_transport_where_there_is_one() -> None:
    class AsyncRecorder:
        def __init__(self) -> None:
            self.inner = RecordingTransport()

        async def send(self, request: Request, timeout_s: float) -> Reply:
            return self.inner.send(request, timeout_s)

        async def close(self) -> None: ...

    recorder: Any = AsyncRecorder()

    class Home(RecordingBroker):
        def start(self, app: Any, loop: Any) -> Connection:
            connection = super().start(app, loop)
            return Connection(
                url=connection.url,
                token=connection.token,
                keys=KEYS,
                base_url=BASE_URL,
                results="memory://",
                transport=self.transport,
                async_transport=cast("AsyncTransport", recorder),
            )

    tasks, transport = with_broker(Home())

    @tasks.task
    async def work() -> None: ...

    await work.adelay()
    assert transport.requests == []
    assert len(recorder.inner.requests) == 1


def test_a_deduplicated_call_is_followed_by_the_earlier_message() -> None:
    broker = RecordingBroker(base_url=BASE_URL)
    broker.transport.answer = {"messageId": "msg_first", "deduplicated": True}
    tasks, transport = with_broker(broker)

    @tasks.task
    def work() -> None: ...

    result = work.using(deduplication_id="once").delay()
    assert header(transport.requests[0], "Upstash-Deduplication-Id") == once(f"{BASE_URL}/work", "once")
    assert result.deduplicated
    assert result.id == result.message_id == "msg_first"


def test_a_wrong_call_sends_nothing() -> None:
    tasks, transport = with_broker()

    @tasks.task
    def work(a: int) -> None: ...

    with pytest.raises(ArgumentsError, match="argument 'a' expects int, got 'x'"):
        work.delay("x")  # type: ignore[arg-type]
    with pytest.raises(ArgumentsError, match="argument 'a' is missing"):
        work.delay()  # type: ignore[call-arg]
    assert transport.requests == []


def test_arguments_too_large_for_a_message_are_refused_with_both_sizes() -> None:
    tasks, transport = with_broker()

    @tasks.task
    def work(text: str) -> None: ...

    with pytest.raises(ArgumentsError, match=r"1,048,6\d\d bytes; 1,048,576 are allowed") as caught:
        work.delay("x" * 1024 * 1024)
    assert caught.value.code == "QT155"
    assert transport.requests == []


def test_a_value_json_cannot_carry_is_named_by_its_path() -> None:
    tasks, _ = with_broker()

    @tasks.task
    def work(rows: list[dict[str, float]]) -> None: ...

    with pytest.raises(ArgumentsError, match=r"argument 'rows\[1\].x' cannot be written as JSON: nan") as caught:
        work.delay([{"x": 1.0}, {"x": float("nan")}])
    assert caught.value.code == "QT154"


def test_a_broker_that_refuses_raises_its_words() -> None:
    class Refusing(RecordingTransport):
        def send(self, request: Request, timeout_s: float) -> Reply:
            return Reply(400, (), b'{"error": "quota exceeded"}')

    broker = RecordingBroker(base_url=BASE_URL)
    broker.transport = Refusing()
    tasks, _ = with_broker(broker)

    @tasks.task
    def work() -> None: ...

    with pytest.raises(ApiError, match="quota exceeded"):
        work.delay()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_a_dead_broker_fails_within_two_seconds_and_says_what_to_start(closed_port: int) -> None:
    tasks = application(url=f"http://127.0.0.1:{closed_port}", base_url="http://127.0.0.1:8000/qtasks")

    @tasks.task
    def work() -> None: ...

    began_s = time.monotonic()
    with pytest.raises(BrokerUnreachable) as caught:
        work.delay()
    assert time.monotonic() - began_s < 2
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("work was not queued: ")
    assert lines[1:] == [
        f"  tried       http://127.0.0.1:{closed_port} (from argument)",
        "  fix         start it: `qtasks dev` while you develop, `qtasks broker` for a broker of your own",
    ]
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.name for frame in frames[1:]] == ["delay", "send_message", "send"], (
        "what is inside says nothing to a user"
    )
    tasks.close()


def test_the_traceback_of_a_call_keeps_the_frames_of_the_applications_own_middleware(closed_port: int) -> None:
    tasks = application(url=f"http://127.0.0.1:{closed_port}", base_url="http://127.0.0.1:8000/qtasks")

    @tasks.task
    def work() -> None: ...

    @tasks.send_middleware
    def refusing(message: Any) -> Any:
        if message.task == "work":
            raise ConfigurationError("no tenant")
        yield message

    with pytest.raises(ConfigurationError) as caught:
        work.delay()
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "refusing"
    tasks.close()


def test_a_silent_broker_fails_within_two_seconds_as_well() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        tasks = application(url=f"http://127.0.0.1:{silent.getsockname()[1]}", base_url="http://127.0.0.1:8000/qtasks")

        @tasks.task
        def work() -> None: ...

        began_s = time.monotonic()
        with pytest.raises(BrokerUnreachable):
            work.delay()
        assert time.monotonic() - began_s < 2
        tasks.close()


def test_no_engine_at_all_is_a_configuration_error_of_a_few_lines() -> None:
    tasks = QTasks()

    @tasks.task
    def work() -> None: ...

    with pytest.raises(ConfigurationError, match="start `qtasks dev`") as caught:
        work.delay()
    assert len(str(caught.value).splitlines()) <= 6


# --- the application


def test_nothing_is_read_or_started_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = RecordingBroker()
    tasks = QTasks(embedded=broker)

    @tasks.task
    def work() -> None: ...

    _ = tasks.router
    tasks.asgi_app()
    work.using(retries=1)
    assert broker.started == []
    work.delay()
    work.delay()
    assert [loop for _, loop in broker.started] == [None]
    tasks.close()
    tasks.close()
    assert broker.stops == 1


def test_the_environment_is_read_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = QTasks()
    monkeypatch.setenv("QSTASH_TOKEN", "t")
    monkeypatch.setenv("QTASKS_BASE_URL", "https://app.example.com/q")
    assert tasks.settings.base_url == "https://app.example.com/q"
    monkeypatch.setenv("QTASKS_BASE_URL", "https://other.example.com/q")
    assert tasks.settings.base_url == "https://app.example.com/q"


def test_a_context_manager_closes_what_was_opened() -> None:
    broker = RecordingBroker()
    with QTasks(embedded=broker) as tasks:

        @tasks.task
        def work() -> None: ...

        work.delay()
    assert broker.stops == 1


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no setting 'tokn'"):
        _ = QTasks(**cast("Any", {"tokn": "x"})).settings


def test_the_module_level_decorator_belongs_to_the_default_application() -> None:
    before = set(qtasks.default_app.tasks)

    @qtasks.task(name="of_the_default_application")
    def work() -> None: ...

    assert isinstance(work, Task)
    assert set(qtasks.default_app.tasks) - before == {"of_the_default_application"}


@pytest.mark.anyio
async def test_get_on_the_loop_that_has_to_run_the_task_is_refused() -> None:
    tasks = application()
    app = tasks.asgi_app()

    @tasks.task
    def work() -> None: ...

    async with app.router.lifespan_context(app):
        with pytest.raises(ResultError, match=r"await result\.aget") as caught:
            work.result("call_1").get(timeout=1)
        assert caught.value.code == "QT157"


# --- context and signals


def test_the_last_attempt_is_the_one_after_all_retries() -> None:
    def context(attempt: int, retries: int) -> TaskContext:
        return TaskContext(task="work", call_id="c", message_id="m", attempt=attempt, retries=retries)

    assert [context(attempt, 2).is_last_attempt for attempt in (1, 2, 3, 4)] == [False, False, True, True]
    assert context(1, 0).is_last_attempt
    assert context(3, 2).retried == 2


def test_the_context_s_logger_carries_its_ids(caplog: pytest.LogCaptureFixture) -> None:
    context = TaskContext(task="work", call_id="c", message_id="m", attempt=2, retries=3)
    with caplog.at_level("INFO"):
        context.logger.info("half way")
    (entry,) = caplog.records
    assert entry.name == "qtasks.task.work"
    assert (entry.__dict__["call_id"], entry.__dict__["message_id"], entry.__dict__["attempt"]) == ("c", "m", 2)


def test_what_a_task_says_beside_its_message_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    context = TaskContext(task="work", call_id="c", message_id="m", attempt=2, retries=3)
    given = {"order_id": 5, "attempt": "its own"}
    with caplog.at_level("INFO"):
        context.logger.info("sent", extra=given)
    (entry,) = caplog.records
    assert (entry.__dict__["order_id"], entry.__dict__["call_id"], entry.__dict__["attempt"]) == (5, "c", "its own")
    assert given == {"order_id": 5, "attempt": "its own"}


def test_a_context_that_was_not_injected_says_so() -> None:
    with pytest.raises(RuntimeError, match="called directly"):
        _ = injected.attempt
    with pytest.raises(AttributeError):
        _ = injected.colour
    assert repr(injected) == "injected"


def test_retry_after_reads_every_form_and_refuses_more_than_a_day() -> None:
    assert RetryAfter("10m").delay_ms == 600_000
    assert RetryAfter(1.5, "busy").args == ("busy",)
    assert str(RetryAfter(30)) == "again in 30s"
    with pytest.raises(ValueError, match="at most a day"):
        RetryAfter("25h")


# --- the menu


def test_the_menu_is_sorted_and_complete() -> None:
    assert qtasks.__all__ == sorted(qtasks.__all__)
    for name in qtasks.__all__:
        assert getattr(qtasks, name) is not None
    assert set(qtasks.__all__) <= set(dir(qtasks))
    with pytest.raises(AttributeError, match="no attribute 'tusk'"):
        _ = qtasks.tusk
    assert (qtasks.NonRetryable, qtasks.TaskResult) == (NonRetryable, TaskResult)


def test_a_prompt_completes_the_api_and_nothing_else() -> None:
    tasks = QTasks()

    @tasks.task
    def add(a: int, b: int) -> int:
        return a + b

    def completed(subject: object) -> set[str]:
        return {name for name in dir(subject) if not name.startswith("_")}

    assert " ".join(sorted(completed(add))) == (
        "AsyncResult aapply_async adelay aenqueue aliases amap apply_async aschedule astarmap delay enqueue function "
        "is_async map name names on_failure on_retry on_success options result retry_policy s schedule schedules si "
        "starmap using"
    )
    assert " ".join(sorted(completed(tasks) - {"messages", "dlq"})) == (
        "AsyncResult asend_task asgi_app batch close cron embed every include_router llm on_failure on_retry "
        "on_success prefix result results_router router run_middleware schedules send_middleware send_task settings "
        "task tasks"
    )
    assert {"get", "status", "cancel"} <= completed(tasks.result("call_1"))
    assert "of_task" not in completed(tasks.result("call_1"))
    assert "step" not in completed(add.s(1, 2))
    assert "check_target" not in completed(tasks.schedules)


def test_the_version_is_that_of_the_distribution() -> None:
    assert qtasks.__version__ == importlib.metadata.version("qstash-tasks")
    assert "__version__" in dir(qtasks)


def test_importing_the_package_loads_next_to_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import qtasks; "
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('qtasks')))"
    )
    root = Path(__file__).parents[3]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout.split() == ["__future__"]
