"""The arguments of a call as the commands show them: the values of secret names are masked."""

from __future__ import annotations

from qtasks.masking import masked, masked_member
from qtasks.tasks.admin.summaries import call_in


def arguments(body: str) -> str | None:
    """The arguments in the body of a task's message, as Python writes them, masked; None for any other body."""
    call = call_in(body.encode())
    if not call:
        return None
    positional, named = call.get("args"), call.get("kwargs")
    if "coded" in call:
        return f"encoded, {len(str(call['coded'])):,} characters"
    values = [repr(masked(value)) for value in (positional if isinstance(positional, list) else [])]
    values += [f"{name}={masked_member(name, value)!r}" for name, value in (named or {}).items()]
    return ", ".join(values) or "none"
