"""The log of a result backend that does not work: one line a minute, with a count, instead of one for each failure."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from qtasks.errors import ResultError

log = logging.getLogger("qtasks.results")

LOG_EVERY_S = 60.0
"""Shortest time between two lines about the same outage."""


class Outage:
    """The failures of one operation. It logs the first one, a sum at most once a minute, and that it works again.

    `operation` is what cannot be done, `loss` what each failure costs. May be used from any thread.
    """

    def __init__(self, operation: str, loss: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._operation = operation
        self._loss = loss
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._began_s: float | None = None
        self._logged_s = 0.0
        self._count = 0
        self._unlogged = 0

    def failed(self, error: Exception, count: int) -> None:
        """Note a failure, which cost `count` times the loss. An error that is no ResultError is logged with a trace."""
        now_s = self._monotonic()
        with self._lock:
            began_s = self._began_s = now_s if self._began_s is None else self._began_s
            self._count += count
            self._unlogged += count
            if began_s != now_s and now_s - self._logged_s < LOG_EVERY_S:
                return
            self._logged_s, unlogged, self._unlogged = now_s, self._unlogged, 0
        cause, trace = (error.message, None) if isinstance(error, ResultError) else (repr(error), error)
        log.error(
            "%s: %s; %s: %d",
            self._operation if began_s == now_s else f"{self._operation} for {now_s - began_s:.0f} s",
            " ".join(cause.split()),
            self._loss,
            unlogged,
            exc_info=trace,
            extra={"action": "results_failed"},
        )

    def worked(self) -> None:
        """Note a success."""
        if self._began_s is None:  # read without the lock: this is the usual case, and a later success will do
            return
        with self._lock:
            began_s, self._began_s = self._began_s, None
            count, self._count, self._unlogged = self._count, 0, 0
        if began_s is not None:
            fields = {"action": "results_restored"}
            spent_s = self._monotonic() - began_s
            log.warning("%s: over after %.0f s; %s: %d", self._operation, spent_s, self._loss, count, extra=fields)
