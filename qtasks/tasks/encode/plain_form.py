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
