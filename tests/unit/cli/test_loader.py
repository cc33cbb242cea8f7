"""From what a person typed to their tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtasks.cli.loader import AppError, AppLocation, LoadedApp, load, locate

TASKS = "from qtasks import QTasks\ntasks = QTasks()\n@tasks.task\ndef add(a: int, b: int) -> int:\n    return a + b\n"
APP = TASKS + (
    "from fastapi import FastAPI\napp = FastAPI()\napp.include_router(tasks.router, prefix='/jobs')\n"
    "other = FastAPI()\nnumber = 5\n"
)
LINES = 6


@pytest.fixture(autouse=True)
def importing(tmp_path: Path) -> Iterator[None]:
    """What a test imports is gone after it."""
    path, modules = sys.path[:], set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def write(folder: Path, *files: str, code: str = TASKS) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(code)


def located(folder: Path, argument: str | None = None) -> tuple[str, str, str | None]:
    """Where to import from (below `folder`), which module, which object."""
    target = locate(argument, folder)
    return str(target.folder.relative_to(folder)), target.module, target.attribute


def refusal(folder: Path, argument: str | None = None) -> str:
    """The words in which an application is not found or not loaded; the code is first."""
    with pytest.raises(AppError) as refused:
        load(locate(argument, folder))
    text = f"{refused.value.code} {refused.value}"
    assert len(text.splitlines()) <= LINES, text
    return text


def loaded(folder: Path, argument: str | None = None) -> LoadedApp:
    return load(locate(argument, folder))


# -- where it is


@pytest.mark.parametrize(
    ("argument", "place"),
    [
        ("tasks.py", (".", "tasks", None)),
        ("./tasks.py", (".", "tasks", None)),
        ("tasks", (".", "tasks", None)),
        ("tasks:tasks", (".", "tasks", "tasks")),
        ("tasks.py:tasks", (".", "tasks", "tasks")),
        ("package/jobs.py", (".", "package.jobs", None)),
        ("package.jobs:app", (".", "package.jobs", "app")),
        ("package/deep/jobs.py", (".", "package.deep.jobs", None)),
        ("package/__init__.py", (".", "package", None)),
        ("src/package/tasks.py", ("src", "package.tasks", None)),
        ("plain/jobs.py", (".", "plain.jobs", None)),
        ("not-a-name/jobs.py", ("not-a-name", "jobs", None)),
    ],
)
def test_a_file_or_a_module_is_found(tmp_path: Path, argument: str, place: tuple[str, str, str | None]) -> None:
    write(tmp_path, "tasks.py", "package/__init__.py", "package/jobs.py", "package/deep/__init__.py")
    write(tmp_path, "package/deep/jobs.py", "src/package/__init__.py", "src/package/tasks.py", "plain/jobs.py")
    write(tmp_path, "not-a-name/jobs.py")
    assert located(tmp_path, argument) == place


@pytest.mark.parametrize(
    ("files", "module", "found"),
    [
        (("tasks.py", "app.py", "main.py"), "tasks", "found tasks.py"),
        (("app.py", "main.py"), "app", "found app.py"),
        (("main.py", "app/main.py"), "main", "found main.py"),
        (("app/main.py", "app/tasks.py"), "app.main", "found app/main.py"),
        (("src/b/__init__.py", "src/b/tasks.py", "src/a/__init__.py", "src/a/tasks.py"), "a.tasks", "src/a/tasks.py"),
    ],
)
def test_without_a_name_the_usual_places_are_tried_in_turn(
    tmp_path: Path, files: tuple[str, ...], module: str, found: str
) -> None:
    write(tmp_path, *files)
    target = locate(None, tmp_path)
    assert target.module == module
    assert target.source.endswith(found)


def test_pyproject_says_it_once_for_all(tmp_path: Path) -> None:
    write(tmp_path, "tasks.py", "package/jobs.py")
    (tmp_path / "pyproject.toml").write_text('[tool.qtasks]\napp = "package.jobs:tasks"\n')
    target = locate(None, tmp_path)
    assert (str(target), target.source) == ("package.jobs:tasks", "named in pyproject.toml")
    assert locate("tasks.py", tmp_path).module == "tasks"


@pytest.mark.parametrize(
    "document", ["", "[project]\nname = 'x'\n", "[tool.qtasks]\n", "[tool]\nqtasks = 'x'\n", "tool = 5\n"]
)
def test_a_pyproject_without_a_word_for_us_is_passed_over(tmp_path: Path, document: str) -> None:
    write(tmp_path, "tasks.py")
    (tmp_path / "pyproject.toml").write_text(document)
    assert locate(None, tmp_path).source == "found tasks.py"


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("[tool.qtasks]\napp = 5\n", "must be a string such as"),
        ("[tool.qtasks]\napp = ['a']\n", "must be a string such as"),
        ("[tool.qtasks\n", "pyproject.toml cannot be read"),
        ("[tool.qtasks]\napp = 'nowhere.py'\n", "nowhere.py does not exist"),
    ],
)
def test_a_pyproject_that_is_wrong_says_so(tmp_path: Path, document: str, text: str) -> None:
    write(tmp_path, "tasks.py")
    (tmp_path / "pyproject.toml").write_text(document)
    assert text in refusal(tmp_path)


def test_nothing_found_lists_what_was_looked_for(tmp_path: Path) -> None:
    text = refusal(tmp_path)
    assert text.startswith(f"QT601 no application found in {tmp_path}")
    for place in ("[tool.qtasks] app in pyproject.toml", "tasks.py", "app/main.py", "src/*/tasks.py"):
        assert place in text


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("taks.py", "QT601 taks.py does not exist; did you mean 'tasks.py'?"),
        ("taks", "QT601 there is no module 'taks'; did you mean 'tasks'?"),
        ("tasks:tsks", "QT602 module 'tasks' has no 'tsks'; did you mean 'tasks'?"),
        ("tasks:xyzzy", "QT602 module 'tasks' has no 'xyzzy'\n"),
        ("", "QT601 '' is neither a file nor a module"),
        ("a b", "QT601 'a b' is neither a file nor a module"),
        ("no/where.py", "QT601 no/where.py does not exist"),
        ("C:\\apps\\tasks.py", "does not exist"),
    ],
)
def test_a_slip_is_met_with_the_nearest_name(tmp_path: Path, argument: str, text: str) -> None:
    write(tmp_path, "tasks.py")
    assert text in refusal(tmp_path, argument)


# -- what is in it


def test_tasks_alone_are_served_under_our_prefix(tmp_path: Path) -> None:
    write(tmp_path, "only_tasks.py")
    found = loaded(tmp_path, "only_tasks.py")
    assert (found.target, found.prefix, list(found.tasks.tasks)) == ("only_tasks", "/qtasks", ["add"])


def test_proxies_that_stand_for_nothing_yet_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "of_flask.py", code="from flask import current_app, request\n" + TASKS)
    assert list(loaded(tmp_path, "of_flask.py").tasks.tasks) == ["add"]


def test_an_application_is_served_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, "whole_app.py", code=APP)
    for argument in ("whole_app.py", "whole_app:app"):
        found = loaded(tmp_path, argument)
        assert (found.prefix, list(found.tasks.tasks)) == ("/jobs", ["add"])


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        ("other", "QT602 the application in mixed_app:other does not serve any tasks"),
        ("number", "QT602 mixed_app:number is a int; expected a FastAPI application or a QTasks object"),
    ],
)
def test_an_object_that_is_no_application_is_named(tmp_path: Path, attribute: str, text: str) -> None:
    write(tmp_path, "mixed_app.py", code=APP)
    assert text in refusal(tmp_path, f"mixed_app:{attribute}")


def test_several_sets_of_tasks_are_not_guessed_between(tmp_path: Path) -> None:
    write(tmp_path, "two_sets.py", code=TASKS + "more = QTasks()\n")
    assert "QT602 two_sets has 2 QTasks objects" in refusal(tmp_path, "two_sets.py")
    assert list(loaded(tmp_path, "two_sets:tasks").tasks.tasks) == ["add"]


def test_relative_imports_of_a_package_work(tmp_path: Path) -> None:
    write(tmp_path, "src/shop/__init__.py", "src/shop/names.py", code="NAME = 'x'\n")
    write(tmp_path, "src/shop/tasks.py", code="from .names import NAME\n" + TASKS)
    assert list(loaded(tmp_path).tasks.tasks) == ["add"]


# -- what is wrong with it


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        (
            "import json\n\njson.loads('{')\n",
            ("error       JSONDecodeError: Expecting property name", "broken.py:3  json.loads('{')"),
        ),
        ("def wrong(:\n", ("error       SyntaxError", "broken.py:1  def wrong(:")),
        ("import no_such_module\n", ("No module named 'no_such_module'", "broken.py:1  import no_such_module")),
        ("raise SystemExit(3)\n", ("error       SystemExit: 3", "broken.py:1  raise SystemExit(3)")),
        ("raise ValueError('a\\nb\\n' * 1000)\n", ("error       ValueError: a b a b", "...")),
        (
            TASKS + "@tasks.task\ndef add() -> None: ...\n",
            ("error       DefinitionError: there are two tasks named 'add'", "fix         rename one, or @tasks.task"),
        ),
        (
            TASKS + "@tasks.cron('0 25 * * *')\ndef daily() -> None: ...\n",
            (
                '\n  error       DefinitionError: Invalid cron expression: hour: "25" is not 0 to 23\n',
                "\n                0 25 * * *\n                  ^^\n",
                "@tasks.cron('0 25 * * *')",
            ),
        ),
        (
            TASKS + "@tasks.cron('0 9 * * *')\ndef daily(days: int) -> None: ...\n",
            ("argument 'days' is missing", "\n  signature   daily(days: int) -> None\n  fix         args=[...]"),
        ),
        ("def f():\n    f()\nf()\n", ("error       RecursionError", "broken.py:2  f()")),
    ],
)
def test_an_error_in_the_users_code_is_told_by_the_users_own_line(
    tmp_path: Path, code: str, lines: tuple[str, ...]
) -> None:
    write(tmp_path, "broken.py", code=code)
    text = refusal(tmp_path, "broken.py")
    assert text.startswith("QT603 broken cannot be imported\n")
    for line in lines:
        assert line in text
    assert "Traceback" not in text
    assert "importlib" not in text


def test_a_missing_part_of_a_package_is_no_misspelt_application(tmp_path: Path) -> None:
    write(tmp_path, "shop/__init__.py", code="")
    write(tmp_path, "shop/jobs.py", code="import shop.missing\n")
    assert "QT603 shop.jobs cannot be imported" in refusal(tmp_path, "shop.jobs")
    assert "QT601 there is no module 'shop.job'" in refusal(tmp_path, "shop.job")


def test_a_module_without_tasks_says_what_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qtasks import QTasks
    from qtasks.tasks import default

    monkeypatch.setattr(default, "default_app", QTasks())
    write(tmp_path, "empty.py", code="x = 1\n")
    text = refusal(tmp_path, "empty.py")
    assert text.startswith("QT602 no tasks found in empty")
    assert "functions with @task" in text


def test_a_target_is_shown_as_it_is_typed() -> None:
    assert str(AppLocation(Path(), "a.b", None, "")) == "a.b"
    assert str(AppLocation(Path(), "a.b", "c", "")) == "a.b:c"


# -- several applications, and applications in other forms

SEVERAL = TASKS + (
    "from fastapi import FastAPI\nfrom starlette.middleware.gzip import GZipMiddleware\n"
    "admin = FastAPI()\napi = FastAPI()\napi.include_router(tasks.router, prefix='/jobs')\n"
)
FACTORY = TASKS + (
    "from fastapi import FastAPI\n"
    "def create_app():\n    app = FastAPI()\n    app.include_router(tasks.router, prefix='/jobs')\n    return app\n"
    "def with_settings(settings, debug=False): ...\n"
    "def fails():\n    raise OSError('no settings')\n"
)


@pytest.mark.parametrize(
    ("line", "attribute", "prefix"),
    [
        ("", "api", "/jobs"),
        ("app = FastAPI()\napp.mount('/api', api)\n", "app", "/api/jobs"),
        ("app = FastAPI()\napp.mount('/api', api, name='api')\n", "app", "/api/jobs"),
        ("app = GZipMiddleware(api)\n", "app", "/jobs"),
        (
            "inner = FastAPI()\ninner.mount('/api', api)\napp = GZipMiddleware(GZipMiddleware(inner))\n",
            "app",
            "/api/jobs",
        ),
    ],
    ids=["beside one without tasks", "mounted", "mounted under a name", "in middleware", "in both"],
)
def test_of_several_applications_the_outermost_one_with_tasks_is_served(
    tmp_path: Path, line: str, attribute: str, prefix: str
) -> None:
    write(tmp_path, "several_apps.py", code=SEVERAL + line)
    found = loaded(tmp_path, "several_apps.py")
    assert found.app is getattr(sys.modules["several_apps"], attribute)
    assert (found.prefix, list(found.tasks.tasks)) == (prefix, ["add"])


def test_a_function_makes_the_application(tmp_path: Path) -> None:
    write(tmp_path, "made_app.py", code=FACTORY)
    found = loaded(tmp_path, "made_app:create_app")
    assert (found.prefix, list(found.tasks.tasks)) == ("/jobs", ["add"])


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        ("with_settings", "QT602 made_app:with_settings is a function with parameters"),
        ("fails", "OSError: no settings"),
    ],
)
def test_a_function_that_makes_no_application_says_why(tmp_path: Path, attribute: str, text: str) -> None:
    write(tmp_path, "made_app.py", code=FACTORY)
    assert text in refusal(tmp_path, f"made_app:{attribute}")
