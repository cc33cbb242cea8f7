"""The base of the two brokers of tests: virtual time and real time. Both are an embedded broker for the tasks."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Final, Literal

from qtasks.broker import ids
from qtasks.broker.broker import Broker
from qtasks.broker.core.values import AccountCredentials, DeadLetterCriteria, LogCriteria
from qtasks.broker.llm import provider_fake
from qtasks.broker.ports import DeliveryRequest
from qtasks.broker.settings import BrokerSettings
from qtasks.broker.store.connection import MEMORY
from qtasks.broker.store.verbs.reads import queries
from qtasks.clock import Clock
from qtasks.protocol import signing
from qtasks.protocol.messages import SigningKeys, State
from qtasks.randomness import Random
from qtasks.tasks.llm import callback_url
from qtasks.tasks.ports import ASGIApp, Connection
from qtasks.testing.app_under_test import AppUnderTest
from qtasks.testing.brokers.callers_loop import LoopRunner
from qtasks.testing.brokers.shared_threads import SharedThreads
from qtasks.testing.call_log import CallLog
from qtasks.testing.fakes.faults import FaultyTransport, OutsideServices
from qtasks.testing.fakes.stepped_results import EnvironmentResults
from qtasks.testing.sent_call import DeadCall, dead_call

Mode = Literal["manual", "capture", "inline", "full"]

TOKEN: Final = "token-of-the-test"  # noqa: S105 - valid in this process only
ACCOUNT: Final = "test"
_PAGE: Final = 100


class EnvironmentBroker(ABC):
    """A broker that belongs to one environment, connected to the application under test. Also an `EmbeddedBroker`."""

    runner: LoopRunner
    """Runs what belongs to the broker."""
    clock: Clock
    random: Random
    results: EnvironmentResults
    broker: Broker
    keys: SigningKeys
    faults: FaultyTransport

    def __init__(self, application: AppUnderTest) -> None:
        self.application = application
        self.outside = OutsideServices(lambda: self.now_ms // 1000)
        self.threads = SharedThreads.of_process()
        self.call_log: CallLog

    # -- as an embedded broker

    @abstractmethod
    def start(self, app: ASGIApp, loop: asyncio.AbstractEventLoop | None) -> Connection:
        """See `EmbeddedBroker.start`."""

    @abstractmethod
    def stop(self) -> None:
        """See `EmbeddedBroker.stop`: the application has ended, the test has not."""

    # -- for the environment

    @abstractmethod
    def serve(self) -> None:
        """Start what runs by itself. The application is connected."""

    @abstractmethod
    def run(
        self, *, span_ms: int = 0, most: int | None = None, awaited: bool = False
    ) -> Coroutine[Any, Any, list[str]]:
        """Work for `runner`: run the calls that are due now and within `span_ms` milliseconds, at most `most` attempts.

        The result has one message id per attempt. `awaited` is true if the caller's event loop runs meanwhile.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything. Idempotent."""

    @property
    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self.clock.now_ms()

    def dead_calls(self) -> list[DeadCall]:
        """The calls in the dead-letter queue, oldest first."""
        return self.runner.call(self._dead_calls())

    def cancelled(self) -> set[str]:
        """Ids of the cancelled messages."""
        return self.runner.call(self._cancelled())

    def new_signature(self, request: DeliveryRequest) -> str:
        """A fresh signature for a request; the broker makes one for each attempt."""
        return signing.sign(
            self.keys.current,
            url=request.url,
            body=request.body,
            now_s=self.now_ms // 1000,
            jti=ids.jwt_id(self.random),
        )

    def kept(self, key: str) -> str | None:
        """The text of a call that was too large for its header; None for an unknown key."""
        return None if (record := self.results.found(key)) is None else record.value

    async def _dead_calls(self) -> list[DeadCall]:
        account, dead_calls, cursor = self.broker.accounts[ACCOUNT], [], None
        while True:
            page = await self.broker.store.read(
                queries.dead_letters, account, DeadLetterCriteria(), cursor=cursor, count=_PAGE
            )
            letters = [(letter, self.call_log.of_message(letter.message.id)) for letter in page.items]
            dead_calls += [dead_call(letter, call) for letter, call in letters if call is not None]
            if (cursor := page.cursor) is None:
                return dead_calls

    async def _cancelled(self) -> set[str]:
        account, message_ids, cursor = self.broker.accounts[ACCOUNT], set[str](), None
        which = LogCriteria(states=(State.CANCELED,))
        while True:
            page = await self.broker.store.read(queries.log, account, which, cursor=cursor, count=_PAGE)
            message_ids.update(entry.message.id for entry in page.items)
            if (cursor := page.cursor) is None:
                return message_ids


def settings() -> BrokerSettings:
    """Settings of a test's broker: one account; `OutsideServices` answers requests to language models."""
    credentials = (AccountCredentials(ACCOUNT, TOKEN),)
    return BrokerSettings(path=MEMORY, credentials=credentials, counts_log=False).with_model(provider_fake.ORIGIN)


def call_id_of(request: DeliveryRequest) -> str:
    """The call id of a delivery; empty for a run of a schedule."""
    _, _, query = request.url.partition("?")
    return callback_url.read(query).call_id if query else str(json.loads(request.body).get("id", ""))
