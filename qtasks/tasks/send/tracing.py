"""OpenTelemetry's context, carried in the signed body from the call to the run.

Only if the program has imported OpenTelemetry itself: otherwise there is no trace to continue, and no cost. FastAPI
imports the OpenTelemetry API if it is installed, so a run without a trace, in a program without a tracer, gets no span.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

from qtasks.tasks.send.outgoing import Outgoing

if TYPE_CHECKING:
    from qtasks.tasks.context import TaskContext

LOOK_EVERY_S: Final = 1.0
"""Seconds between two looks for a tracer. Runs that begin before it is found, and carry no trace, get no span."""


def carry(message: Outgoing) -> Outgoing:
    """`message` with the current trace, if there is one."""
    if "opentelemetry.trace" not in sys.modules:
        return message
    from opentelemetry.propagate import inject

    carrier: dict[str, str] = {}
    inject(carrier)
    return message.carrying(carrier) if carrier else message


class TracerSearch:
    """Whether the program has set up a tracer. It may do so at any time, and never takes it away.

    As long as there is none, the answer needs the environment, so it is looked for once in `LOOK_EVERY_S`.
    """

    def __init__(self) -> None:
        self._is_found = False
        self._next_s = -math.inf

    def has_tracer(self) -> bool:
        """True if a tracer is set up."""
        if not self._is_found and (now_s := time.monotonic()) >= self._next_s:
            from opentelemetry import trace

            self._next_s = now_s + LOOK_EVERY_S
            self._is_found = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        return self._is_found


_SEARCH: Final = TracerSearch()
_NO_SPAN: Final[AbstractContextManager[object]] = nullcontext()


def continued(context: TaskContext) -> AbstractContextManager[object]:
    """A span around the run, as a part of the trace in which the call was made."""
    if "opentelemetry.trace" not in sys.modules or not (context.carried or _SEARCH.has_tracer()):
        return _NO_SPAN
    from opentelemetry import trace
    from opentelemetry.propagate import extract

    attributes: Mapping[str, str | int] = {
        "messaging.system": "qstash",
        "messaging.operation.type": "process",
        "messaging.destination.name": context.task,
        "messaging.message.id": context.message_id,
        "messaging.message.conversation_id": context.call_id,
        "qtasks.attempt": context.attempt,
    }
    return trace.get_tracer("qtasks").start_as_current_span(
        f"process {context.task}",
        context=extract(dict(context.carried)),
        kind=trace.SpanKind.CONSUMER,
        attributes=attributes,
    )
