"""The settings of a broker, one frozen object, and the public development credentials."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

from qtasks.broker.core.values import AccountCredentials, Retention
from qtasks.protocol import development

DEV_CREDENTIALS: Final = tuple(AccountCredentials(user.name, user.token, user.keys) for user in development.USERS)
"""The credentials that QStash publishes for development servers: four users. Use them on loopback only."""

LLM_VARIABLE: Final = "QTASKS_LLM_URL"
"""The environment variable that names the language model; see `BrokerSettings.with_model`."""

PER_HOST: Final = 128
"""The default limit for concurrent attempts to one ``host:port``."""
PER_DISPATCHER: Final = 256
"""The same for a dispatcher that states its free slots."""


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """Limits for concurrent attempts."""

    in_flight: int = 512
    """To all destinations together."""
    per_host: int | None = None
    """To one ``host:port``. None: `PER_HOST`, or up to `PER_DISPATCHER` where a dispatcher has so many free slots."""

    @property
    def plain_host(self) -> int:
        """To one ``host:port`` of which nothing is known."""
        return PER_HOST if self.per_host is None else self.per_host

    @property
    def largest_host(self) -> int:
        """To one ``host:port`` at most."""
        return PER_DISPATCHER if self.per_host is None else self.per_host


HIDDEN: Final = "(hidden)"
"""Stands for the value of a secret."""


class ConfiguredValue(NamedTuple):
    """A setting as people see it: its name, its value, its default, and where the value comes from."""

    name: str
    value: str
    default: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """All settings of a broker."""

    path: str
    """The database file, or ``:memory:``."""
    credentials: tuple[AccountCredentials, ...] = DEV_CREDENTIALS
    destinations: Literal["local", "public"] = "local"
    allow: tuple[str, ...] = ()
    """Origins, hosts or networks that the destination policy allows in addition; see `DestinationPolicy.allow`.

    The server at `llm_url` is not one of them: only the broker's own requests for completions reach it."""
    resolve_on_publish: bool = False
    """True: refuse a publish whose host name does not resolve, as the hosted service does."""
    own: frozenset[tuple[str, int]] = frozenset()
    """Addresses on which the broker itself listens, as (host, port). It delivers no message to them."""
    limits: DeliveryLimits = field(default_factory=DeliveryLimits)
    retention: Retention = field(default_factory=Retention)
    log_deliveries: bool = False
    """True: log failed attempts and dead letters. False where another part of the process shows them."""
    drain_s: float = 10.0
    """Seconds that a stop waits for attempts in flight."""
    counts_log: bool = True
    """False: no loop counts the log for the console, whose views then count what they need."""
    configuration: tuple[ConfiguredValue, ...] = ()
    """What the command was started with, which the console shows; empty where no command starts the broker."""
    llm_url: str | None = None
    """The OpenAI-compatible server behind ``api/llm`` and the chat endpoint; None for none."""
    llm_echo: bool | None = None
    """True if the built-in echo answers when `llm_url` is None. None: only with the public development credentials."""

    @property
    def has_echo(self) -> bool:
        """True if the built-in echo model answers."""
        return self.llm_url is None and (
            self.credentials == DEV_CREDENTIALS if self.llm_echo is None else self.llm_echo
        )

    def with_model(self, value: str | None) -> BrokerSettings:
        """These settings with the value of `QTASKS_LLM_URL`: a URL, ``echo`` for the built-in echo, or None."""
        if value == "echo":
            return replace(self, llm_url=None, llm_echo=True)
        return replace(self, llm_url=value) if value else self

    def listening_on(self, host: str, port: int) -> BrokerSettings:
        """These settings with (`host`, `port`) added to `own`, the addresses on which the broker listens."""
        return replace(self, own=self.own | {(host, port)})
