"""A bare HTTP endpoint that knows nothing of qtasks: ``python -m benchmarks.comparison.endpoint PORT``.

The body of a request is the number of a task, whose arrival is recorded (`task_times`).
"""

from __future__ import annotations

import asyncio
import functools
import sys
from typing import cast

from benchmarks import task_times
from benchmarks.processes import HOST

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class _Connection(asyncio.Protocol):
    """Requests with a Content-Length, one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (whole := first_request(self._received)) is not None:
            body, self._received = whole
            number = int(body)
            times = task_times.current()
            if not times.has_started(number):
                times.record_started(number)
            times.record_done(number)
            self._transport.write(_ANSWER)


def first_request(received: bytes) -> tuple[bytes, bytes] | None:
    """The body of the first request, and what follows it; None while it is not complete."""
    head, blank, rest = received.partition(b"\r\n\r\n")
    if not blank:
        return None
    length = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or 0)
    return (rest[:length], rest[length:]) if len(rest) >= length else None


async def main(port: int) -> None:
    """Serve until the process is stopped."""
    server = await asyncio.get_running_loop().create_server(functools.partial(_Connection), HOST, port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(int(sys.argv[1])))
    else:
        uvloop.run(main(int(sys.argv[1])))
