"""Providers of language models. Their keys are read when a call is made, never on import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from qtasks.error_codes import ErrorCode
from qtasks.errors import ConfigurationError
from qtasks.protocol.messages import Headers

if TYPE_CHECKING:
    from qtasks.qstash.operations.providers import LlmProvider

API_LLM = "api/llm"
"""The destination of requests to the QStash service's own model."""

ProviderKind = Literal["openai", "anthropic", "upstash", "custom"]


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider of language models. `openai`, `anthropic`, `upstash` and `custom` return one."""

    kind: ProviderKind
    """The provider; it decides the form of requests."""
    base_url: str | None = None
    """Address of the server, without ``/v1/...``; None: the provider's own."""
    token: str | None = field(default=None, repr=False)
    """The API key; None: read it from `variable`."""
    variable: str | None = None
    """The environment variable with the API key; None: the provider needs no key."""

    @property
    def name(self) -> str:
        """The name for people, such as ``OpenAI``."""
        return self._service("").name

    @property
    def url(self) -> str:
        """The address to which requests are sent."""
        return API_LLM if self.kind == "upstash" else self._service("").chat_url()

    def key(self, environ: Mapping[str, str]) -> str | None:
        """The API key, or None if there is none."""
        return self.token or (environ.get(self.variable) if self.variable is not None else None) or None

    def headers(self, environ: Mapping[str, str], *, keyless: bool = False) -> Headers:
        """The authorization headers. Raises ConfigurationError for a missing key, unless `keyless`."""
        key = self.key(environ)
        if key is None:
            if self.variable is None or keyless:
                return ()
            raise ConfigurationError(
                f"{self.kind}() has no key: {self.variable} is not set in the process that sends the request",
                fix=f"set {self.variable}, or give {self.kind}(token=...)",
                code=ErrorCode.PROVIDER_KEY_MISSING,
            )
        return tuple(self._service(key).chat_headers().items())

    def without_key(self, text: str, environ: Mapping[str, str]) -> str:
        """`text` with the API key replaced by ``***``: some providers repeat the key in their errors."""
        key = self.key(environ)
        return text if key is None else text.replace(key, "***")

    def _service(self, key: str) -> LlmProvider:
        # Imported here: a process that only declares tasks does not need the client.
        from qtasks.qstash.operations import providers

        if self.kind == "custom":
            return providers.custom(self.base_url or "", key)
        factory = {"openai": providers.openai, "anthropic": providers.anthropic}.get(self.kind)
        service = providers.upstash() if factory is None else factory(key)
        return service if self.base_url is None else replace(service, base_url=self.base_url.rstrip("/"))


def openai(token: str | None = None) -> Provider:
    """OpenAI.

    `token` is the API key; by default the environment variable `OPENAI_API_KEY` is read when a call is made.
    """
    return Provider("openai", token=token, variable="OPENAI_API_KEY")


def anthropic(token: str | None = None, *, base_url: str | None = None) -> Provider:
    """Anthropic.

    `token` is the API key; by default the environment variable `ANTHROPIC_API_KEY` is read when a call is made.
    `base_url` is the address of another server with Anthropic's Messages API.
    """
    return Provider("anthropic", base_url, token, "ANTHROPIC_API_KEY")


def upstash() -> Provider:
    """The language model of the QStash service; it needs no key of its own.

    A broker of your own uses the server in `QTASKS_LLM_URL`. Without that variable, `qtasks dev` and the embedded
    broker answer with a built-in echo.
    """
    return Provider("upstash")


def custom(base_url: str, token: str | None = None, *, variable: str | None = None) -> Provider:
    """Any OpenAI-compatible service, such as Ollama, vLLM or OpenRouter.

    `base_url` may end in ``/v1`` or ``/v1/chat/completions``. `token` is the API key; without it, the environment
    variable `variable` is read when a call is made. Without both, no key is sent.
    """
    return Provider("custom", base_url, token, variable)
