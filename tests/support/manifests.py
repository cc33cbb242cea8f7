"""What a dispatcher says of its tasks, made by hand."""

from __future__ import annotations

from typing import Any, Final

DESCRIBED: Final[dict[str, Any]] = {
    "name": "work",
    "aliases": [],
    "kind": "task",
    "module": "tasks",
    "doc": "",
    "signature": "()",
    "parameters": [],
    "searchable": [],
    "headers": [],
    "queue": None,
    "envelope": "{}",
    "refusal": None,
    "schedules": [],
}
"""A task without anything of its own."""


def parameters(*names: str) -> list[dict[str, Any]]:
    """Parameters without a type."""
    return [{"name": name, "type": "any", "required": True, "byPosition": False} for name in names]
