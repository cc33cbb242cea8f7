"""Log lines that strangers can cause: one is written, the others are counted."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import pytest
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from qtasks.broker.server.uvicorn_log import CountedLines
from qtasks.counted_log import CountedLog

log = logging.getLogger("qtasks.tests.counted")


class Lines(logging.Handler):
    """What was logged; `more` is set by a line that sums up."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.more = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        if " more " in self.texts[-1]:
            self.more.set()


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


class Time:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_flood_is_one_line_and_later_one_number(lines: Lines) -> None:
    time = Time()
    counted = CountedLog(log, time)
    for number in range(1000):
        counted.warning("bad requests", "request %d is bad", number)
    assert lines.texts == ["request 0 is bad"]
    time.now_s += 61
    counted.warning("bad requests", "request %d is bad", 1000)
    assert lines.texts[1:] == ["999 more bad requests in the last 61 s", "request 1000 is bad"]


def test_single_lines_are_all_written(lines: Lines) -> None:
    time = Time()
    counted = CountedLog(log, time)
    for number in range(3):
        counted.warning("bad requests", "request %d is bad", number)
        time.now_s += 60
    assert lines.texts == ["request 0 is bad", "request 1 is bad", "request 2 is bad"]


def test_the_first_lines_of_a_period_are_written_and_the_others_counted(lines: Lines) -> None:
    time = Time()
    counted = CountedLog(log, time, lines=3)
    for number in range(5):
        counted.warning("bad requests", "request %d is bad", number)
    time.now_s += 60
    counted.warning("bad requests", "request 5 is bad")
    assert lines.texts == [
        "request 0 is bad",
        "request 1 is bad",
        "request 2 is bad",
        "2 more bad requests in the last 60 s",
        "request 5 is bad",
    ]


def test_kinds_are_counted_separately(lines: Lines) -> None:
    counted = CountedLog(log, Time())
    for kind in ("a", "b", "a"):
        counted.warning(kind, "a line of kind %s", kind)
    assert lines.texts == ["a line of kind a", "a line of kind b"]


@pytest.mark.anyio
async def test_the_number_is_written_when_the_flood_is_over(lines: Lines) -> None:
    counted = CountedLog(log, period_s=0.02)
    for _ in range(5):
        counted.warning("bad requests", "bad")
    await asyncio.wait_for(lines.more.wait(), 10)
    assert lines.texts == ["bad", "4 more bad requests in the last 0 s"]


def test_a_loop_that_ended_before_the_number_was_written_loses_nothing(lines: Lines) -> None:
    time = Time()
    counted = CountedLog(log, time)

    async def flood() -> None:
        for _ in range(3):
            counted.warning("bad requests", "bad")

    asyncio.run(flood())
    time.now_s += 60
    asyncio.run(flood())
    assert lines.texts == ["bad", "2 more bad requests in the last 60 s", "bad"]


def test_uvicorns_lines_about_bad_requests_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    uvicorn = logging.getLogger("qtasks.tests.uvicorn")
    uvicorn.addFilter(CountedLines())
    for _ in range(9):
        uvicorn.warning("Invalid HTTP request received.")
        uvicorn.error("opening handshake failed", exc_info=ValueError("what a stranger sent"))
        uvicorn.error("Exception in ASGI application\n")
    texts = [record.getMessage() for record in caplog.records]
    assert texts[:3] == [
        "Invalid HTTP request received.",
        "opening handshake failed",
        "Exception in ASGI application\n",
    ]
    assert texts[3:] == ["Exception in ASGI application\n"] * 8, "errors of the application are all written"
    assert "what a stranger sent" not in caplog.text


@pytest.mark.parametrize("departure", [ClientDisconnect(), WebSocketDisconnect()])
def test_clients_that_leave_early_fill_no_log(departure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Each would be a page of traceback, for a few bytes of a stranger."""
    uvicorn = logging.getLogger(f"qtasks.tests.uvicorn.{type(departure).__name__}")
    uvicorn.addFilter(CountedLines())
    for _ in range(9):
        try:
            raise departure
        except Exception:
            uvicorn.exception("Exception in ASGI application\n")
    [record] = caplog.records
    assert record.exc_info is not None
    assert "a client left" in record.getMessage()


def test_threads_count_together(lines: Lines) -> None:
    time = Time()
    counted = CountedLog(log, time)
    threads = [threading.Thread(target=counted.warning, args=("bad requests", "bad")) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.now_s += 60
    counted.warning("bad requests", "bad")
    assert lines.texts == ["bad", "19 more bad requests in the last 60 s", "bad"]
