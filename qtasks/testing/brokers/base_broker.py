"""Where the calls of a test go: a home for its tasks, in one of two kinds, and what both are made of."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import Final, Literal

from qtasks.broker import ids
from qtasks.broker.broker import Broker
from qtasks.broker.core.values import AccountCredentials, DeadLetterCriteria, LogCriteria
from qtasks.broker.llm import provider_fake
from qtasks.broker.ports import DeliveryRequest
from qtasks.broker.settings import BrokerSettings
from qtasks.broker.store.sqlite import MEMORY
from qtasks.clock import Clock
from qtasks.protocol import signing
from qtasks.protocol.messages import SigningKeys, State
from qtasks.randomness import Random
from qtasks.tasks.llm import callback_url
from qtasks.tasks.ports import ASGIApp, Connection
from qtasks.testing.app_under_test import Application
from qtasks.testing.brokers.shared_threads import Threads
from qtasks.testing.call_log import Ledger
from qtasks.testing.fakes.faults import Faults, Outside
from qtasks.testing.fakes.stepped_results import KeptResults
from qtasks.testing.sent_call import DeadCall, dead_call

Mode = Literal["manual", "capture", "inline", "full"]

TOKEN: Final = "token-of-the-test"  # noqa: S105 - opens nothing outside this process
ACCOUNT: Final = "test"
_PAGE: Final = 100


class Stage(ABC):
    """A broker of the test's own, and what it has to do with the application. Also a `Home`."""

    clock: Clock
    random: Random
    results: KeptResults
    broker: Broker
    keys: SigningKeys
    faults: Faults

    def __init__(self, application: Application) -> None:
        self.application = application
        self.outside = Outside(lambda: self.now_ms // 1000)
        self.threads = Threads.of_process()
        self.ledger: Ledger

    # -- as a home

    @abstractmethod
    def start(self, app: ASGIApp, loop: asyncio.AbstractEventLoop | None) -> Connection:
        """See `Home.start`."""

    @abstractmethod
    def stop(self) -> None:
        """See `Home.stop`: the application has ended, the test has not."""

    # -- as a stage

    @abstractmethod
    def run(self, *, span_ms: int = 0, most: int | None = None, awaited: bool = False) -> Future[list[str]]:
        """Let calls run: what is due now and `span_ms` from now on, or `most` of it; the messages, one an attempt.

        `awaited` says that the caller's event loop goes on meanwhile.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. Idempotent."""

    @property
    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self.clock.now_ms()

    def dead_calls(self) -> list[DeadCall]:
        """What is in the dead letter queue, oldest first; of calls alone."""
        return self.threads.broker.call(self._dead_calls())

    def cancelled(self) -> set[str]:
        """The messages that were called off."""
        return self.threads.broker.call(self._cancelled())

    def resigned(self, request: DeliveryRequest) -> str:
        """A new signature for a request, as the broker makes one for each attempt."""
        return signing.sign(
            self.keys.current,
            url=request.url,
            body=request.body,
            now_s=self.now_ms // 1000,
            jti=ids.jwt_id(self.random),
        )

    def kept(self, key: str) -> str | None:
        """The call that was too large for its header."""
        return None if (record := self.results.found(key)) is None else record.value

    async def _dead_calls(self) -> list[DeadCall]:
        account, found, cursor = self.broker.accounts[ACCOUNT], [], None
        while True:
            page = await self.broker.store.dead_letters(account, DeadLetterCriteria(), cursor=cursor, count=_PAGE)
            letters = [(letter, self.ledger.of_message(letter.message.id)) for letter in page.items]
            found += [dead_call(letter, call) for letter, call in letters if call is not None]
            if (cursor := page.cursor) is None:
                return found

    async def _cancelled(self) -> set[str]:
        account, found, cursor = self.broker.accounts[ACCOUNT], set[str](), None
        which = LogCriteria(states=(State.CANCELED,))
        while True:
            page = await self.broker.store.log(account, which, cursor=cursor, count=_PAGE)
            found.update(entry.message.id for entry in page.items)
            if (cursor := page.cursor) is None:
                return found


def settings() -> BrokerSettings:
    """Of a test's broker: one account, and language models that are answered for by `Outside`."""
    return BrokerSettings(path=MEMORY, credentials=(AccountCredentials(ACCOUNT, TOKEN),)).with_model(
        provider_fake.ORIGIN
    )


def call_id_of(request: DeliveryRequest) -> str:
    """The id of the call that a delivery makes or continues; empty for that of a schedule."""
    _, _, query = request.url.partition("?")
    return callback_url.read(query).call_id if query else str(json.loads(request.body).get("id", ""))
