"""What a broker is told: one frozen object, and the public development credentials."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal

from qtasks.broker.core.values import AccountCredentials, Retention
from qtasks.protocol import development

DEV_CREDENTIALS: Final = tuple(AccountCredentials(user.name, user.token, user.keys) for user in development.USERS)
"""The four public users of every QStash development server; for loopback only."""


LLM_VARIABLE: Final = "QTASKS_LLM_URL"
"""The environment variable that names the language model; see `BrokerSettings.with_model`."""


def origin_of(url: str) -> str:
    """``scheme://host[:port]`` of a URL."""
    return "/".join(url.split("/", 3)[:3])


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """Attempts in flight at most, in all and to one ``host:port``."""

    in_flight: int = 256
    per_host: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSettings:
    """Everything a broker is configured with."""

    path: str
    """The database file, or ``:memory:``."""
    credentials: tuple[AccountCredentials, ...] = DEV_CREDENTIALS
    destinations: Literal["local", "public"] = "local"
    allow: tuple[str, ...] = ()
    """Origins, hosts or networks that the destination policy lets through besides."""
    resolve_on_publish: bool = False
    """Refuse a publish whose host name does not resolve, as the hosted service does."""
    own: frozenset[tuple[str, int]] = frozenset()
    """Addresses the broker itself listens on, as (host, port): no message goes there."""
    limits: DeliveryLimits = field(default_factory=DeliveryLimits)
    retention: Retention = field(default_factory=Retention)
    drain_s: float = 10.0
    """How long a stop waits for attempts under way."""
    llm_url: str | None = None
    """The OpenAI-compatible server behind ``api/llm`` and the chat endpoint."""
    llm_echo: bool | None = None
    """Let an echo that says it is one answer where `llm_url` is None. None: only with the public development users."""

    @property
    def has_echo(self) -> bool:
        """Whether the built-in echo model answers."""
        return self.llm_url is None and (
            self.credentials == DEV_CREDENTIALS if self.llm_echo is None else self.llm_echo
        )

    @property
    def allowed(self) -> tuple[str, ...]:
        """What the destination policy lets through: the language model's server is the operator's own choice."""
        return self.allow if self.llm_url is None else (*self.allow, origin_of(self.llm_url))

    def with_model(self, given: str | None) -> BrokerSettings:
        """These settings with the value of `QTASKS_LLM_URL`: a URL, ``echo`` for the built-in echo, or nothing."""
        if given == "echo":
            return replace(self, llm_url=None, llm_echo=True)
        return replace(self, llm_url=given) if given else self

    def listening_on(self, host: str, port: int) -> BrokerSettings:
        """These settings, with the address the broker listens on kept out of its own destinations."""
        return replace(self, own=self.own | {(host, port)})
