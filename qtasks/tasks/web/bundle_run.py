"""The deliveries of one bundle: each runs as if it had come alone, and its outcome leaves as it ends.

Each delivery has an asyncio task, and thereby context variables, of its own; a slow one delays no other. Those that end
in the same turn of the event loop leave in one write. A client that disconnects stops no delivery, as it stops none
that came alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from typing import Any, Final

from qtasks.protocol import bundles
from qtasks.protocol.bundles import BundleItem, ItemOutcome
from qtasks.protocol.headers import DISPATCHER_HEADER
from qtasks.protocol.messages import Headers
from qtasks.protocol.signing import Claims
from qtasks.tasks.ports import Scope, Send
from qtasks.tasks.run.attempt import Delivery
from qtasks.tasks.run.decision import DispatchResponse
from qtasks.tasks.run.dispatcher import Dispatcher, item_claims, log
from qtasks.tasks.run.run import Run
from qtasks.tasks.web.delivery_headers import as_sent, of_item
from qtasks.tasks.web.dependency_routes import DependencyRoutes

_HEAD: Final = (
    (b"content-type", bundles.CONTENT_TYPE.encode()),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx passes the lines on as they come
    (DISPATCHER_HEADER.lower().encode(), b"true"),
)
_OF_AN_ANSWER: Final[Headers] = (("Content-Type", "application/json"), (DISPATCHER_HEADER, "true"))
_OF_THE_BUNDLE: Final = frozenset({b"content-type", b"content-length", b"transfer-encoding", b"expect"})
"""Headers of a bundle that say nothing about its deliveries; those of the broker (``Upstash-...``) do neither."""
_CRASH: Final = b"Internal Server Error"
"""The response of a server whose application has raised an exception."""


class BundleRun:
    """Runs the deliveries of a verified bundle, and sends the response.

    `scope` is that of the bundle's request, `claims` are those of its signature, and `routes` runs tasks that have
    dependencies.
    """

    def __init__(
        self,
        items: Sequence[BundleItem],
        claims: Claims,
        *,
        dispatcher: Dispatcher,
        scope: Scope,
        routes: DependencyRoutes,
    ) -> None:
        self._items = items
        self._claims = claims
        self._dispatcher = dispatcher
        self._scope = scope
        self._routes = routes
        self._loop = asyncio.get_running_loop()
        self._began_s = self._sent_s = self._loop.time()
        self._open: dict[int, asyncio.Task[DispatchResponse]] = {}
        """The deliveries that run, by their places."""
        self._ended: list[tuple[int, DispatchResponse | None]] = []
        """The deliveries whose lines are to be sent: their places and responses, None for a crash."""
        self._reports_running = True
        """True if a line is to be sent that says how many deliveries run."""
        self._waiting: asyncio.Future[None] | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self._has_started = False
        """True if the response has."""
        self._is_handed_back = False
        """True if the server ends before the deliveries do."""

    async def stream(self, send: Send) -> None:
        """Run the deliveries, and send the response; returns when all of them have ended."""
        try:
            self._begin()
            await self._send(send)
        except asyncio.CancelledError as error:
            self._is_handed_back = ends_with_the_server(error)
            await self._cancel(error)
            if not (self._is_handed_back and self._has_started):
                raise
            with contextlib.suppress(OSError):
                await self._send_lines(send)
        except OSError:  # the client has disconnected, and this server says so
            await self._all_ended()
        finally:
            if self._heartbeat is not None:
                self._heartbeat.cancel()

    def _begin(self) -> None:
        for place, item in enumerate(self._items):
            task, _, query = item.target.partition("?")
            headers = of_item(item.headers)
            delivery = Delivery(
                task=task,
                body=item.body,
                signature="",
                message_id=headers.message_id,
                retried=headers.retried,
                schedule_id=headers.schedule_id,
                query=query,
                call=headers.call,
            )
            refusal = headers.refusal(has_public_keys=self._dispatcher.has_public_keys)
            response = self._dispatcher.begin_item(delivery) if refusal is None else refusal
            if response is not None:
                self._ended.append((place, response))
                continue
            answer = self._dispatcher.answer_item(
                delivery, item_claims(self._claims, place), functools.partial(self._with_dependencies, item)
            )
            self._open[place] = running = self._loop.create_task(answer)
            running.add_done_callback(functools.partial(self._end, place, delivery))

    async def _with_dependencies(self, item: BundleItem, run: Run) -> Any:
        return await self._routes.call(self._dispatcher, run, item_scope(self._scope, item), item.body)

    def _end(self, place: int, delivery: Delivery, running: asyncio.Task[DispatchResponse]) -> None:
        """Note the outcome of a delivery. One that has cancelled itself has none, as if its connection were cut."""
        self._dispatcher.end_item(delivery)
        del self._open[place]
        if running.cancelled():
            if self._is_handed_back:
                self._ended.append((place, DispatchResponse.draining()))
        elif (error := running.exception()) is not None:
            log.error("a delivery of a bundle ended with an exception", exc_info=error, extra={"action": "crashed"})
            self._ended.append((place, None))
        else:
            self._ended.append((place, running.result()))
        self._wake()

    async def _send(self, send: Send) -> None:
        slots = (bundles.SLOTS_HEADER.lower().encode(), b"%d" % self._dispatcher.free_slots)
        await send({"type": "http.response.start", "status": 200, "headers": [*_HEAD, slots]})
        self._has_started = True
        self._beat()
        while await self._send_lines(send):
            if not (self._ended or self._reports_running):
                self._waiting = self._loop.create_future()
                await self._waiting

    async def _send_lines(self, send: Send) -> bool:
        """Send what has been noted; False if nothing follows."""
        self._sent_s = self._loop.time()
        lines, follows = self._lines(), bool(self._open)
        await send({"type": "http.response.body", "body": lines, "more_body": follows})
        return follows

    def _lines(self) -> bytes:
        """The lines of what has been noted."""
        lines = [bundles.running_line(len(self._open))] if self._reports_running else []
        after_ms = int((self._sent_s - self._began_s) * 1000)
        slots = (bundles.SLOTS_HEADER, str(self._dispatcher.free_slots))
        for place, response in self._ended:
            if response is None:
                outcome = ItemOutcome(place, 500, (("Content-Type", "text/plain"),), _CRASH, after_ms)
            else:
                headers = (*_OF_AN_ANSWER, *response.headers, slots)
                outcome = ItemOutcome(place, response.status, headers, response.body, after_ms)
            lines.append(bundles.outcome_line(outcome))
        self._ended, self._reports_running = [], False
        return b"".join(lines)

    def _beat(self) -> None:
        """Say how many deliveries run, whenever nothing was sent for some time."""
        silent_s = self._loop.time() - self._sent_s
        if silent_s >= bundles.HEARTBEAT_S and not self._ended:
            self._reports_running = True
            self._wake()
            silent_s = 0
        self._heartbeat = self._loop.call_later(max(0, bundles.HEARTBEAT_S - silent_s), self._beat)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _cancel(self, error: asyncio.CancelledError) -> None:
        for running in self._open.values():
            running.cancel(*error.args)
        await self._all_ended()

    async def _all_ended(self) -> None:
        while self._open:
            await asyncio.wait(list(self._open.values()))


def ends_with_the_server(cancellation: asyncio.CancelledError) -> bool:
    """True if the server cancels the request because it stops, as uvicorn says in the text of the cancellation.

    Any other code that cancels a request, such as a time limit in a middleware, would do so again at each delivery.
    """
    return any("shutdown" in str(argument) for argument in cancellation.args)


def item_scope(scope: Scope, item: BundleItem) -> Scope:
    """The scope that the request of a single delivery would have, in place of `scope`, which is that of its bundle."""
    target, _, query = item.target.partition("?")
    own = [(as_sent(name.lower()), as_sent(value)) for name, value in item.headers]
    names = {name for name, _ in own}
    shared = [line for line in scope["headers"] if line[0] not in names and not _is_of_the_bundle(line[0])]
    path = f"{scope['path'].rpartition('/')[0]}/{target}"
    return {
        **scope,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "path_params": {**scope["path_params"], "task": target},
        "headers": [*shared, (b"content-length", b"%d" % len(item.body)), *own],
        **({"state": dict(scope["state"])} if "state" in scope else {}),
    }


def _is_of_the_bundle(name: bytes) -> bool:
    return name in _OF_THE_BUNDLE or name.startswith(b"upstash-")
