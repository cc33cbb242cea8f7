"""A broker, assembled from its settings and ports: open, start, stop."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Final

from qtasks.broker import ids
from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiRequest, ApiResponse, json_response
from qtasks.broker.api.auth import Principal, Tokens, TokenScope
from qtasks.broker.api.routes import Api
from qtasks.broker.api.turns import Turns
from qtasks.broker.console.console import Console, is_console_path
from qtasks.broker.console.console_context import ConsoleContext, Viewer
from qtasks.broker.console.signed_questions import DispatcherQuestions
from qtasks.broker.core.operator_changes import CONFIGURED, DEVELOPER, Actor
from qtasks.broker.core.values import Recovery
from qtasks.broker.events import EventWatchers
from qtasks.broker.llm.language_model import LanguageModel
from qtasks.broker.loops.clock_watch import ClockWatch
from qtasks.broker.loops.deliverer import Deliverer
from qtasks.broker.loops.delivery_log import DeliveryLog
from qtasks.broker.loops.indexer import Indexer
from qtasks.broker.loops.key_ring import KeyRing
from qtasks.broker.loops.page_checker import PageChecker
from qtasks.broker.loops.pruner import Pruner
from qtasks.broker.loops.room_watcher import RoomWatcher
from qtasks.broker.loops.scheduler import Scheduler
from qtasks.broker.loops.scrubber import Scrubber
from qtasks.broker.ports import StreamingTransport, Transport
from qtasks.broker.settings import DEV_CREDENTIALS, BrokerSettings, DeliveryLimits
from qtasks.broker.store.interface import Store
from qtasks.broker.store.sqlite import SqliteStore
from qtasks.broker.store.verbs import accounts, retention
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.broker.transport.http_transport import HttpTransport
from qtasks.clock import Clock, SystemClock
from qtasks.errors import StoreError
from qtasks.protocol.targets import origin_of
from qtasks.randomness import Random, SystemRandom

log = logging.getLogger("qtasks.broker")

INTERRUPTED: Final = "stopped before all attempts had ended: the next start makes them again (%d)"
"""The warning of a stop that has interrupted attempts."""

READY_S: Final = 3.0
"""Seconds after which a store that has not answered is not ready; health checks wait a little longer."""


def _http(policy: DestinationPolicy, limits: DeliveryLimits) -> Transport:
    return HttpTransport(policy, per_host=limits.largest_host)


def _http_to_model(policy: DestinationPolicy, settings: BrokerSettings) -> Transport | None:
    """The transport for requests to the language model. Only it may use the address that the operator chose."""
    if settings.llm_url is None:
        return None
    return _http(replace(policy, allow=(*policy.allow, origin_of(settings.llm_url))), settings.limits)


class Broker:
    """A broker: its store, its API and its loops. `open` creates it, `start` starts delivery, `stop` ends it."""

    _inner_console: Console | None = None
    """What answers requests for the console that come from this process."""

    def __init__(
        self,
        settings: BrokerSettings,
        store: Store,
        recovery: Recovery,
        transport: Transport,
        policy: DestinationPolicy,
        random: Random,
        *,
        to_model: Transport | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.recovery = recovery
        clock = self.clock = store.clock
        self.watchers = EventWatchers(clock.offset_ms)
        self.tokens = Tokens(clock, lambda: store.read(accounts.tokens), self._note_token_use)
        self.accounts: dict[str, int] = {}
        self.keys = KeyRing(store)
        self.random = random
        self._llm = LanguageModel(
            settings.llm_url, transport, clock, has_echo=settings.has_echo, to_model=to_model or transport
        )
        self.deliverer = Deliverer(
            store,
            self._llm,
            clock,
            random,
            keys=self.keys,
            watchers=self.watchers,
            limits=settings.limits,
            streaming=transport if isinstance(transport, StreamingTransport) else None,
            delivery_log=DeliveryLog(clock.monotonic) if settings.log_deliveries else None,
        )
        self.scheduler = Scheduler(store, clock, random, watchers=self.watchers, wake_deliverer=self.deliverer.wake)
        self.context = ApiContext(
            store,
            clock,
            random,
            policy,
            self.keys,
            self.watchers,
            wake=self.deliverer.wake,
            wake_at=self.deliverer.wake_at,
            wake_scheduler=self.scheduler.wake,
            llm=self._llm,
            parallelism=settings.limits.in_flight,
            turns=Turns(clock),
            resolve_on_publish=settings.resolve_on_publish,
        )
        self.api = Api(self.context, self.tokens)
        self.questions = DispatcherQuestions(transport, self.keys, clock, random)
        self.pruner = Pruner(store, clock, settings.retention)
        self.room_watcher = RoomWatcher(store, clock)
        self.page_checker = PageChecker(store, clock)
        self.clock_watch = ClockWatch(store, wake=self.deliverer.wake, look_again=self.scheduler.look_again)
        self.scrubber = Scrubber(store, clock, wake_deliverer=self.deliverer.wake)
        self.indexer = Indexer(store, clock)
        self._loops: list[asyncio.Task[None]] = []
        self._probe: asyncio.Task[str | None] | None = None

    @classmethod
    async def open(
        cls,
        settings: BrokerSettings,
        *,
        transport: Transport | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        store: Store | None = None,
    ) -> Broker:
        """Open the store and create the broker. It delivers nothing before `start`.

        `transport`, `clock` and `random` replace the real ones in tests. `store` is an open, empty store to use instead
        of the one at `settings.path`; it has its own clock.
        """
        random = random or SystemRandom()
        policy = DestinationPolicy(settings.destinations, settings.allow, settings.own)
        recovery = Recovery(0, 0)
        if store is None:
            store, recovery = await SqliteStore.open(settings.path, clock or SystemClock())
        broker = cls(
            settings,
            store,
            recovery,
            transport or _http(policy, settings.limits),
            policy,
            random,
            to_model=transport or _http_to_model(policy, settings),
        )
        try:
            await broker._ensure_accounts()
        except BaseException:
            await store.close()  # another try would find it in use
            raise
        return broker

    async def _note_token_use(self, digest: bytes) -> None:
        await self.store.write_patiently(accounts.note_token_use, digest, now_ms=self.clock.now_ms())

    async def _ensure_accounts(self) -> None:
        """Create the accounts of the settings that the store does not have yet."""
        for credentials in self.settings.credentials:
            account = await self.store.write(accounts.ensure_account, credentials, ids.signing_keys(self.random))
            self.accounts[credentials.name] = account
            if credentials.token is not None:
                name = DEVELOPER if self.settings.credentials == DEV_CREDENTIALS else CONFIGURED
                principal = Principal(account, TokenScope.PUBLISH, actor=Actor(name))
                self.tokens.add(credentials.token, principal)
            stored_keys = await self.store.read(accounts.signing_keys, account)
            if credentials.keys is not None and credentials.keys != stored_keys:
                log.warning(
                    "the signing keys configured for %s differ from those in the store. The store's keys are used, "
                    "because keys are rotated there; read them with GET /v2/keys",
                    credentials.name,
                )

    def start(self) -> None:
        """Start the loops: deliver messages, fire schedules, remove old messages, check the store. Idempotent."""
        if not self._loops:
            self._loops = [
                asyncio.create_task(self.deliverer.run(), name="qtasks-deliver"),
                asyncio.create_task(self.scheduler.run(), name="qtasks-schedule"),
                asyncio.create_task(self.pruner.run(), name="qtasks-prune"),
                asyncio.create_task(self.room_watcher.run(), name="qtasks-room"),
                asyncio.create_task(self.page_checker.run(), name="qtasks-pages"),
                asyncio.create_task(self.clock_watch.run(), name="qtasks-clock"),
                asyncio.create_task(self.scrubber.run(), name="qtasks-scrub"),
            ]
            if self.settings.counts_log:
                self._loops.append(asyncio.create_task(self.indexer.run(), name="qtasks-index"))

    async def answer(self, request: ApiRequest) -> ApiResponse:
        """The response of the API or the console to a request that needs no server, because it is of this process."""
        if is_console_path(request.path.encode()):
            self._inner_console = self._inner_console or self.console()
            return await self._inner_console.handle(request)
        return await self.api.handle(request)

    def console(self, *, open_to: Viewer | None = None) -> Console:
        """A console over this broker; `open_to`: who everyone is that brings no token."""
        context = ConsoleContext.of(
            self.context, self.settings, self.accounts, self.ready, self.questions, self.deliverer.last_offer
        )
        return Console(context, self.api, self.tokens, open_to=open_to)

    async def ready(self) -> ApiResponse:
        """`GET /readyz`: 200 while the store accepts writes and the broker is not stopping, else 503.

        Answers within `READY_S`. Requests at the same time share one write.
        """
        if self.deliverer.draining:
            return json_response({"status": "stopping"}, 503)
        if self.store.failure is not None:
            return _not_ready(self.store.failure)
        if (probe := self._probe) is None or probe.done():
            probe = self._probe = asyncio.create_task(self._write_probe())
        await asyncio.wait({probe}, timeout=READY_S)
        if not probe.done():
            return _not_ready(f"the store has not answered for {READY_S:g} s")
        if (error := probe.result()) is not None:
            return _not_ready(error)
        if self.store.shortage is not None:
            return _not_ready(self.store.shortage)
        offset_ms = self.clock.offset_ms()
        differs = {"clockOffsetMs": offset_ms} if offset_ms else {}
        return json_response({"status": "ready", "storage": self.store.promise, **differs})

    async def _write_probe(self) -> str | None:
        """Write to the store; the reason if it refuses."""
        try:
            await self.store.write(retention.probe, now_ms=self.clock.now_ms())
        except StoreError as error:
            return error.message
        return None

    async def stop(self, drain_s: float | None = None) -> None:
        """Wait up to `drain_s` (default: as configured) for attempts in flight, then stop. Idempotent.

        The next start repeats the rest.
        """
        if self._inner_console is not None:
            self._inner_console.close()
        if not await self.deliverer.drain(self.settings.drain_s if drain_s is None else drain_s):
            log.warning(INTERRUPTED, self.deliverer.interrupted)
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops = []
        await self.clock_watch.note()
        await self._llm.close()
        await self.store.close()


def _not_ready(reason: str) -> ApiResponse:
    return json_response({"status": "not ready", "error": reason}, 503)
