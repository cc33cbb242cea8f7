"""OpenTelemetry's context, carried in the signed body from the call to the run.

Only if the program has imported OpenTelemetry itself: otherwise there is no trace to continue, and no cost. FastAPI
imports the OpenTelemetry API if it is installed, so a run without a trace, in a program without a tracer, gets no span.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from qtasks.tasks.send.outgoing import Outgoing

if TYPE_CHECKING:
    from qtasks.tasks.context import TaskContext


def carry(message: Outgoing) -> Outgoing:
    """`message` with the current trace, if there is one."""
    if "opentelemetry.trace" not in sys.modules:
        return message
    from opentelemetry.propagate import inject

    carrier: dict[str, str] = {}
    inject(carrier)
    return message.carrying(carrier) if carrier else message


def continued(context: TaskContext) -> AbstractContextManager[object]:
    """A span around the run, as a part of the trace in which the call was made."""
    if "opentelemetry.trace" not in sys.modules:
        return nullcontext()
    from opentelemetry import trace

    if not context.carried and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return nullcontext()
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
