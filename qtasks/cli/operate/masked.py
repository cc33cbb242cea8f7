"""Messages as commands show them: the values of secret names are masked.

An argument that was passed by position has the name of the task's parameter. A broker of ours learns it from the
application; of a call at another service only named arguments are masked.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from qtasks.cli.operate.service import ServiceConnection
from qtasks.errors import ApiError
from qtasks.masking import MASK, is_secret_name, mask_pairs, mask_values, masked, masked_member, masked_text, secrets_in
from qtasks.tasks.admin.summaries import call_in

Facts = Mapping[str, Any]
"""A message, a dead letter or an entry of the log, as the API has it."""

_TEXTS: Final = ("error", "lastError")
_ENCODED: Final = ("body", "responseBody")
"""Members that are base64 in an entry of the log."""


class MaskedMessages:
    """Masks messages. `parameters`: for the URL of a task, the names of its parameters in their order."""

    def __init__(self, parameters: Mapping[str, Sequence[str]]) -> None:
        self._parameters = parameters

    @classmethod
    def of(cls, service: ServiceConnection, messages: Sequence[Facts]) -> MaskedMessages:
        """Masks `messages`, which are at `service`. The applications are asked if one has arguments by position."""
        if not any(_by_position(call_in(_body(message).encode())) for message in messages):
            return cls({})
        try:
            view = service.console_if_any("tasks")
        except ApiError:  # an older broker
            view = None
        return cls(dict(_names(view["dispatchers"])) if view is not None else {})

    def arguments(self, url: str, body: str) -> str | None:
        """The arguments in the body of a task's message, as Python writes them; None for any other body."""
        call = call_in(body.encode())
        if not call:
            return None
        if "coded" in call:
            return f"encoded, {len(str(call['coded'])):,} characters"
        values = [repr(value) for value in self._positional(url, call)]
        values += [f"{name}={masked_member(name, value)!r}" for name, value in (call.get("kwargs") or {}).items()]
        return ", ".join(values) or "none"

    def text(self, message: Facts, text: str) -> str:
        """A text about a message, such as its error, without the values of its secret arguments."""
        return mask_pairs(mask_values(text, self._secrets(message)))

    def call(self, message: Facts, view: Facts | None) -> dict[str, Any] | None:
        """What the application knows of the call of a message; None if it is not asked."""
        if view is None:
            return None
        shown: dict[str, Any] = masked(dict(view))
        if (call := shown["call"]) is not None and call["error"] is not None:
            call["error"] = self.text(message, call["error"])
        return shown

    def document(self, message: Facts) -> dict[str, Any]:
        """A message as JSON."""
        document: dict[str, Any] = masked(dict(message))
        secrets = self._secrets(message)
        for member in _TEXTS:
            if isinstance(text := document.get(member), str):
                document[member] = mask_values(text, secrets)
        for member in _ENCODED:
            if isinstance(content := message.get(member), str):
                document[member] = self._masked_content(message, member, content, secrets)
        return document

    def _masked_content(self, message: Facts, member: str, content: str, secrets: Sequence[object]) -> str:
        plain = _decoded(content)
        before = content if plain is None else plain
        after = masked_text(before)
        if member == "responseBody":
            after = mask_values(after, secrets)
        elif (call := call_in(before.encode())) and self._positional(message["url"], call) != _by_position(call):
            shown = {**call, "args": self._positional(message["url"], call)}
            after = masked_text(json.dumps(shown, ensure_ascii=False))
        if after == before:
            return content
        return after if plain is None else base64.b64encode(after.encode()).decode()

    def _positional(self, url: str, call: Facts) -> list[Any]:
        names = self._parameters.get(url.partition("?")[0], ())
        return [
            MASK if place < len(names) and is_secret_name(names[place]) else masked(value)
            for place, value in enumerate(_by_position(call))
        ]

    def _secrets(self, message: Facts) -> list[object]:
        """The values of the secret arguments of a call."""
        call = call_in(_body(message).encode())
        names = self._parameters.get(str(message.get("url")).partition("?")[0], ())
        named = [{name: value} for name, value in zip(names, _by_position(call), strict=False)]
        return list(secrets_in([*named, call.get("kwargs")]))


def _names(dispatchers: Sequence[Facts]) -> Iterator[tuple[str, list[str]]]:
    """For the URL of each task in the manifests of `dispatchers`, the names of its parameters."""
    for dispatcher in dispatchers:
        for task in (dispatcher["manifest"] or {}).get("tasks", ()):
            for name in (task["name"], *task["aliases"]):
                yield f"{dispatcher['prefix']}{name}", [parameter["name"] for parameter in task["parameters"]]


def _by_position(call: Facts) -> list[Any]:
    args = call.get("args")
    return args if isinstance(args, list) else []


def _body(message: Facts) -> str:
    body = message.get("body")
    if not isinstance(body, str):
        return ""
    plain = _decoded(body)
    return body if plain is None else plain


def _decoded(content: str) -> str | None:
    """The text that `content` stands for if it is base64; None if it is a text itself."""
    try:
        return base64.b64decode(content, validate=True).decode()
    except ValueError:
        return None
