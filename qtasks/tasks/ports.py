"""The embedded home, as the framework sees it: an object that is handed in, started, and stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from qtasks.protocol.messages import SigningKeys

if TYPE_CHECKING:
    from qtasks.qstash.conversation.transport import AsyncTransport, SyncTransport

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach a started home, and what its deliveries look like."""

    url: str
    token: str = field(repr=False)
    keys: SigningKeys
    base_url: str
    """Of the dispatcher, prefix included: deliveries go to ``{base_url}/{task name}`` and are signed for it."""
    results: str
    """A results URL such as ``sqlite:////var/lib/app/results.db``."""
    transport: SyncTransport
    async_transport: AsyncTransport | None = None
    """None: calls from async code use `transport` in a thread."""
    model_keys: bool = True
    """Whether requests to language models need the provider's key: a home that answers them itself needs none."""


class Home(Protocol):
    """A broker inside this process."""

    def start(self, app: ASGIApp, loop: asyncio.AbstractEventLoop | None) -> Connection:
        """Start delivering to `app` and say how to publish. Started already: the same connection again.

        `loop` is the running loop of the application whose lifespan starts the home: `app` is to be called there, from
        now on also by a home that was started without one. The call comes from another thread, so it may wait for that
        loop. None: there is no application, `app` holds the tasks alone and runs on a loop of the home's own; its
        lifespan has nothing to do.
        """
        ...

    def stop(self) -> None:
        """Finish or hand back what is in flight, then let go of everything. Idempotent; never on the loop's thread."""
        ...
