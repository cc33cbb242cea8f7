"""`qtasks version`: the version, and with `--verbose` what a report of a defect needs."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any, Final

import click

from qtasks.cli.changes import as_json_option
from qtasks.cli.printing import echo_facts, echo_json

_DISTRIBUTION: Final = "qstash-tasks"
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_DEVELOPMENT: Final = re.compile(r"extra == ['\"]dev['\"]")


@click.command("version")
@click.option("--verbose", "-v", is_flag=True, help="Also Python, the system, and the packages in use.")
@as_json_option
def command(verbose: bool, as_json: bool) -> None:
    """Print the version. With --verbose, what to paste into a report of a defect: no values of settings."""
    facts: dict[str, Any] = {"version": version(_DISTRIBUTION)}
    if verbose:
        facts |= {
            "python": f"{platform.python_version()} ({platform.python_implementation()})",
            "platform": platform.platform(),
            "encoding": getattr(sys.stdout, "encoding", None) or "unknown",
            "packages": _packages(),
            "variables": sorted(name for name in os.environ if name.startswith(("QSTASH_", "QTASKS_"))),
        }
    if as_json:
        echo_json(facts)
        return
    click.echo(f"qtasks {facts['version']}")
    if verbose:
        packages = [f"{name} {number or 'is not installed'}" for name, number in facts["packages"].items()]
        echo_facts([(label, facts[label]) for label in ("python", "platform", "encoding")])
        echo_facts([("packages" if at == 0 else "", text) for at, text in enumerate(packages)])
        echo_facts([("set", ", ".join(facts["variables"]) or "no variable QSTASH_* or QTASKS_*")])


def _packages() -> dict[str, str | None]:
    """The packages that this one and its extras use, with their versions; None: not installed."""
    used = [text for text in requires(_DISTRIBUTION) or [] if not _DEVELOPMENT.search(text)]
    names = sorted({match[0] for text in used if (match := _NAME.match(text)) and match[0] != _DISTRIBUTION})
    return {name: _installed(name) for name in names}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
