"""A real broker on a real socket, and a real HTTP endpoint that records the requests it receives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from qtasks.broker import ids
from qtasks.broker.api.auth import Principal, TokenScope
from qtasks.broker.broker import Broker
from qtasks.broker.core.values import AccountCredentials
from qtasks.broker.events import MessageEvent
from qtasks.broker.server import event_loop
from qtasks.broker.server.api_server import ApiServer
from qtasks.broker.server.connection_watch import API_LIMITS, ConnectionLimits
from qtasks.broker.server.listen import listen
from qtasks.broker.settings import BrokerSettings
from qtasks.broker.store.verbs import accounts
from qtasks.protocol.messages import State
from qtasks.randomness import SystemRandom

T = TypeVar("T")
PATIENCE_S = 10.0
"""How long a test waits for an event before it fails."""


class RunningBroker:
    """A broker with its API on a free loopback port, running in a separate thread."""

    def __init__(self, settings: BrokerSettings, limits: ConnectionLimits = API_LIMITS) -> None:
        self._limits = limits
        self._loop = event_loop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.broker = self.call(Broker.open(settings))
        self.events: list[MessageEvent] = []
        self._changed = threading.Condition()
        self.broker.watchers.add(self._keep)
        self._server = self.call(self._start(listener))

    async def _start(self, listener: Any) -> ApiServer:
        server = ApiServer(self.broker, [listener], limits=self._limits)
        await server.start()
        self.broker.start()
        return server

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def new_user(self, scope: TokenScope = TokenScope.PUBLISH) -> AccountCredentials:
        """A user with a new account: tests that share a broker do not see each other's messages."""
        chance = SystemRandom()
        keys = ids.signing_keys(chance)
        token = ids.token_secret(chance)
        user = AccountCredentials(f"user-{len(self.broker.accounts)}", token, keys)
        account = self.call(self.broker.store.write(accounts.ensure_account, user, keys))
        self.broker.accounts[user.name] = account
        self.broker.tokens.add(token, Principal(account, scope))
        return user

    def _keep(self, event: MessageEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, state: State, message_id: str) -> MessageEvent:
        """Wait for the event that the message has entered `state`, which follows its commit."""

        def matching() -> MessageEvent | None:
            return next((e for e in self.events if e.state is state and e.message.id == message_id), None)

        with self._changed:
            event = self._changed.wait_for(matching, PATIENCE_S)
            steps = [str(e.state) for e in self.events if e.message.id == message_id]
            assert event is not None, f"{message_id} is not {state} after {PATIENCE_S:g} s, but went through {steps}"
            return event

    def stop(self) -> None:
        self.call(self._server.stop())
        self.call(self.broker.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    lines: tuple[tuple[str, str], ...] = ()
    """All header lines in order; `headers` has only the last one of each name."""


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Endpoint:
    """An HTTP server that answers with `answer(request)`; `received` lists the requests."""

    answer: Callable[[Received], Answer] = lambda received: (200, {}, b"")
    received: list[Received] = field(default_factory=list)

    def __post_init__(self) -> None:
        endpoint = self
        self._arrived = threading.Condition()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                lines = tuple(self.headers.items())
                received = Received(self.command, self.path, dict(lines), body, lines)
                status, headers, content = endpoint.answer(received)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                with endpoint._arrived:
                    endpoint.received.append(received)
                    endpoint._arrived.notify_all()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, format: str, *args: object) -> None: ...

        class Server(ThreadingHTTPServer):
            request_queue_size = 256  # as many connections at once as a broker opens
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def wait_for(self, count: int) -> list[Received]:
        """Wait for the first `count` requests."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.received) >= count, PATIENCE_S), (
                f"{len(self.received)} of {count} requests arrived within {PATIENCE_S:g} s"
            )
            return self.received[:count]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
