"""The addresses of all pages of the console."""

from __future__ import annotations

NAMES = {"overview", "events", "schedules", "queues", "endpoints", "url-groups", "system", "tasks"}
"""The pages of the navigation."""
ADDRESSES = (*sorted(NAMES), "schedules/{schedule}")
"""All pages; a name in braces stands for the id of such a thing."""


def address_of(address: str, ids: dict[str, str]) -> str:
    return address.format_map(ids)
