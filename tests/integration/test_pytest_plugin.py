"""The plugin in projects of its own: what it finds, what it refuses, what it costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from qtasks.tasks.settings import VARIABLES

APP = """
    from qtasks import QTasks, TaskContext, injected

    tasks = QTasks()
    ran = []

    @tasks.task
    def add(a: int, b: int) -> int:
        ran.append((a, b))
        return a + b

    @tasks.task
    async def greet(name: str) -> str:
        return f"hello {name}"
"""
DRAINS = """
    from tasks import add

    def test_it(qtasks):
        result = add.delay(2, 3)
        qtasks.assert_enqueued(add, 2)
        assert qtasks.drain() == 1
        assert result.get() == 5
"""
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest on files, in a process of its own, with nothing configured and no plugins but those that are named."""
    for variable in (*VARIABLES.values(), "QSTASH_DEV", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))

    def run(*args: str, ini: str = "", **files: str) -> pytest.RunResult:
        pytester.makepyfile(**files)
        pytester.makeini(f"[pytest]\n{ini}")
        return pytester.runpytest_subprocess("-p", "qtasks.testing.plugin", "-p", "no:cacheprovider", *args)

    return run


def test_the_application_is_found_where_qtasks_dev_finds_it(run: Run) -> None:
    run(tasks=APP, test_it=DRAINS).assert_outcomes(passed=1)


