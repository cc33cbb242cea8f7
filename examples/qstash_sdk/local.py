"""The surroundings of the example: a broker on a free port, and a server that receives the messages."""

import asyncio
import json
import queue
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from qtasks.broker.broker import Broker
from qtasks.broker.server.api_server import ApiServer
from qtasks.broker.server.listen import listen
from qtasks.broker.settings import BrokerSettings
from qtasks.protocol.development import USERS

USER = USERS[0]
"""The public development user; a broker in production has its own tokens (`qtasks broker init`)."""


@contextmanager
def broker() -> Iterator[str]:
    """Run a broker in this process for the duration of the block; yields its URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listener = listen("127.0.0.1", 0)

    async def start(path: Path) -> tuple[Broker, ApiServer]:
        opened = await Broker.open(BrokerSettings(path=str(path)))
        api = ApiServer(opened, [listener])
        await api.start()
        opened.start()
        return opened, api

    async def stop(opened: Broker, api: ApiServer) -> None:
        await api.stop()
        await opened.stop()

    with TemporaryDirectory(prefix="qtasks-example-") as folder:
        running = asyncio.run_coroutine_threadsafe(start(Path(folder, "broker.db")), loop).result()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            asyncio.run_coroutine_threadsafe(stop(*running), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@dataclass(frozen=True)
class Arrival:
    """A received request."""

    url: str
    headers: dict[str, str]
    body: str


class Inbox(ThreadingHTTPServer):
    """Records requests by path. It answers 404 at /gone and 500 to the first request at /flaky."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._arrived: defaultdict[str, queue.Queue[Arrival]] = defaultdict(queue.Queue)
        self._seen: set[str] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def wait_for(self, path: str) -> Arrival:
        """The next request at `path`."""
        return self._arrived[path].get(timeout=8)

    def take(self, path: str, arrival: Arrival) -> tuple[int, str]:
        """Record a request. Returns status and body of the response."""
        is_first = path not in self._seen
        self._seen.add(path)
        self._arrived[path].put(arrival)
        if path == "/gone":
            return 404, "nothing here"
        if path == "/flaky" and is_first:
            return 500, "not today"
        if path == "/v1/chat/completions":
            return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": "Ankara"}}]})
        return 200, "thank you"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Inbox

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        arrival = Arrival(self.server.url + self.path, dict(self.headers.items()), body)
        status, answer = self.server.take(self.path, arrival)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
        """Say nothing: the example prints what matters."""
