"""The interface of an application's runtime. `tasks.runtime` implements it; no module below imports `tasks.runtime`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from qtasks.tasks.codec import WireForm
from qtasks.tasks.results.task_result import ResultAccess
from qtasks.tasks.send.outgoing import Outgoing
from qtasks.tasks.send.send_middleware import SendMiddleware
from qtasks.tasks.settings import Settings

if TYPE_CHECKING:
    from qtasks.tasks.encode.keyring import Keyring
    from qtasks.tasks.send.publisher import Publisher


class Runtime(ResultAccess, Protocol):
    """Opens each part of an application on first use: settings, client, results, pickles, encryption."""

    @property
    def keyring(self) -> Keyring:
        """Opens pickles and encryption."""
        ...

    @property
    def form(self) -> WireForm:
        """How arguments and results travel where a task does not say it."""
        ...

    @property
    def send_middleware(self) -> Sequence[SendMiddleware]:
        """The generators around each call that is sent; the first one is the outermost."""
        ...

    @property
    def model_keys(self) -> bool:
        """True if a request to a language model needs the provider's key."""
        ...

    def settings(self) -> Settings:
        """The settings of the application. Raises ConfigurationError for a malformed value."""
        ...

    def publisher(self) -> Publisher:
        """The connection to the broker. Raises ConfigurationError if no broker is configured."""
        ...

    async def apublisher(self) -> Publisher:
        """As `publisher`, without blocking the event loop."""
        ...

    def store_call(self, message: Outgoing) -> None:
        """Store a call that is too large for a header of its message, if it is. Raises ArgumentsError, ResultError."""
        ...
