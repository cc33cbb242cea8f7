"""What the views of the console share, and who looks at them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from qtasks.broker.api.api_context import ApiContext
from qtasks.broker.api.api_request import ApiResponse
from qtasks.broker.console.asked_calls import AskedCalls
from qtasks.broker.console.manifests import Manifests
from qtasks.broker.console.signed_questions import DispatcherQuestions
from qtasks.broker.core.operator_changes import UNKNOWN, Actor
from qtasks.broker.core.slot_offers import SlotOffer
from qtasks.broker.settings import BrokerSettings
from qtasks.broker.store.interface import Store
from qtasks.clock import Clock


class Role(StrEnum):
    """What a person at the console may see and do (docs/console.md)."""

    OPERATOR = "operator"
    VIEWER = "viewer"
    METADATA = "metadata"
    """Sees no payload: no body, header, argument, result or error text of an endpoint."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """The person whose request a view answers."""

    account: int
    role: Role
    actor: Actor = UNKNOWN
    """For the audit of what the person does."""

    @property
    def sees_payloads(self) -> bool:
        """True if bodies, headers and texts of endpoints may be shown."""
        return self.role is not Role.METADATA


@dataclass(frozen=True, slots=True)
class ConsoleContext:
    """The first argument of every view."""

    api: ApiContext
    settings: BrokerSettings
    accounts: Mapping[str, int]
    """The accounts of the settings, by name."""
    ready: Callable[[], Awaitable[ApiResponse]]
    """``GET /readyz``."""
    manifests: Manifests
    """What the applications say of their tasks."""
    calls: AskedCalls
    """What they say of single calls."""
    questions: DispatcherQuestions
    """What asks them."""
    last_offer: Callable[[str], SlotOffer | None]
    """What the latest answer of the dispatcher at a URL prefix states of bundles; None without one."""

    @classmethod
    def of(
        cls,
        api: ApiContext,
        settings: BrokerSettings,
        accounts: Mapping[str, int],
        ready: Callable[[], Awaitable[ApiResponse]],
        questions: DispatcherQuestions,
        last_offer: Callable[[str], SlotOffer | None],
    ) -> ConsoleContext:
        """The context of one console, whose answers of applications are its own."""
        return cls(api, settings, accounts, ready, Manifests(questions), AskedCalls(questions), questions, last_offer)

    @property
    def store(self) -> Store:
        """The store of the broker."""
        return self.api.store

    @property
    def clock(self) -> Clock:
        """The clock of the broker."""
        return self.api.clock
