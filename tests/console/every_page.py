"""The addresses of all pages of the console."""

from __future__ import annotations

NAMES = {
    "overview",
    "messages",
    "failures",
    "dead-letters",
    "events",
    "llm",
    "tasks",
    "schedules",
    "queues",
    "endpoints",
    "url-groups",
    "audit",
    "system",
}
"""The pages of the navigation."""
DETAILS = (
    "failures/{failure}",
    "messages/{delivered}",
    "messages/{failed}",
    "messages/{retrying}",
    "schedules/{schedule}",
    "tasks/{task}",
)
ADDRESSES = (*sorted(NAMES), *DETAILS)
"""All pages; a name in braces stands for the id of such a thing."""


def address_of(address: str, ids: dict[str, str]) -> str:
    return address.format_map(ids)
