"""A reverse proxy that serves another server below a path, as an operator's own server does."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.support.running import PATIENCE_S

PER_CONNECTION = ("connection", "keep-alive", "transfer-encoding")


@contextmanager
def below(prefix: str, origin: str) -> Iterator[str]:
    """A server that passes what is below `prefix` on to `origin`, piece by piece; its address with the prefix."""

    class Handler(BaseHTTPRequestHandler):
        def pass_on(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream = http.client.HTTPConnection(urlsplit(origin).netloc, timeout=PATIENCE_S)
            try:
                upstream.request(self.command, self.path.removeprefix(prefix), body, dict(self.headers.items()))
                self._answer(upstream.getresponse())
            except OSError:  # the browser or the broker has gone
                self.close_connection = True
            finally:
                upstream.close()

        def _answer(self, response: http.client.HTTPResponse) -> None:
            self.send_response_only(response.status)
            for name, value in response.getheaders():
                if name.lower() not in PER_CONNECTION:
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            while piece := response.read1(65536):
                self.wfile.write(piece)

        do_GET = do_POST = do_DELETE = do_PATCH = pass_on  # noqa: N815

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{prefix}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
