"""`qtasks doctor`: find what is wrong, and say what to do."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import click

from qtasks.cli.changes import as_json_option
from qtasks.cli.exit_codes import FAILED
from qtasks.cli.operate.doctor import (
    application_checks,
    machine_checks,
    service_checks,
    settings_checks,
    store_checks,
)
from qtasks.cli.operate.doctor.findings import Check, CheckResult, Level, Patient, fail, of_error
from qtasks.cli.operate.doctor.probe import probe
from qtasks.cli.option_types import app_argument
from qtasks.cli.printing import counted, echo_json, printable, talk, width
from qtasks.errors import QTasksError

_ANSWER: Final = "service answers"
CHECKS: Final[Mapping[str, Check]] = MappingProxyType(
    {
        "python": machine_checks.python,
        "package": machine_checks.package,
        "requirements": machine_checks.requirements,
        "broker extra": machine_checks.broker_extra,
        "speed-ups": machine_checks.speed_ups,
        "time zones": machine_checks.time_zones,
        "variables": machine_checks.variables,
        "secrets in .env": machine_checks.secrets_in_files,
        "readers of .env": machine_checks.readers_of_secrets,
        "application": application_checks.application,
        "tasks": application_checks.tasks,
        "schedules": application_checks.schedules,
        "clock changes": application_checks.clock_changes,
        "development file": settings_checks.development_file,
        "service": settings_checks.service,
        "address of tasks": settings_checks.base_url,
        "signing keys": settings_checks.signing_keys,
        "secret key": settings_checks.secret_key,
        "results": settings_checks.results,
        "database": store_checks.database,
        "sqlite": store_checks.sqlite,
        "file system": store_checks.file_system,
        "disk": store_checks.disk,
        "permissions": store_checks.permissions,
        "damage": store_checks.damage,
        _ANSWER: service_checks.answer,
        "token": service_checks.token,
        "clocks": service_checks.clocks,
        "keys of service": settings_checks.keys_of_the_service,
        "dispatcher": service_checks.dispatcher,
        "served tasks": application_checks.served_tasks,
        "schedule drift": application_checks.drift,
        "missed schedules": service_checks.failed_schedules,
        "paused": service_checks.paused,
        "dead letters": service_checks.dead_letters,
    }
)
"""Every check by its name, in the order of their output. Those behind `_ANSWER` need a service that answers."""
_WIDTH: Final = max(map(len, CHECKS))


@click.command("doctor")
@app_argument
@click.option(
    "--db", default=None, help="Database of a broker on this machine.  [default: QTASKS_DB, or the file here]"
)
@click.option("--probe", "with_probe", is_flag=True, help="Send one message on the whole way, and time each hop.")
@click.option("--fix", is_flag=True, help="Make good what can be made good safely.")
@as_json_option
def command(app: str | None, db: str | None, with_probe: bool, fix: bool, as_json: bool) -> None:
    """Check this machine, the application, its settings, the service and the database.

    One line a check: ok, note or fail, with cause and fix below what is not well. The exit code is 1 if a check fails.
    """
    patient = Patient(Path.cwd(), app, db)
    checks = {**CHECKS, **({"probe": probe} if with_probe else {})}
    findings: dict[str, CheckResult] = {}
    try:
        for name, finding in _examined(patient, checks):
            if fix and finding.repair is not None:
                talk(f"{name}: {finding.repair()}")
                finding = _finding(patient, checks[name]) or finding
            findings[name] = finding
            if not as_json:
                _echo(name, finding)
    finally:
        patient.close()
    failures = sum(finding.level is Level.FAIL for finding in findings.values())
    if as_json:
        echo_json({"ok": not failures, "checks": [_facts(name, finding) for name, finding in findings.items()]})
    else:
        notes = sum(finding.level is Level.NOTE for finding in findings.values())
        click.echo(f"{counted(len(findings), 'check')}: {counted(notes, 'note')}, {counted(failures, 'failure')}")
    if failures:
        sys.exit(FAILED)


def _examined(patient: Patient, checks: Mapping[str, Check]) -> Iterator[tuple[str, CheckResult]]:
    """Every check that applies, with what it found. Without a service those that need it are left out."""
    answers = patient.settings_or_none() is not None
    for number, (name, check) in enumerate(checks.items()):
        needs_service = number >= list(checks).index(_ANSWER)
        if (needs_service and not answers) or (finding := _finding(patient, check)) is None:
            continue
        if name == _ANSWER:
            answers = finding.level is Level.OK
        yield name, finding


def _finding(patient: Patient, check: Check) -> CheckResult | None:
    try:
        return check(patient)
    except QTasksError as error:
        return of_error(error)
    except Exception as error:
        return fail(
            f"{type(error).__name__}: {error}", cause="the check itself failed", fix="report it, with this line"
        )


def _echo(name: str, finding: CheckResult) -> None:
    _echo_wrapped(f"{finding.level:<4}  {name:<{_WIDTH}}  ", finding.text)
    for label, text in (("cause", finding.cause), ("fix", finding.fix)):
        if text is not None:
            _echo_wrapped(f"      {label:<{_WIDTH}}  ", text)


def _echo_wrapped(start: str, text: str) -> None:
    """Print a text behind `start`, in as many lines as it takes. Words longer than a line, such as URLs, stay whole."""
    click.echo(
        textwrap.fill(
            printable(text),
            width(),
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _facts(name: str, finding: CheckResult) -> dict[str, str | None]:
    return {
        "check": name,
        "level": finding.level.value,
        "text": finding.text,
        "cause": finding.cause,
        "fix": finding.fix,
    }
