"""`qtasks doctor --probe`: one message on the whole way, to a path of the dispatcher that runs nothing."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from qtasks.cli.operate.doctor.findings import CheckResult, Patient, fail, ok
from qtasks.protocol.dispatcher_questions import NAMES

if TYPE_CHECKING:
    from qtasks.qstash.message import MessageApi

_PATIENCE_S: Final = 20.0
_PAUSE_S: Final = 0.1
_ENDED: Final = frozenset({"DELIVERED", "FAILED", "CANCELED"})


def probe(patient: Patient) -> CheckResult:
    """A message is accepted, delivered and answered; how long each hop took."""
    base_url = patient.settings.sender()[2]
    api: MessageApi = patient.service.client.message
    began = time.monotonic()
    published: Any = api.publish(url=f"{base_url}/{NAMES}", body=b"", retries=0, label="doctor")
    accepted_ms = (time.monotonic() - began) * 1000
    entries: list[dict[str, Any]] = []
    while time.monotonic() - began < _PATIENCE_S:
        entries = patient.service.read("/v2/events", ("messageId", published.message_id))["events"]
        if entries and entries[0]["state"] in _ENDED:
            break
        threading.Event().wait(_PAUSE_S)
    times = {entry["state"]: entry["time"] for entry in entries}
    if "DELIVERED" not in times:
        error = next((entry["error"] for entry in entries if entry.get("error")), "it is still waiting")
        return fail(
            f"the probe {published.message_id} did not arrive: {error}",
            cause="the service accepted it, and could not deliver it to the application",
            fix=f"qtasks messages show {published.message_id}",
        )
    started = times.get("ACTIVE", times["CREATED"])
    return ok(
        f"accepted in {accepted_ms:.0f} ms, started after {started - times['CREATED']} ms,"
        f" answered in {times['DELIVERED'] - started} ms"
    )
