"""The tasks and schedules in a manifest. It comes from the network: what has not the right form is left out. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from qtasks.protocol import strict_json


class DeclaredSchedule(NamedTuple):
    """A schedule that the code of an application declares."""

    id: str
    cron: str
    labels: frozenset[str]
    task: str


class DescribedTask(NamedTuple):
    """A task, as its application describes it."""

    name: str
    module: str
    doc: str
    signature: str
    parameters: tuple[str, ...]
    """The names of its parameters, in their order."""
    searchable: tuple[str, ...]
    """Those by whose values calls can be found."""
    refusal: str | None
    """Why a call cannot be made outside of the application."""
    schedules: tuple[DeclaredSchedule, ...]


class ManifestContent(NamedTuple):
    """What a manifest says."""

    package: str
    """The version of the package."""
    python: str
    """The version of Python; empty if it is unknown."""
    tasks: tuple[DescribedTask, ...]


def read(manifest: bytes) -> ManifestContent:
    """The content of a manifest that `Manifests` has accepted."""
    content: Any = strict_json.loads(manifest, big_integers=True)
    return ManifestContent(
        _text(content, "package"), _text(content, "python"), tuple(map(_task, _objects(content, "tasks")))
    )


def _task(described: dict[str, Any]) -> DescribedTask:
    name, refusal = _text(described, "name"), described.get("refusal")
    return DescribedTask(
        name,
        _text(described, "module"),
        _text(described, "doc"),
        _text(described, "signature"),
        tuple(_text(parameter, "name") for parameter in _objects(described, "parameters")),
        tuple(_texts(described.get("searchable"))),
        refusal if isinstance(refusal, str) else None,
        tuple(
            DeclaredSchedule(_text(each, "id"), _text(each, "cron"), frozenset(_texts(each.get("labels"))), name)
            for each in _objects(described, "schedules")
        ),
    )


def _text(members: dict[str, Any], name: str) -> str:
    value = members.get(name)
    return value if isinstance(value, str) else ""


def _texts(value: object) -> Iterator[str]:
    yield from (item for item in (value if isinstance(value, list) else ()) if isinstance(item, str))


def _objects(members: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    value = members.get(name)
    yield from (item for item in (value if isinstance(value, list) else ()) if isinstance(item, dict))
