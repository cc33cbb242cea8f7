"""The manifest of a dispatcher: its tasks and schedules, as it tells them to the broker (docs/protocol.md 5.17). Pure.

An extension of the protocol between this broker and the framework's dispatcher. The broker asks with a signed POST
without a body to the name `NAME` beside the tasks; the answer is one JSON object. Each prefix has its own, so that
several applications on one broker never replace each other's.
"""

from __future__ import annotations

from typing import Any, Final, NotRequired, TypedDict

NAME: Final = "_manifest"
"""The last path segment of the URL, where a delivery has the name of its task."""
VERSION: Final = 1
TIMEOUT_MS: Final = 5_000
"""Limit for the whole request, milliseconds."""


class Parameter(TypedDict):
    """One parameter of a task that its caller passes."""

    name: str
    type: str
    """The annotation as its author wrote it; ``any`` without one."""
    required: bool
    byPosition: bool
    """True if it must be passed by position."""
    schema: NotRequired[dict[str, Any]]
    """The JSON schema of its values; absent if its type has none."""
    default: NotRequired[Any]
    """Absent if it has none, or one that is not JSON, or one that is secret."""


class ManifestSchedule(TypedDict):
    """One schedule that the code declares."""

    id: str
    name: str
    cron: str
    labels: list[str]
    """Among them the fingerprint of the whole schedule: another one at the broker means that the two differ."""


class ManifestTask(TypedDict):
    """One task."""

    name: str
    aliases: list[str]
    kind: str
    """``task``, or ``llm``: the function makes a request to a language model."""
    module: str
    doc: str
    signature: str
    """Such as ``(a: int, b: int = 1) -> int``."""
    parameters: list[Parameter]
    searchable: list[str]
    """Parameters by whose values messages can be searched."""
    headers: list[list[str]]
    """The header lines of a publish of one call without an id."""
    queue: str | None
    envelope: str
    """The body of such a call, JSON, without arguments."""
    refusal: str | None
    """Why a call cannot be made outside of the application; None if it can."""
    schedules: list[ManifestSchedule]


class Manifest(TypedDict):
    """What a dispatcher answers."""

    v: int
    package: str
    """The version of the package that the dispatcher runs."""
    python: NotRequired[str]
    """Its version of Python."""
    tasks: list[ManifestTask]
