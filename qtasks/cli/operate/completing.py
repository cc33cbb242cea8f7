"""Names that a shell completes: asked from the service, and given up if it has not answered in a fifth of a second."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import click

from qtasks.tasks.admin.searches import dead_letters, messages

_PATIENCE_S: Final = 0.2
_MOST: Final = 50


def queue_names(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Names of queues."""
    return _beginning(incomplete, lambda service: [each["name"] for each in service.read("/v2/queues")])


def key_names(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Flow-control keys."""
    return _beginning(incomplete, lambda service: [each["flowControlKey"] for each in service.read("/v2/flowControl")])


def message_ids(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Ids of the newest messages."""
    return _beginning(
        incomplete,
        lambda service: [each.message_id for each in service.steps(messages(service.request("", _MOST))).messages],
    )


def dead_letter_ids(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Ids of dead letters."""
    return _beginning(
        incomplete,
        lambda service: [each.dlq_id for each in service.steps(dead_letters(service.request("", _MOST))).dead_letters],
    )


def task_names(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Names of the tasks of the running application."""
    from qtasks.cli.operate.running_tasks import names_of_tasks  # it takes longer to import than all else here

    return _beginning(incomplete, lambda service: names_of_tasks(service.settings) or [])


def _beginning(incomplete: str, ask: Callable[[Any], list[str]]) -> list[str]:
    """The names that begin with `incomplete`; none if the service does not answer in time, or refuses."""
    names: list[str] = []

    def work() -> None:
        from qtasks.cli.operate.service import connected

        try:
            with connected(timeout_s=_PATIENCE_S, retries=0) as service:
                names.extend(ask(service))
        except Exception:
            names.clear()

    # In a thread: looking for the service takes time as well. It does not keep the process alive.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return sorted(name for name in names if name.startswith(incomplete))
