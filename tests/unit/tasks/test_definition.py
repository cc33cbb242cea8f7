"""One definition that is run again replaces a task; two of one name are refused; and a name leads to each task."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import importlib
import multiprocessing
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import cloudpickle  # type: ignore[import-untyped]
import pytest

import qtasks
from qtasks import QTasks, RetryPolicy, TaskRouter
from qtasks.errors import DefinitionError
from qtasks.llm import openai
from qtasks.tasks.hooks import Hooks
from tests.support.tasks import application

TASKS = application()


@TASKS.task(label="shapes")
def square(n: int) -> int:
    return n * n


def _double(n: int) -> int:
    return 2 * n


doubled = TASKS.task(name="doubled")(_double)
shortened = TASKS.task(name="shortened")(textwrap.shorten)


def run(source: str, names: dict[str, Any], file: str = "<ipython-input-1>") -> None:
    """Run a cell, compiled anew as a notebook does."""
    exec(compile(source, file, "exec"), names)


def notebook(tasks: QTasks) -> dict[str, Any]:
    return {"tasks": tasks, "__name__": "__main__"}


ADD = "@tasks.task\ndef add(a: int, b: int) -> int:\n    return a + b\n"


# --- the same definition again


def test_a_script_that_its_server_imports_once_more_starts(tmp_path: Path) -> None:
    lines = (
        "import importlib",
        "from qtasks import default_app, task",
        "@task",
        "def add(a: int, b: int) -> int:",
        "    return a + b",
        'if __name__ == "__main__":',
        '    importlib.import_module("main")',
        "    print(list(default_app.tasks), default_app.tasks['add'] is not add)",
    )
    (tmp_path / "main.py").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("['add'] True\n", "")


def test_a_reloaded_module_replaces_its_tasks_also_after_an_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    tasks = QTasks()
    (tmp_path / "jobs_to_reload.py").write_text(
        "from tests.unit.tasks.test_definition import SHARED as tasks\n\n@tasks.cron('0 9 * * *', aliases=['old'])\n"
        "def report() -> int:\n    return 1\n\n@report.on_failure\ndef alarm(event): ...\n"
        "\n@tasks.on_failure\ndef alarm_of_all(event): ...\n"
    )
    monkeypatch.setitem(globals(), "SHARED", tasks)
    jobs = importlib.import_module("jobs_to_reload")
    first = jobs.report
    (tmp_path / "jobs_to_reload.py").write_text(
        "from tests.unit.tasks.test_definition import SHARED as tasks\n\nADDED = 1\n\n"
        "@tasks.cron('0 10 * * *')\ndef report() -> int:\n    return 2\n\n@report.on_failure\ndef alarm(event): ...\n"
        "\n@tasks.on_failure\ndef alarm_of_all(event): ...\n"
    )
    importlib.reload(jobs)
    try:
        assert tasks.tasks["report"] is jobs.report is not first
        assert jobs.report() == 2
        assert [one.cron.text for one in tasks._declared_schedules()] == ["0 10 * * *"]
        assert jobs.report.hooks.failure == [jobs.alarm]
        assert tasks.runtime.hooks.failure == [jobs.alarm_of_all]
        assert "old" not in tasks.runtime.tasks
    finally:
        del sys.modules["jobs_to_reload"]


SHARED = QTasks()


def test_a_cell_that_is_run_again_replaces_its_task_also_when_it_was_edited() -> None:
    tasks = QTasks()
    names = notebook(tasks)
    run(ADD, names)
    run(ADD, names, "<ipython-input-2>")
    run(f"# sums\n\n{ADD.replace('a + b', 'a - b')}", names, "/tmp/ipykernel_12/345.py")
    assert list(tasks.tasks) == ["add"]
    assert tasks.tasks["add"](3, 1) == 2


def test_code_that_was_compiled_once_and_runs_twice_replaces_its_task() -> None:
    tasks = QTasks()
    names, cell = notebook(tasks), compile(ADD, "<stdin>", "exec")
    exec(cell, names)
    exec(cell, names)
    assert tasks.tasks["add"] is names["add"]


def test_a_hook_in_a_cell_of_its_own_is_kept_once() -> None:
    tasks = QTasks()
    names = notebook(tasks)
    hook = "@add.on_failure\ndef alarm(event): ...\n"
    run(ADD, names)
    run(hook, names, "<ipython-input-2>")
    run(hook, names, "<ipython-input-3>")
    assert tasks.tasks["add"].hooks.failure == [names["alarm"]]
    run(ADD, names, "<ipython-input-4>")
    assert tasks.tasks["add"].hooks.failure == [names["alarm"]]


def test_middleware_and_the_completion_of_a_model_are_in_cells_as_well() -> None:
    tasks = QTasks()
    names = {**notebook(tasks), "openai": openai}
    run("@tasks.llm(provider=openai(), model='m')\ndef summarise(text): return []\n", names)
    cell = (
        "@tasks.send_middleware\ndef sent(message): yield message\n"
        "@tasks.run_middleware\nasync def ran(run, call_next): ...\n"
        "@summarise.on_completion\ndef store(text): ...\n"
    )
    for number in (2, 3):
        run(cell, names, f"<ipython-input-{number}>")
    assert tasks.runtime.send_middleware == [names["sent"]]
    assert tasks.runtime.run_middleware == [names["ran"]]
    assert names["summarise"].completion.declared.function is names["store"]
    with pytest.raises(DefinitionError, match="has a completion already"):
        run("@summarise.on_completion\ndef other(text): ...\n", names)


def test_a_schedule_in_a_decorator_of_the_earlier_task_belongs_to_the_later_one() -> None:
    tasks = QTasks()
    names = notebook(tasks)
    run("@tasks.task\ndef report() -> None: ...\n", names)
    earlier = names["report"]
    run("@tasks.task\ndef report() -> None: ...\n", names, "<ipython-input-2>")
    assert tasks.cron("0 9 * * *")(earlier) is names["report"]
    assert len(tasks._declared_schedules()) == 1


def test_a_router_of_a_cell_that_is_run_again_can_be_included_again() -> None:
    tasks = QTasks()
    names = {**notebook(tasks), "TaskRouter": TaskRouter}
    source = "mail = TaskRouter('mail.')\n" + ADD.replace("tasks.", "mail.") + "tasks.include_router(mail)\n"
    run(source, names)
    run(source, names, "<ipython-input-2>")
    assert list(tasks.tasks) == ["mail.add"]
    assert tasks.tasks["mail.add"] is names["add"]


def test_a_factory_that_runs_twice_declares_its_task_again_unless_it_does_something_else() -> None:
    tasks = QTasks()

    def create(channel: str) -> Any:
        @tasks.task
        def send(to: str) -> str:
            return f"{channel}: {to}"

        return send

    assert create("mail") is not create("mail") is not None
    with pytest.raises(DefinitionError, match="two tasks named 'send'"):
        create("sms")


# --- two definitions of one name


LOOP = "for channel in ('mail', 'sms'):\n    @tasks.task\n    def send(to: str) -> str:\n        return channel\n"
TWICE = ADD + ADD
WRAPPED = (
    "def wrapped(f):\n    @wraps(f)\n    def inner(*args):\n        return f(*args)\n    return inner\n"
    "@tasks.task(name='add')\n@wrapped\ndef one(): ...\n@tasks.task(name='add')\n@wrapped\ndef two(): ...\n"
)
NESTED = f"def declare():\n    {ADD.replace(chr(10), chr(10) + '    ')}\ndeclare()\n" + ADD
LAMBDAS = "tasks.task(name='x')(lambda: 1); tasks.task(name='x')(lambda: 2)"


@pytest.mark.parametrize("source", [LOOP, TWICE, WRAPPED, NESTED, LAMBDAS])
def test_two_functions_of_one_name_in_one_file_are_refused(source: str) -> None:
    with pytest.raises(DefinitionError, match="there are two tasks named"):
        run(source, {**notebook(QTasks()), "wraps": functools.wraps})


def test_functions_of_one_name_in_two_files_are_refused() -> None:
    names: dict[str, Any] = {"tasks": QTasks(), "__name__": "one", "__file__": "/srv/one.py"}
    run(ADD, names, "/srv/one.py")
    with pytest.raises(DefinitionError, match=r"one\.add \(/srv/one\.py:\d\) and two\.add \(/srv/two\.py:\d\)"):
        run(ADD, {**names, "__name__": "two", "__file__": "/srv/two.py"}, "/srv/two.py")


def test_one_function_with_other_options_is_a_second_task_of_its_name() -> None:
    tasks = QTasks()

    def add() -> None: ...

    tasks.task(add)
    tasks.task(add)
    with pytest.raises(DefinitionError, match="two tasks named 'add'"):
        tasks.task(retries=1)(add)


def test_an_alias_of_another_task_is_not_replaced() -> None:
    tasks = QTasks()
    tasks.task(name="other", aliases=["add"])(lambda: None)
    with pytest.raises(DefinitionError, match="two tasks named 'add'"):
        run(ADD, notebook(tasks))


HOOKS: list[Callable[[Any], Any]] = [lambda event: None, lambda event: repr(event)]


class Monitor:
    def failed(self, event: Any) -> None: ...


def test_hooks_that_differ_are_all_called() -> None:
    hooks = Hooks()
    made: list[Any] = list(HOOKS)
    made.extend(functools.partial(repr, channel) for channel in "ab")
    made.extend(Monitor().failed for _ in range(2))
    made.extend(lambda event, channel=channel: (channel, event) for channel in "ab")
    for hook in (*made, *made):
        hooks.on_failure(hook)
    assert len(hooks.failure) == len(made)


# --- by name


def test_a_task_and_its_function_come_back_from_a_pickle_as_themselves() -> None:
    for dump in (pickle.dumps, cloudpickle.dumps):
        for value in (square, square.function, doubled, doubled.function, shortened, shortened.function):
            assert pickle.loads(dump(value)) is value
    assert square.function.__name__ == square.__qualname__ == "square"
    assert (_double.__qualname__, textwrap.shorten.__qualname__) == ("_double", "shorten")


def test_the_errors_of_a_function_that_nobody_pickles_have_its_own_name() -> None:
    names: dict[str, Any] = {"tasks": QTasks(), "__name__": __name__}
    run("@tasks.task\ndef total(a: int) -> int:\n    return a\n", names)
    with pytest.raises(TypeError, match=r"^total\(\) missing 1 required"):
        names["total"]()


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_task_runs_in_a_pool_of_processes(how: str) -> None:
    context = multiprocessing.get_context(how)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        runs = [pool.submit(work, 3) for work in (square, square.function, doubled)]
        assert [one.result(60) for one in runs] == [9, 9, 6]


def test_a_copy_with_options_keeps_them_in_a_pickle() -> None:
    changed = square.using(retries=RetryPolicy(max=2), delay="10s").using(delay="20s")
    restored = pickle.loads(pickle.dumps(changed))
    assert restored.options == changed.options
    assert restored.own_options == changed.own_options
    assert restored(3) == 9


def test_a_copy_of_a_task_is_the_task() -> None:
    for task in (square, square.using(retries=1)):
        assert copy.copy(task) is copy.deepcopy(task) is copy.deepcopy([task])[0] is task


def test_a_task_without_a_name_in_a_module_says_why_it_cannot_be_pickled() -> None:
    @TASKS.task
    def nested() -> None: ...

    with pytest.raises(pickle.PicklingError, match=r"nested is pickled by its name.*test_definition\.py:\d+"):
        pickle.dumps(nested)


def test_attributes_that_a_decorator_left_do_not_hide_what_a_task_has() -> None:
    def work() -> None: ...

    vars(work).update(delay=3, parameters=4, options=5, statistics=6)
    task = cast("Any", QTasks().task(work))
    assert task.statistics == 6
    assert callable(task.delay)
    assert task.parameters.signature == "work() -> None"
    assert dict(task.options) == {}


def test_the_default_application_refuses_and_replaces_as_well() -> None:
    names: dict[str, Any] = {"tasks": qtasks, "__name__": "__main__"}
    for _ in range(2):
        run(ADD.replace("tasks.task", "tasks.task(name='of_a_cell')"), names)
    assert qtasks.default_app.tasks["of_a_cell"] is names["add"]