def test_the_plugin_is_there_without_being_named(
    pytester: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("--co", tasks=APP, test_it=DRAINS)
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    unrelated = [option for name in ("schemathesis", "hypothesispytest", "asyncio") for option in ("-p", f"no:{name}")]
    pytester.runpytest_subprocess(*unrelated).assert_outcomes(passed=1)


def test_the_settings_of_pytest_or_of_the_project_name_it(run: Run, pytester: pytest.Pytester) -> None:
    away = DRAINS.replace("from tasks", "from away")
    run(ini="qtasks_app = away:tasks", away=APP, test_it=away).assert_outcomes(passed=1)
    pytester.makepyprojecttoml('[tool.qtasks]\napp = "away.py"')
    run(away=APP, test_it=away).assert_outcomes(passed=1)


def test_a_fixture_gives_it(run: Run) -> None:
    conftest = """
        import pytest
        from fastapi import FastAPI
        from away import tasks

        @pytest.fixture(scope="session")
        def qtasks_app():
            app = FastAPI()
            app.include_router(tasks.router, prefix="/jobs")
            return app
    """
    run(away=APP, conftest=conftest, test_it=DRAINS.replace("from tasks", "from away")).assert_outcomes(passed=1)


def test_tasks_without_an_application_object_are_found_as_well(run: Run) -> None:
    test = """
        from qtasks import task

        @task
        def double(n: int) -> int:
            return 2 * n

        def test_it(qtasks):
            result = double.delay(2)
            qtasks.drain()
            assert result.get() == 4
    """
    run(test_it=test).assert_outcomes(passed=1)


JOBS = (
    APP.replace("from qtasks", "from fastapi import FastAPI\n    from qtasks")
    + """
    api = FastAPI()
    api.include_router(tasks.router, prefix="/jobs")
"""
)
IMPORTS = DRAINS.replace("from tasks", "from jobs")


@pytest.mark.parametrize(
    "end",
    ["", "    app = FastAPI()\n    app.mount('/api', api)\n", "    other = QTasks()\n", "    other = FastAPI()\n"],
    ids=["alone", "mounted", "beside an unused set of tasks", "beside an application without tasks"],
)
def test_the_one_application_that_the_tests_import_is_found_whatever_its_file_is_called(run: Run, end: str) -> None:
    run(jobs=JOBS + end, test_it=IMPORTS).assert_outcomes(passed=1)


def test_tasks_that_no_application_serves_are_found_in_any_file(run: Run) -> None:
    run(jobs=APP, test_it=IMPORTS).assert_outcomes(passed=1)


def test_a_file_with_a_usual_name_and_without_tasks_is_not_in_the_way(run: Run) -> None:
    run(main="from fastapi import FastAPI\napp = FastAPI()\n", jobs=JOBS, test_it=IMPORTS).assert_outcomes(passed=1)


def test_between_two_applications_the_error_names_both(run: Run) -> None:
    more = "    more = FastAPI()\n    more.include_router(tasks.router, prefix='/more')\n"
    result = run(jobs=JOBS + more, test_it=IMPORTS)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no application is named, and 2 with tasks are in this process*"])
    result.stdout.fnmatch_lines(["*jobs:api*"])
    result.stdout.fnmatch_lines(["*jobs:more*"])


def test_where_nothing_is_found_the_error_says_how_to_name_it(run: Run) -> None:
    found = run(test_it="def test_it(qtasks): ...")
    found.assert_outcomes(errors=1)
    found.stdout.fnmatch_lines(["*no application found in *", "*looked for *tasks.py*", "*fix *qtasks_app*"])


def test_the_marker_says_the_mode_and_is_enough(run: Run) -> None:
    test = """
        import pytest
        from tasks import add, ran

        @pytest.mark.qtasks("inline")
        def test_marked():
            assert add.delay(1, 1).get() == 2

        @pytest.mark.qtasks("capture")
        class TestMarked:
            def test_method(self, qtasks):
                ran.clear()
                add.delay(1, 1)
                assert (qtasks.mode, ran) == ("capture", [])

        @pytest.mark.qtasks(start="2030-01-01T00:00:00Z")
        def test_started(qtasks):
            assert qtasks.now.isoformat() == "2030-01-01T00:00:00+00:00"

        @pytest.mark.qtasks("eager")
        def test_unknown(): ...
    """
    done = run("--strict-markers", tasks=APP, test_it=test)
    done.assert_outcomes(passed=3, errors=1)
    done.stdout.fnmatch_lines(["*unknown mode 'eager'*"])


def test_no_test_reaches_a_broker_that_is_configured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSTASH_TOKEN", "of-production")
    monkeypatch.setenv("QTASKS_BASE_URL", "https://app.example.com/qtasks")
    test = """
        from tasks import add

        def test_without(): add.delay(1, 2)
    """
    refused = run(tasks=APP, test_it=test)
    refused.assert_outcomes(failed=1)
    refused.stdout.fnmatch_lines(["*a test may only use its own test broker*", "*use the fixture `qtasks`*"])
    monkeypatch.setenv("QSTASH_URL", "http://127.0.0.1:9")
    let_out = run(ini="qtasks_network = true", tasks=APP, test_it=test)
    let_out.assert_outcomes(failed=1)
    let_out.stdout.fnmatch_lines(["*add was not queued: *", "*tried *http://127.0.0.1:9*"])


def test_an_application_that_lives_for_the_whole_session_serves_every_environment(run: Run) -> None:
    app = (
        APP
        + """
    from fastapi import FastAPI

    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")

    @app.post("/add")
    async def start() -> str:
        return (await add.adelay(1, 2)).id
    """
    )
    conftest = """
        import pytest
        from starlette.testclient import TestClient
        from tasks import app

        @pytest.fixture(scope="session")
        def client():
            with TestClient(app) as client:
                yield client
    """
    test = """
        import pytest
        from tasks import add

        @pytest.mark.parametrize("n", [1, 2])
        def test_it(client, qtasks, n):
            call = client.post("/add").json()
            assert qtasks.drain() == 1
            assert add.result(call).get() == 3
    """
    run(tasks=app, conftest=conftest, test_it=test).assert_outcomes(passed=2)


def test_a_forgotten_await_fails_the_test(run: Run) -> None:
    test = """
        from tasks import add, greet

        async def sign_up():
            greet.adelay("Ada")

        def test_in_async_code(qtasks):
            import asyncio
            asyncio.run(sign_up())

        def test_called_and_not_run(qtasks):
            greet("Ada")

        def test_verb(qtasks):
            qtasks.adrain()

        def test_in_a_task(qtasks):
            import tasks
            if "forgets" not in tasks.tasks.tasks:
                @tasks.tasks.task
                async def forgets() -> None:
                    greet.adelay("Ada")
            tasks.tasks.tasks["forgets"].delay()
            qtasks.drain()

        def test_awaited(qtasks):
            import asyncio
            asyncio.run(greet.adelay("Ada"))
            qtasks.drain()
    """
    done = run(tasks=APP, test_it=test)
    assert done.parseoutcomes()["passed"] == 1
    done.stdout.fnmatch_lines(
        [
            "*coroutine 'BaseTask.adelay' was never awaited*",
            "*coroutine 'greet' was never awaited*",
            "*coroutine 'Environment.adrain' was never awaited*",
            "*coroutine 'BaseTask.adelay' was never awaited*",
        ]
    )
    assert done.parseoutcomes().get("failed", 0) + done.parseoutcomes().get("errors", 0) == 4


ASYNC = """
    import asyncio
    import pytest
    from tasks import greet, tasks

    {mark}
    async def test_it(qtasks):
        result = await greet.adelay("Ada")
        assert await qtasks.adrain() == 1
        assert await result == "hello Ada"
        assert await (await greet.using(delay="1h").adelay("Bob")).astatus() == "queued"
        assert await qtasks.aadvance(hours=1) == 1
"""


def test_it_works_beside_pytest_asyncio(run: Run) -> None:
    test = ASYNC.format(mark="@pytest.mark.asyncio")
    run("-p", "pytest_asyncio.plugin", tasks=APP, test_it=test).assert_outcomes(passed=1)


def test_it_works_beside_anyio(run: Run) -> None:
    test = ASYNC.format(mark='@pytest.mark.anyio\n    @pytest.mark.parametrize("anyio_backend", ["asyncio"])')
    run("-p", "anyio.pytest_plugin", tasks=APP, test_it=test).assert_outcomes(passed=1)


def test_it_works_in_many_processes(run: Run) -> None:
    test = """
        import pytest
        from tasks import add

        @pytest.mark.parametrize("n", range(20))
        def test_it(qtasks, n):
            result = add.delay(n, 1)
            qtasks.drain()
            assert result.get() == n + 1
            assert len(qtasks.sent) == 1
    """
    run("-p", "xdist", "-n", "2", tasks=APP, test_it=test).assert_outcomes(passed=20)


def test_it_works_in_unittest_with_and_without_pytest(run: Run, pytester: pytest.Pytester) -> None:
    test = """
        import unittest
        from qtasks.testing import Environment
        from tasks import add, tasks

        class TestAdding(unittest.TestCase):
            def setUp(self):
                self.qtasks = self.enterContext(Environment(tasks))

            def test_it(self):
                result = add.delay(1, 2)
                self.qtasks.drain()
                self.assertEqual(result.get(), 3)

            def test_found(self):
                with Environment() as found:
                    add.delay(1, 2)
                    self.assertEqual(len(found.sent), 1)
    """
    run(tasks=APP, test_it=test).assert_outcomes(passed=2)
    done = subprocess.run([sys.executable, "-W", "error", "-m", "unittest", "test_it"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_one_test_leaves_nothing_to_the_next(run: Run) -> None:
    test = """
        import asyncio
        import pytest
        from tasks import add, tasks

        left = []

        @pytest.mark.parametrize("n", [1, 2])
        def test_it(qtasks, n):
            assert qtasks.sent == qtasks.dlq == qtasks.pending == qtasks.results == []
            if "leaves" not in tasks.tasks:
                @tasks.task
                async def leaves() -> None:
                    left.append(asyncio.create_task(asyncio.sleep(3600)))
                    add.using(unique=True).delay(1, 1)
            assert all(task.cancelled() for task in left)
            tasks.tasks["leaves"].delay()
            qtasks.run_next()
            assert len(qtasks.pending) == 1
            assert len(left) == n
    """
    run(tasks=APP, test_it=test).assert_outcomes(passed=2)


def test_loading_the_plugin_loads_nothing_but_pytest() -> None:
    program = (
        "import sys, time\n"
        "import pytest\n"
        "before, began = set(sys.modules), time.perf_counter()\n"
        "import qtasks.testing.plugin\n"
        "spent = time.perf_counter() - began\n"
        "print(sorted(set(sys.modules) - before))\n"
        "print(spent)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded, spent_s = done.stdout.splitlines()
    assert loaded == "['qtasks', 'qtasks.testing', 'qtasks.testing.plugin']"
    assert float(spent_s) < 0.1  # a few milliseconds; the machine may be busy


def test_a_run_without_the_fixture_loads_nothing_more(run: Run) -> None:
    test = """
        import sys

        def test_it():
            assert [name for name in sys.modules if name.startswith("qtasks.") and "testing" not in name] == []
            assert "qtasks.testing.environment" not in sys.modules
            assert "fastapi" not in sys.modules
    """
    run(test_it=test).assert_outcomes(passed=1)


@pytest.mark.parametrize(("count", "limit_s"), [(50, 30.0), pytest.param(1000, 10.0, marks=pytest.mark.release)])
def test_a_thousand_tests_of_jobs_run_in_seconds(run: Run, count: int, limit_s: float) -> None:
    test = "\n".join(
        f"""
def test_job_{n}(qtasks):
    result = greet.using(delay="1h").delay("Ada") if {n} % 2 else add.delay({n}, 1)
    qtasks.assert_enqueued(greet if {n} % 2 else add)
    assert qtasks.advance(hours=1) == 1
    assert result.get() == ("hello Ada" if {n} % 2 else {n} + 1)
"""
        for n in range(count)
    )
    clock = """
        import time
        began_s = []

        def pytest_runtest_logstart():
            began_s.append(time.monotonic())

        def pytest_sessionfinish():
            print("spent", time.monotonic() - began_s[0])
    """
    done = run("-s", tasks=APP, conftest=clock, test_it=f"from tasks import add, greet\n{test}")
    done.assert_outcomes(passed=count)
    [spent_s] = [float(line.partition("spent ")[2]) for line in done.outlines if "spent " in line]
    assert spent_s < limit_s


def test_pytest_still_has_the_private_set_that_the_plugin_reads(pytestconfig: pytest.Config) -> None:
    """`plugin._leave_assertions_alone` relies on it: without it every run rewrites the assertions of this package."""
    packages = getattr(pytestconfig.pluginmanager.rewrite_hook, "_must_rewrite", None)
    assert isinstance(packages, set)
    assert "qtasks" not in packages
