"""For all tests: asyncio as the event loop, the usual signals, and reports that a worker of ``pytest -n`` can send."""

from __future__ import annotations

import logging
import signal
from collections.abc import Generator, Iterator
from typing import Any

import pytest


def pytest_configure() -> None:
    """Let the processes that tests start get Ctrl-C and SIGHUP, also if the tests were started in the background."""
    for ignored, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(ignored) is signal.SIG_IGN:
            signal.signal(ignored, usual)


@pytest.fixture(autouse=True)
def _level_of_the_log() -> Iterator[None]:
    """A command that a test runs in this process sets the level of the log."""
    log = logging.getLogger("qtasks")
    before = log.level
    yield
    log.setLevel(before)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[Any, Any, Any]:
    """Escape lone surrogates, which tests of bad input log: a worker sends its reports as UTF-8."""
    report = yield
    return _encodable(report)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(name): _encodable(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_encodable(part) for part in value)
    return value
