"""The plain JSON form of a value, finished: sets in an order of their own, and secrets revealed where they may be.

pydantic writes a set in the order of its hashes, which differs from process to process, and a secret as asterisks. The
value and its plain form are walked side by side; where their shapes differ, the plain form stays as it is.
"""

from __future__ import annotations

import dataclasses
import json
from collections import abc
from typing import Any

import pydantic_core
from pydantic import BaseModel, Secret, SecretBytes, SecretStr

from qtasks.tasks.encode.equality import difference

SECRETS = (SecretStr, SecretBytes, Secret)


def finished(value: Any, plain: Any, *, reveals_secrets: bool = False) -> Any:
    """`plain`, the JSON form of `value`, with its sets in order; with its secrets if `reveals_secrets`."""
    if isinstance(value, SECRETS):
        return _revealed(value) if reveals_secrets else plain
    if isinstance(plain, dict):
        parts = _parts(value, plain)
        return {
            name: finished(parts.get(name), inner, reveals_secrets=reveals_secrets) for name, inner in plain.items()
        }
    if not isinstance(plain, list) or not isinstance(value, abc.Collection) or len(value) != len(plain):
        if isinstance(value, BaseModel) and "root" in value.__dict__:
            return finished(value.__dict__["root"], plain, reveals_secrets=reveals_secrets)
        return plain
    items = [finished(part, inner, reveals_secrets=reveals_secrets) for part, inner in zip(value, plain, strict=True)]
    return sorted(items, key=_canonical) if isinstance(value, abc.Set) else items


def without_made(value: Any, plain: Any) -> Any:
    """`plain`, the JSON form of `value`, without what a ``default_factory`` made, such as the time or a random id."""
    if isinstance(plain, dict):
        parts, made = _parts(value, plain), _made(value)
        return {name: without_made(parts.get(name), plain[name]) for name in plain if name not in made}
    if not isinstance(plain, list) or isinstance(value, abc.Set) or not isinstance(value, abc.Collection):
        root = value.__dict__.get("root") if isinstance(value, BaseModel) else None
        return plain if root is None else without_made(root, plain)
    if len(value) != len(plain):
        return plain
    return [without_made(part, inner) for part, inner in zip(value, plain, strict=True)]


def _made(value: Any) -> set[str]:
    """The fields of a value that a ``default_factory`` made, as far as that can be seen."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {name for name, field in fields if field.default_factory and name not in value.model_fields_set}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return set()
    return {field.name for field in dataclasses.fields(value) if _is_made_anew(field.default_factory)}


def _is_made_anew(factory: Any) -> bool:
    """True if a factory makes another value each time."""
    return factory is not dataclasses.MISSING and difference(factory(), factory()) is not None


def _parts(value: Any, plain: dict[str, Any]) -> abc.Mapping[str, Any]:
    """The parts of a value by the names that they have in its plain form."""
    if isinstance(value, abc.Mapping):
        return dict(zip(plain, value.values(), strict=True)) if len(value) == len(plain) else {}
    if isinstance(value, BaseModel):
        own = {**value.__dict__, **(value.__pydantic_extra__ or {})}
        if type(value).__pydantic_root_model__:
            return _parts(own.get("root"), plain)
        return own
    if dataclasses.is_dataclass(value):
        return {name: getattr(value, name, None) for name in plain}
    return {}


def _revealed(secret: Any) -> Any:
    value = secret.get_secret_value()
    return value.decode() if isinstance(value, bytes) else pydantic_core.to_jsonable_python(value)


def _canonical(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True)
