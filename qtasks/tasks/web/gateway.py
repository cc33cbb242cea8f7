"""An application as the deliveries inside the process reach it: as if a web server had received them.

The broker in the process signs for a base URL of its own, and no server stands between it and the application. So the
gateway does what that server, and the proxy in front of it, would do: a delivery arrives at the path where the
application serves tasks, with a host and a scheme that the application accepts, with the state of its lifespan, and not
before it has started. An answer that is not the dispatcher's is said to be that: it ends as the failure of a task that
never ran.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.routing import Host

from qtasks.counted_log import CountedLog
from qtasks.error_codes import ErrorCode
from qtasks.protocol.headers import DISPATCHER_HEADER
from qtasks.tasks.ports import ASGIApp, Lifespan, Receive, Scope, Send
from qtasks.tasks.run.decision import DispatchResponse
from qtasks.tasks.send.end_callback import END_TASK, intercepted
from qtasks.tasks.web.passage import is_usual, layer_name, layers_on_the_way

log = logging.getLogger("qtasks.app")

NO_DELIVERY_KEY: Final = "qtasks.no_delivery"
"""In the scope of a request that must not run a task: why."""
DELIVERY_KEY: Final = "qtasks.delivery"
"""In the scope of a delivery through a gateway: the `GatewayDelivery`, on which the dispatcher notes its arrival."""

OUTERMOST_KEY: Final = "qtasks.outermost"
"""In the scope of a lifespan: the application that the server calls, middleware around it included."""

_SIGNATURE: Final = b"upstash-signature"
_DISPATCHER: Final = DISPATCHER_HEADER.lower().encode()
_DISPATCHER_LINE: Final = (_DISPATCHER, b"true")
"""On every response, so that the broker can tell them from those of a proxy in front of a dead application."""
_OF_THE_BODY: Final = frozenset({b"content-type", b"content-length", b"content-encoding"})
_WILDCARD: Final = "qtasks"
"""What takes the place of the asterisk in a pattern such as ``*.example.com``, and of ``{name}``."""
_OF_A_HOST: Final = re.compile(r"\{[^}]*\}")
"""A part of a host of Starlette, ``{tenant}.example.com``: a word, or a number as in ``{number:int}``."""
_NUMBER: Final = (":int}", ":float}")


@dataclass(frozen=True, slots=True)
class Presentation:
    """The host and the scheme with which deliveries present themselves; None: those of their URL."""

    host: str | None = None
    scheme: str | None = None

    def applied(self, scope: Scope) -> Scope:
        """The scope with this host and scheme."""
        if self is _AS_IT_IS:
            return scope
        if self.host is not None:
            headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
            scope = {**scope, "headers": [(b"host", self.host.encode("latin-1")), *headers]}
            scope["server"] = (urlsplit(f"//{self.host}").hostname, urlsplit(f"//{self.host}").port or 80)
        if self.scheme is not None and self.scheme != scope["scheme"]:
            # As behind a proxy: what asks for https asks either the scheme or the proxy.
            headers = [(name, value) for name, value in scope["headers"] if name != b"x-forwarded-proto"]
            forwarded = (b"x-forwarded-proto", self.scheme.encode())
            scope = {**scope, "scheme": self.scheme, "headers": [*headers, forwarded]}
            scope["server"] = (scope["server"][0], 443)
        return scope


_AS_IT_IS: Final = Presentation()


class Gateway:
    """Passes deliveries on to `app`, which serves the tasks under `prefix`.

    Args:
        app: The application.
        prefix: Where it serves the tasks.
        reports: The dispatcher: it answers the reports of ends, which need no application, if `app` stops them.
        state: The state of the application's lifespan; None leaves the state in the scope as it is.
        base_url: The base URL that is configured for the dispatcher, if any: its host and scheme are tried, too.
        is_open: False: deliveries wait until `open` is called, because the application is starting.
    """

    def __init__(
        self,
        app: ASGIApp,
        prefix: str,
        *,
        reports: ASGIApp | None = None,
        state: Mapping[str, Any] | None = None,
        base_url: str | None = None,
        is_open: bool = True,
    ) -> None:
        self.app = app
        self._prefix = prefix
        self._reports = reports
        self._state = state
        self._base_url = base_url
        self._opened: asyncio.Event | None = None if is_open else asyncio.Event()
        self._is_closed = False
        self._presentation = _AS_IT_IS
        self._is_probed = False
        self._log = CountedLog(log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with the prefix of the application in its path."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._opened is not None:
            await self._opened.wait()
            if self._is_closed and self._opened is not None:  # the application has not started
                await answer(send, DispatchResponse.draining())
                return
        name = scope["path"].rsplit("/", 1)[-1]
        path = f"{self._prefix}/{name}"
        scope = {**scope, "path": path, "raw_path": path.encode()}
        if self._state is not None:
            scope["state"] = dict(self._state)
        await self._deliver(name, scope, receive, send)

    def open(self) -> None:
        """Let deliveries pass from now on. Belongs to the event loop of the application."""
        if self._opened is not None and not self._is_closed:
            self._opened.set()
            self._opened = None

    def close(self) -> None:
        """If `open` was not called, because the application has not started: the broker is to repeat what waits."""
        self._is_closed = True
        if self._opened is not None:
            self._opened.set()

    async def probe(self) -> None:
        """Ask once whether deliveries reach the dispatcher, when they may; the error is logged if they do not.

        Belongs to the event loop of the application.
        """
        if self._is_probed:
            return
        self._is_probed = True

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(_event: MutableMapping[str, Any]) -> None: ...

        await self({**_PROBE, "headers": list(_PROBE["headers"]), "state": {}}, receive, send)

    async def _deliver(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Deliver, and again where nothing but the host or the scheme was in the way: then no task has run."""
        delivery = GatewayDelivery(receive, send)
        scope[DELIVERY_KEY] = delivery
        tried = [self._presentation]
        while True:
            attempt = tried[-1].applied({**scope})  # a copy, because Starlette writes to it
            try:
                await self.app(attempt, delivery.receive, delivery.send)
            except Exception as error:
                if delivery.reached or delivery.is_answered:
                    raise
                delivery.error = error
            if delivery.is_answered:
                self._presentation = tried[-1]
                return
            better = None if delivery.reached else self._better(attempt, delivery, tried)
            if better is None:
                break
            tried.append(better)
            delivery.rewind()
        if delivery.reached:  # something changed the answer of a run, such as a limit of time
            await delivery.pass_on()
            return
        self._log_interception(scope["path"], delivery)
        if name == END_TASK and self._reports is not None:
            delivery.rewind()
            await self._reports({**scope, "path_params": {"task": name}}, delivery.receive, send)
        else:
            await delivery.pass_on_named()

    def _better(self, scope: Scope, delivery: GatewayDelivery, tried: list[Presentation]) -> Presentation | None:
        """A presentation that may pass where those of `tried` were refused; None if there is none."""
        last = tried[-1]
        others: list[Presentation] = []
        if (host := _accepted_host(self.app, scope)) is not None:
            others.append(replace(last, host=host))
        if delivery.location.startswith("https:") and scope["scheme"] == "http":
            others.append(replace(last, scheme="https"))
        if self._base_url is not None:
            url = urlsplit(self._base_url)
            others.append(Presentation(url.netloc, url.scheme))
        return next((each for each in others if each not in tried), None)

    def _log_interception(self, path: str, delivery: GatewayDelivery) -> None:
        self._log.write(
            logging.ERROR,
            delivery.kind,
            "%s %s. No task runs like that. Let signed deliveries pass at %s in what stands in front of the router: %s",
            ErrorCode.DELIVERY_INTERCEPTED,
            delivery.description,
            path,
            ", ".join(dict.fromkeys(layer_name(layer) for layer in layers_on_the_way(self.app) if not is_usual(layer)))
            or "no more",
            with_traceback=delivery.error or False,
        )


