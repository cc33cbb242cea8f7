"""What the declaration of a type shows, at any depth: secrets, iterators that can be read once, and sets.

pydantic's schema of a type is searched, because it has every field of every kind of class.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Secret, SecretBytes, SecretStr, TypeAdapter

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError

_NO_SCHEMAS = frozenset(
    {"serialization", "metadata", "default", "default_factory", "function", "config", "cls", "ref", "definitions"}
)
Node = Mapping[str, Any]


@functools.cache
def _secret_serializers() -> frozenset[Any]:
    """The functions that write asterisks."""
    functions = (
        node for kind in (SecretStr, SecretBytes, Secret[str]) for _, node in _nodes(TypeAdapter(kind).core_schema)
    )
    return frozenset(function for node in functions if (function := _serializer(node)) is not None)


def check_declared(adapter: TypeAdapter[Any], *, reveals_secrets: bool = False) -> bool:
    """True if values of the type may contain sets.

    Raises DefinitionError for a secret, unless the codec encrypts, and for an iterator in a class.
    """
    has_sets = False
    for path, node in _nodes(adapter.core_schema):
        if not reveals_secrets and _serializer(node) in _secret_serializers():
            raise DefinitionError(
                f"{_secret_name(node)} cannot be an argument or a result: it would arrive as asterisks{_at(path)}",
                fix="@tasks.task(encrypt=True), or pass a reference to the secret and look it up in the task",
                code=ErrorCode.TYPE_NOT_SERIALIZABLE,
            )
        if node["type"] == "generator":
            raise DefinitionError(
                f"an Iterable in a class cannot be an argument or a result: it could be read only once{_at(path)}",
                fix="declare list[...] or Sequence[...] there",
                code=ErrorCode.TYPE_NOT_SERIALIZABLE,
            )
        has_sets = has_sets or node["type"] in ("set", "frozenset")
    return has_sets


def _at(path: str) -> str:
    return f" (at {path.removeprefix('.')})" if path else ""


def _serializer(node: Node) -> Any:
    return (node.get("serialization") or {}).get("function")


def _secret_name(node: Node) -> str:
    inner = (part.get("cls") for _, part in _nodes(node))
    return next((kind.__name__ for kind in inner if isinstance(kind, type)), "Secret")


def _nodes(schema: Any) -> Iterator[tuple[str, Node]]:
    """Each part of a schema that is written by pydantic's rules, with its path."""
    definitions = {part["ref"]: part for part in _definitions(schema)}
    seen: set[str] = set()
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        path, part = waiting.pop()
        if isinstance(part, (list, tuple)):
            waiting += [(path + _step(inner), inner) for inner in reversed(part)]
        elif isinstance(part, Mapping):
            if part.get("type") == "definition-ref":
                if (name := part["schema_ref"]) not in seen:
                    seen.add(name)
                    waiting.append((path, definitions.get(name)))
                continue
            if isinstance(part.get("type"), str):
                yield path, part
                if _is_written_otherwise(part):
                    continue
            waiting += [(path + _step_to(name, inner), inner) for name, inner in _inner(part)]


def _definitions(schema: Any) -> list[Node]:
    return list(schema.get("definitions", ())) if isinstance(schema, Mapping) else []


def _inner(part: Node) -> Iterator[tuple[str, Any]]:
    is_schema = isinstance(part.get("type"), str)  # and not a mapping of fields, which may have any name
    for name in reversed(list(part)):
        if not is_schema or name not in _NO_SCHEMAS:
            yield name, part[name]


def _step(part: Any) -> str:
    """A step into an entry of a list of fields, which have names of their own."""
    return f".{part['name']}" if isinstance(part, Mapping) and isinstance(part.get("name"), str) else ""


def _step_to(name: str, inner: Any) -> str:
    """A step into an entry of a mapping: of fields, or of the parts of a schema."""
    if name == "items_schema":
        return "[]"
    is_field = isinstance(inner, Mapping) and inner.get("type") in ("model-field", "typed-dict-field")
    return f".{name}" if is_field else ""


def _is_written_otherwise(part: Node) -> bool:
    """True for a part that the user's own function writes: it may reveal what is below, and its values are proved."""
    function = _serializer(part)
    return function is not None and not str(getattr(function, "__module__", "")).startswith(("pydantic.", "qtasks."))
