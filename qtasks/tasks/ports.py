"""Interfaces that other code implements for the framework: embedded broker, ASGI application, lifespan."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from qtasks.protocol.messages import SigningKeys

if TYPE_CHECKING:
    import asyncio

    from qtasks.qstash.conversation.transport import AsyncTransport, SyncTransport

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Lifespan(Protocol):
    """What a router does around the life of the application that includes it."""

    def __call__(self, app: Any, /) -> AbstractAsyncContextManager[None]:
        """Start before the first request; stop after the last one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach an embedded broker that has started, and what its deliveries look like."""

    url: str
    token: str = field(repr=False)
    keys: SigningKeys
    base_url: str
    """The dispatcher, prefix included: deliveries are sent to ``{base_url}/{task name}`` and signed for that URL."""
    results: str
    """The URL of a result backend, such as ``sqlite:////var/lib/app/results.db``."""
    transport: SyncTransport
    async_transport: AsyncTransport | None = None
    """For calls from async code. None: they use `transport` in a thread. It is closed on an event loop of its own."""
    model_keys: bool = True
    """True if requests to language models need the provider's key; False if the broker answers them itself."""


class EmbeddedBroker(Protocol):
    """A broker inside this process, such as `qtasks.embedded.Embedded`."""

    def start(self, app: ASGIApp, loop: asyncio.AbstractEventLoop | None) -> Connection:
        """Start to deliver to `app`, and return how to publish. A broker that runs returns the same connection again.

        `loop` is the running event loop of the application whose lifespan starts the broker: from now on `app` must be
        called on it, also by a broker that was started without a loop before. The call is made on another thread, so it
        may wait for that loop. None: there is no application; `app` contains only the tasks and runs on an event loop
        of the broker's own, and its lifespan is not used.
        """
        ...

    def stop(self) -> None:
        """Finish the deliveries in progress or hand them back, then release everything.

        Idempotent. Never called on the thread of the event loop.
        """
        ...