_PROBE: Final[Scope] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/probe",
    "raw_path": b"/probe",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"qtasks.internal"), (b"content-type", b"application/json"), (b"content-length", b"2")],
    "client": ("127.0.0.1", 0),
    "server": ("qtasks.internal", 80),
    NO_DELIVERY_KEY: "it only asks whether deliveries arrive",
}


class SocketGateway(Gateway):
    """An application behind a socket of this machine, for development and tests.

    Its broker knows it by the name of this machine. Deliveries get the host and the scheme that the application
    accepts; every other request passes as it came.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        is_delivery = scope["type"] == "http" and scope["path"].startswith(f"{self._prefix}/")
        if is_delivery and any(name == _SIGNATURE for name, _ in scope["headers"]):
            await self._deliver(scope["path"].rsplit("/", 1)[-1], scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Outermost:
    """An application as a server of ours serves it.

    Its lifespan learns of the middleware around it. `lifespan` is entered when the application has started, and left
    when it has ended: Starlette does not run the lifespan of a mounted application.
    """

    def __init__(self, app: ASGIApp, lifespan: Lifespan) -> None:
        self.app = app
        self._lifespan = lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        scope[OUTERMOST_KEY] = self.app
        entered = AsyncExitStack()

        async def send_around(event: MutableMapping[str, Any]) -> None:
            if event["type"] == "lifespan.startup.complete":
                await entered.enter_async_context(self._lifespan(self.app))
            await send(event)

        async def receive_around() -> MutableMapping[str, Any]:
            event = await receive()
            if event["type"] == "lifespan.shutdown":  # before what the tasks need has gone
                await entered.aclose()
            return event

        async with entered:
            await self.app(scope, receive_around, send_around)


async def answer(send: Send, response: DispatchResponse) -> None:
    """Send the answer of a dispatcher."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(response.body)).encode()),
        _DISPATCHER_LINE,
    ]
    headers.extend((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers)
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


class GatewayDelivery:
    """One delivery: its request can be received again; the dispatcher's answer is passed on, any other is kept."""

    __slots__ = ("_answer", "_place", "_receive", "_request", "_send", "error", "is_answered", "reached")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._request: list[MutableMapping[str, Any]] = []
        self._place = 0
        self._answer: list[MutableMapping[str, Any]] = []
        self.is_answered = False
        """The dispatcher has begun to answer."""
        self.reached = False
        """The dispatcher has been called, which says so itself."""
        self.error: Exception | None = None
        """What the application raised in front of the dispatcher."""

    async def receive(self) -> MutableMapping[str, Any]:
        """The next event of the request."""
        if self._place < len(self._request):
            event = self._request[self._place]
        else:
            event = await self._receive()
            self._request.append(event)
        self._place += 1
        return event

    def rewind(self) -> None:
        """Begin again."""
        self._place = 0
        self._answer.clear()
        self.error = None

    async def send(self, event: MutableMapping[str, Any]) -> None:
        """Take an event of the answer."""
        if not self.is_answered and not self._answer:
            self.is_answered = _DISPATCHER_LINE in event.get("headers", ())
        if self.is_answered:
            await self._send(event)
        else:
            self._answer.append(event)

    async def pass_on(self) -> None:
        """Send what was kept; without an answer, raise what the application has raised."""
        for event in self._answer:
            await self._send(event)
        if self.error is not None and not self._answer:
            raise self.error

    async def pass_on_named(self) -> None:
        """As `pass_on`, with a body that says that no dispatcher has answered, and never as a success."""
        if not self._answer:
            await self.pass_on()
            return
        start = self._answer[0]
        body = json.dumps({"error": self.description, "code": ErrorCode.DELIVERY_INTERCEPTED}).encode()
        headers = [line for line in start.get("headers", ()) if line[0].lower() not in _OF_THE_BODY]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        status = start["status"] if start["status"] >= 300 else 500
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    @property
    def kind(self) -> str:
        """The kind of log line."""
        status = self._answer[0]["status"] if self._answer else "without an answer"
        return f"deliveries that did not reach the dispatcher ({status})"

    @property
    def location(self) -> str:
        """Where a redirect leads; empty for any other answer."""
        lines = self._answer[0].get("headers", ()) if self._answer else ()
        return next((value.decode("latin-1") for name, value in lines if name.lower() == b"location"), "")

    @property
    def description(self) -> str:
        """What happened, in words."""
        if self.error is not None:
            seen = f"{type(self.error).__name__} in front of the dispatcher: {self.error}"
            return f"DeliveryFailed: the application raised {seen}"
        if not self._answer:
            return "DeliveryFailed: the application ended without an answer in front of the dispatcher"
        body = b"".join(event.get("body", b"") for event in self._answer[1:])
        text = f"redirected to {self.location}" if self.location else body.decode("utf-8", "replace")
        return intercepted(self._answer[0]["status"], text)


def _accepted_host(app: object, scope: Scope) -> str | None:
    """A host that every host check on the way to the tasks accepts; None if there is none, or they accept this one."""
    checks = [patterns for layer in layers_on_the_way(app) if (patterns := _host_patterns(layer))]
    present = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    if _passes(present.partition(":")[0], checks):
        return None
    candidates = (pattern.replace("*", _WILDCARD) for patterns in checks for pattern in patterns)
    return next((host for host in candidates if _passes(host, checks)), None)


def _host_patterns(layer: object) -> list[str]:
    """The hosts that a layer accepts, in the words of Starlette's middleware; empty for a layer that takes any."""
    if isinstance(layer, Host):
        return [_OF_A_HOST.sub(lambda part: "1" if part[0].endswith(_NUMBER) else _WILDCARD, layer.host)]
    allowed = getattr(layer, "allowed_hosts", None)
    if not isinstance(allowed, (list, tuple, set, frozenset)) or "*" in allowed:
        return []
    return [pattern.lower() for pattern in allowed if isinstance(pattern, str)]


def _passes(host: str, checks: Sequence[Sequence[str]]) -> bool:
    return all(any(_fits(host.lower(), pattern) for pattern in patterns) for patterns in checks)


def _fits(host: str, pattern: str) -> bool:
    return host == pattern or (pattern.startswith("*") and host.endswith(pattern[1:]))
