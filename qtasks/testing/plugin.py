"""The pytest plugin. Every run of pytest imports it, so it imports only pytest; the rest is imported by a test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

    from qtasks.tasks.app import QTasks
    from qtasks.testing.environment import Environment

_SWITCH = "QTASKS_TEST"
_KEY = pytest.StashKey[str | None]()
_MARKER = (
    'qtasks(mode="manual", *, start=None, seed=0): the environment of the test\'s tasks. Modes: "manual" (calls wait '
    'for drain() and advance()), "capture" (recorded only), "inline" (run at once), "full" (real HTTP, real time). '
    "The test is in an environment whether it asks for the fixture or not."
)
_UNAWAITED = (
    # A coroutine that is not awaited never runs: a test with a forgotten `await` before .adelay() would pass. The
    # warning appears when the coroutine is deleted, where no error can be raised; pytest makes a second warning of it.
    "error:coroutine .* was never awaited:RuntimeWarning",
    "error:(?s).*coroutine .* was never awaited:pytest.PytestUnraisableExceptionWarning",
)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the settings."""
    _leave_assertions_alone(pluginmanager)
    parser.addini("qtasks_app", "the application under test: a file, a module, or module:object")
    parser.addini("qtasks_network", "let tests without an environment use the configured broker", type="bool")


def _leave_assertions_alone(pluginmanager: pytest.PytestPluginManager) -> None:
    """Keep pytest from rewriting the assertions of this package, as it does for every package with a plugin.

    They are not assertions of tests; to rewrite them costs a second in each run without bytecode. pytest has no public
    way to say so: this reads a private attribute, and does nothing if a later pytest does not have it.
    """
    getattr(pluginmanager.rewrite_hook, "_must_rewrite", set()).discard("qtasks")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and keep the tests of this process away from configured brokers."""
    config.addinivalue_line("markers", _MARKER)
    if not config.getini("qtasks_network"):
        config.stash[_KEY] = os.environ.get(_SWITCH)
        os.environ[_SWITCH] = "1"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Restore the environment variable that `pytest_configure` has set."""
    if _KEY in config.stash:
        before = config.stash[_KEY]
        if before is None:
            os.environ.pop(_SWITCH, None)
        else:
            os.environ[_SWITCH] = before


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give a test with the marker an environment, and make un-awaited coroutines an error in every environment."""
    names: list[str] | None = getattr(item, "fixturenames", None)
    if names is None:
        return
    if "qtasks" not in names and item.get_closest_marker("qtasks") is not None:
        names.append("qtasks")
    if "qtasks" in names:
        for line in _UNAWAITED:
            item.add_marker(pytest.mark.filterwarnings(line))


@pytest.fixture(scope="session")
def qtasks_app(pytestconfig: pytest.Config) -> FastAPI | QTasks:
    """The application under test; a fixture of the same name in a conftest.py takes its place.

    Found by `qtasks_app` in pytest's settings, by ``[tool.qtasks] app`` in pyproject.toml, or as `qtasks dev` finds it.
    """
    from qtasks.testing.app_under_test import find

    return find(pytestconfig.getini("qtasks_app") or None, pytestconfig.rootpath)


@pytest.fixture
def qtasks(request: pytest.FixtureRequest, qtasks_app: FastAPI | QTasks | str) -> Iterator[Environment]:
    """The environment of this test's tasks; see `qtasks.testing.Environment`."""
    try:
        from qtasks.testing.environment import Environment
    except ModuleNotFoundError as error:
        from qtasks.errors import missing_extra

        if (missing := missing_extra(error, "the fixture qtasks")) is None:
            raise
        pytest.fail(f"{missing.code} {missing}", pytrace=False)

    marker = request.node.get_closest_marker("qtasks")
    args: tuple[Any, ...] = () if marker is None else marker.args
    options: dict[str, Any] = {} if marker is None else dict(marker.kwargs)
    if args:
        options["mode"] = args[0]
    with Environment(qtasks_app, **options) as environment:
        yield environment
