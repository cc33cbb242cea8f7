"""Checks of the service: does it answer, may this token change something, do the clocks agree, what waits there."""

from __future__ import annotations

import http.client
import time
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

from qtasks.cli.operate.doctor.findings import CheckResult, Patient, fail, note, ok
from qtasks.cli.operate.service import now_ms
from qtasks.cli.printing import counted
from qtasks.errors import ApiError
from qtasks.protocol.headers import DISPATCHER_HEADER
from qtasks.protocol.loopback import is_loopback_url
from qtasks.qstash.conversation.operation import Operation

_SKEW_MS: Final = 30_000
_PAGE: Final = 100
_TIMEOUT_S: Final = 5.0


def answer(patient: Patient) -> CheckResult:
    """The service answers, and accepts the token."""
    began = time.monotonic()
    queues = patient.service.read("/v2/queues")
    took_ms = (time.monotonic() - began) * 1000
    return ok(f"answered in {took_ms:.0f} ms, and accepts the token; {counted(len(queues), 'queue')}")


def token(patient: Patient) -> CheckResult:
    """The token may change something."""
    try:
        patient.service.read("/v2/keys")
    except ApiError as error:
        if error.status != http.client.FORBIDDEN:
            raise
        return note(
            "the token may only read", cause="calls cannot be sent with it", fix="qtasks broker token create NAME"
        )
    return ok("may publish")


def clocks(patient: Patient) -> CheckResult:
    """The clock of this machine agrees with that of the service."""
    before = now_ms()
    date = patient.service.run(Operation("GET", "/v2/queues", lambda reply: reply.header("Date")))
    after = now_ms()
    if not date:
        return note("not compared: the service does not say its time")
    skew_ms = int(parsedate_to_datetime(date).timestamp() * 1000) + 500 - (before + after) // 2
    if abs(skew_ms) > _SKEW_MS:
        return fail(
            f"this machine and the service are {abs(skew_ms) / 1000:.0f} s apart",
            cause="signatures are valid for a few minutes only, and delays are counted by the clock of the service",
            fix="synchronise the clocks of both machines (NTP)",
        )
    return ok("agree")


def dead_letters(patient: Patient) -> CheckResult:
    """No dead letters wait."""
    page = patient.service.client.dlq.list(count=_PAGE)
    if not page.messages:
        return ok("none")
    count = f"{len(page.messages)}{' or more' if page.cursor else ''}"
    return note(f"{count} wait", fix="qtasks failures; qtasks dlq")


def paused(patient: Patient) -> CheckResult:
    """No queue, key or schedule is paused."""
    service = patient.service
    names = [f"queue {queue['name']}" for queue in service.read("/v2/queues") if queue.get("paused")]
    names += [f"key {key['flowControlKey']}" for key in service.read("/v2/flowControl") if key.get("isPaused")]
    names += [f"schedule {each['scheduleId']}" for each in service.read("/v2/schedules") if each.get("isPaused")]
    return note(f"paused: {', '.join(names[:5])}", cause="their messages wait") if names else ok("nothing")


def failed_schedules(patient: Patient) -> CheckResult:
    """The last run of every schedule was made."""
    broken = {each["scheduleId"]: each["error"] for each in patient.service.read("/v2/schedules") if each.get("error")}
    if not broken:
        return ok("no run was missed")
    name, error = next(iter(broken.items()))
    return note(f"{counted(len(broken), 'schedule')} with an error: {name}: {error}", fix="qtasks schedules list")


def dispatcher(patient: Patient) -> CheckResult | None:
    """The address of the tasks is that of a dispatcher, which refuses what is not signed."""
    url = patient.settings.base_url
    if url is None:
        return None
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", f"{parts.path}/_tasks", body=b"")
        response = connection.getresponse()
        response.read(65_536)
    except OSError as error:
        return note(
            f"{url} does not answer from here: {error}",
            cause="the application does not run, or only the service can reach it",
            fix="start it" if is_loopback_url(url) else "try it from the network of the service",
        )
    finally:
        connection.close()
    if 300 <= response.status < 400:
        return fail(
            f"{url} redirects to {response.headers.get('Location')}",
            cause="deliveries are signed for one address and follow no redirect",
            fix="set QTASKS_BASE_URL to the address behind the redirect",
        )
    if response.headers.get(DISPATCHER_HEADER) is None:
        return fail(
            f"{url} is not the address of tasks: it answered {response.status}",
            cause="the prefix is wrong, or something in front of the application answers",
            fix="set QTASKS_BASE_URL to the address of the tasks, prefix included",
        )
    return ok(f"refuses what is not signed ({response.status})")
