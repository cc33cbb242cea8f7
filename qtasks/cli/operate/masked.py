"""Bodies and headers as the commands show them: the values of secret names are masked."""

from __future__ import annotations

import json
from typing import Any, Final

from qtasks.masking import MASK, is_secret_name, mask_pairs
from qtasks.tasks.admin.summaries import call_in

_BODIES: Final = frozenset({"body", "responseBody"})


def masked(value: Any) -> Any:
    """JSON data with the values of secret names masked, also inside bodies that are JSON themselves."""
    if isinstance(value, dict):
        return {name: _masked_member(name, member) for name, member in value.items()}
    if isinstance(value, list):
        return [masked(member) for member in value]
    return value


def _masked_member(name: str, value: Any) -> Any:
    if is_secret_name(name):
        return MASK
    return masked_text(value) if name in _BODIES and isinstance(value, str) else masked(value)


def masked_text(text: str) -> str:
    """A body with the values of secret names masked."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return mask_pairs(text)
    changed = masked(document)
    return text if changed == document else json.dumps(changed, ensure_ascii=False)


def arguments(body: str) -> str | None:
    """The arguments in the body of a task's message, as Python writes them, masked; None for any other body."""
    call = call_in(body.encode())
    if not call:
        return None
    positional, named = call.get("args"), call.get("kwargs")
    if "coded" in call:
        return f"encoded, {len(str(call['coded'])):,} characters"
    values = [repr(masked(value)) for value in (positional if isinstance(positional, list) else [])]
    values += [f"{name}={_masked_member(name, value)!r}" for name, value in (named or {}).items()]
    return ", ".join(values) or "none"
