"""The lines of the broker's log about the ends of attempts.

An attempt that failed, or was interrupted, is a warning; a dead letter is an error; a delivery is a line of the level
DEBUG. A destination that refuses everything would fill the disk with them: of each kind, the first lines of a minute
are written, and the others are counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from qtasks.broker.core.rules import Trigger
from qtasks.broker.core.values import Settled, Settlement
from qtasks.counted_log import CountedLog
from qtasks.protocol import durations, service_url
from qtasks.protocol.messages import Response, State

log = logging.getLogger("qtasks.delivery")

MAX_LINES: Final = 100
"""Lines of a kind that are written in a minute."""


class DeliveryLog:
    """Logs the ends of attempts. `monotonic` is the clock, in seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._counted = CountedLog(log, monotonic, lines=MAX_LINES)

    def note(self, settlement: Settlement, settled: Settled, *, now_ms: int, spent_ms: float) -> None:
        """Log the end of an attempt that was stored at `now_ms`; it has taken `spent_ms`."""
        if settled.state is State.DELIVERED:
            if log.isEnabledFor(logging.DEBUG):
                text = "%s to %s was delivered in %.0f ms"
                fields = _fields(settlement, "delivered")
                log.debug(text, settlement.claim.row.id, fields["url"], spent_ms, extra=fields)
            return
        error = settlement.evaluation.error or "failed"
        if settled.state is State.FAILED:
            text = "%s to %s is a dead letter after attempt %d of %d: %s"
            self._write(logging.ERROR, "dead letters", text, settlement, "dead_letter", error)
        elif settled.state is State.CANCELED:
            text = "%s to %s failed on attempt %d of %d and was cancelled meanwhile: %s"
            self._write(logging.WARNING, "cancelled messages", text, settlement, "cancelled", error)
        elif settlement.evaluation.trigger is Trigger.INTERRUPT:
            text = "%s to %s, attempt %d of %d: %s"
            self._write(logging.WARNING, "interrupted attempts", text, settlement, "interrupted", error)
        else:
            wait_ms = max(0, (settled.next_ms or now_ms) - now_ms)
            text = f"%s to %s failed on attempt %d of %d: %s; next in {durations.format(round(wait_ms, -3))}"
            self._write(logging.WARNING, "failed attempts", text, settlement, "retry", error, wait_ms=wait_ms)

    def _write(
        self,
        level: int,
        kind: str,
        text: str,
        settlement: Settlement,
        action: str,
        error: str,
        *,
        wait_ms: int | None = None,
    ) -> None:
        fields = {**_fields(settlement, action), "error": error}
        if wait_ms is not None:
            fields["wait_ms"] = wait_ms
        id_, url, attempt, attempts = (fields[name] for name in ("message_id", "url", "attempt", "attempts"))
        self._counted.write(level, kind, text, id_, url, attempt, attempts, error, extra=fields)


def _fields(settlement: Settlement, action: str) -> dict[str, Any]:
    """The fields of a record about an attempt. Those that do not apply are absent."""
    claim = settlement.claim
    row, url = claim.row, service_url.shown(claim.row.url)
    optional = {
        "task": None if claim.prefix is None else url.rpartition("/")[2],
        "call_id": row.call_id,
        "queue": row.queue,
        "flow_key": claim.flow_key,
        "status": settlement.outcome.status if isinstance(settlement.outcome, Response) else None,
    }
    return {
        "action": action,
        "message_id": row.id,
        "url": url,
        "attempt": row.retried + 1,
        "attempts": row.max_retries + 1,
        **{name: value for name, value in optional.items() if value is not None},
    }
