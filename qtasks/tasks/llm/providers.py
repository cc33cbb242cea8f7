"""Who runs a language model, and where the key to it is: read when a call is made, never when a module is loaded."""

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
"""The destination that is a model of the service's own."""

Kind = Literal["openai", "anthropic", "upstash", "custom"]


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider of language models. Made by `openai`, `anthropic`, `upstash` and `custom`."""

    kind: Kind
    base_url: str | None = None
    """Without `/v1/...`; None: the provider's own."""
    token: str | None = field(default=None, repr=False)
    variable: str | None = None
    """The environment variable with the key where `token` does not say it."""

    @property
    def name(self) -> str:
        """As people know it."""
        return self._service("").name

    @property
    def url(self) -> str:
        """Where a completion is asked for."""
        return API_LLM if self.kind == "upstash" else self._service("").chat_url()

    def key(self, environ: Mapping[str, str]) -> str | None:
        """The key, if anybody said it."""
        return self.token or (environ.get(self.variable) if self.variable is not None else None) or None

    def headers(self, environ: Mapping[str, str], *, keyless: bool = False) -> Headers:
        """The header lines that carry the key. Raises ConfigurationError for one that is missing and not `keyless`."""
        key = self.key(environ)
        if key is None:
            if self.variable is None or keyless:
                return ()
            raise ConfigurationError(
                f"{self.kind}() has no key: {self.variable} is not set where the request is made",
                fix=f"set {self.variable}, or give {self.kind}(token=...)",
                code=ErrorCode.PROVIDER_KEY_MISSING,
            )
        return tuple(self._service(key).chat_headers().items())

    def without_key(self, text: str, environ: Mapping[str, str]) -> str:
        """`text` with the key in it made unreadable: some providers repeat it in their errors."""
        key = self.key(environ)
        return text if key is None else text.replace(key, "***")

    def _service(self, key: str) -> LlmProvider:
        # Imported here: it belongs to the client, which a process that only declares tasks has no use for.
        from qtasks.qstash.operations import providers

        if self.kind == "custom":
            return providers.custom(self.base_url or "", key)
        made = {"openai": providers.openai, "anthropic": providers.anthropic}.get(self.kind)
        service = providers.upstash() if made is None else made(key)
        return service if self.base_url is None else replace(service, base_url=self.base_url.rstrip("/"))


def openai(token: str | None = None) -> Provider:
    """OpenAI. Its key is `token` or, when a call is made, `OPENAI_API_KEY`."""
    return Provider("openai", token=token, variable="OPENAI_API_KEY")


def anthropic(token: str | None = None, *, base_url: str | None = None) -> Provider:
    """Anthropic. Its key is `token` or, when a call is made, `ANTHROPIC_API_KEY`.

    `base_url` names another server that speaks its Messages API.
    """
    return Provider("anthropic", base_url, token, "ANTHROPIC_API_KEY")


def upstash() -> Provider:
    """The QStash service itself, which needs no key but its own.

    With a broker of one's own that is the server named by `QTASKS_LLM_URL`; `qtasks dev` and the embedded home answer
    with a built-in echo where none is named.
    """
    return Provider("upstash")


def custom(base_url: str, token: str | None = None, *, variable: str | None = None) -> Provider:
    """Any OpenAI-compatible service, such as Ollama, vLLM or OpenRouter.

    `base_url` may end in `/v1` or `/v1/chat/completions`. Its key is `token` or, when a call is made, the environment
    variable named by `variable`; without both none is sent.
    """
    return Provider("custom", base_url, token, variable)
