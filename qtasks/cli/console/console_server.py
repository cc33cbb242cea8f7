"""The server of `qtasks console`."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, error_response, json_response
from qtasks.broker.server import event_loop
from qtasks.broker.server.api_server import AsgiServer
from qtasks.broker.server.asgi import AsgiApi
from qtasks.broker.server.hosts import LOOPBACK_HOSTS
from qtasks.cli.listening import listen_at
from qtasks.cli.logs import log_to
from qtasks.cli.output import NonBlockingStream
from qtasks.cli.signals import stop_signals
from qtasks.console.passed_service import PassedService
from qtasks.console.site import ConsoleSite
from qtasks.protocol.loopback import is_loopback
from qtasks.qstash.conversation.service_transport import AsyncServiceTransport


@dataclass(frozen=True, slots=True)
class ConsoleOptions:
    """The options of `qtasks console`."""

    url: str
    token: str
    host: str
    port: int
    hosts: tuple[str, ...]
    read_only: bool


def run(options: ConsoleOptions) -> None:
    """Serve until a signal, and end the process."""
    out, errors = NonBlockingStream(sys.stdout), NonBlockingStream(sys.stderr)
    log_to(errors)
    try:
        sys.exit(event_loop.run(_serve(options, out)))
    finally:
        out.close()
        errors.close()


class _NoApi:
    """Answers everything that is not the console."""

    async def handle(self, request: ApiRequest) -> ApiResponse:
        """404."""
        return error_response(HttpError(404, f"this is only a console: there is no {request.path[:100]}"))


async def _serve(options: ConsoleOptions, out: NonBlockingStream) -> int:
    async with AsyncExitStack() as stack:
        listener = listen_at(options.host, options.port, "--port")
        stack.callback(listener.close)

        async def open_service() -> PassedService:
            return PassedService(options.url, options.token, AsyncServiceTransport())

        async def ready() -> ApiResponse:
            return json_response({"status": "ready"})

        site = ConsoleSite(open_service, read_only=options.read_only)
        stack.push_async_callback(site.close)
        hosts = frozenset(options.hosts) | (LOOPBACK_HOSTS if is_loopback(options.host) else frozenset())
        server = AsgiServer(
            AsgiApi(_NoApi(), ready=ready, console=site, hosts=hosts, host_option="--allow-host"),
            [listener],
            closing=site.end_streams,
            grace_s=1.0,
        )
        stop = stack.enter_context(stop_signals())
        await server.start()
        stack.push_async_callback(server.stop)
        shown = f"[{options.host}]" if ":" in options.host else options.host
        out.line(f"console at http://{shown}:{listener.getsockname()[1]}/  of {options.url}")
        await stop.once.wait()
    return 0
