"""Output that does not block the process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TextIO

import pytest

from qtasks.cli.output import NonBlockingStream


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """The end to read from, and a stream into the other."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        yield reader, stream
    os.close(reader)


def test_lines_arrive_whole_and_in_order(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    out = NonBlockingStream(stream)
    for number in range(100):
        out.line(f"{number} ü")
    out.close()
    assert os.read(reader, 65536).decode() == "".join(f"{number} ü\n" for number in range(100))


def test_what_was_printed_before_comes_before(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    stream.write("first\n")
    out = NonBlockingStream(stream)
    out.line("second")
    out.close()
    assert os.read(reader, 65536) == b"first\nsecond\n"


def test_a_pipe_that_nobody_reads_holds_nobody_up(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    out = NonBlockingStream(stream, limit=10)
    for _ in range(100):
        out.line("x" * 65536)
    # What fits waits; the end does not wait for it for ever.
    out.close()
    out.close()
    assert os.read(reader, 3) == b"xxx"


def test_what_was_dropped_is_counted_for_whoever_reads_on(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    out = NonBlockingStream(stream, limit=2)
    block = "x" * 70_000  # more than the pipe holds: the first keeps the thread busy
    for _ in range(10):
        out.write(block)
    received = b""
    while b"not shown" not in received:
        received += os.read(reader, 65536)
    out.close()
    found = re.search(rb"\((\d+) more were not shown\)\n", received)
    assert found is not None
    assert 7 <= int(found[1]) <= 8


def test_a_reader_that_has_gone_is_not_written_to_again() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        out = NonBlockingStream(broken)
        for _ in range(10):
            out.line("x")
        out.close()
    assert out.write("still accepted") == 14


def test_a_program_without_streams_prints_into_nothing() -> None:
    out = NonBlockingStream(None)
    out.line("x")
    out.flush()
    out.close()
    assert (out.isatty(), out.encoding) == (False, "utf-8")


def test_a_pipe_is_no_terminal(pipe: tuple[int, TextIO]) -> None:
    out = NonBlockingStream(pipe[1])
    assert not out.isatty()
    out.close()
