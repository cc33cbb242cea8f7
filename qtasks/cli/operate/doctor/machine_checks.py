"""Checks of the machine: Python, packages, time zones, environment variables, secrets in files."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from qtasks.cli.operate.doctor.findings import CheckResult, Patient, fail, note, ok
from qtasks.errors import did_you_mean
from qtasks.protocol import development
from qtasks.tasks.settings import DEV_SWITCH, TEST_SWITCH, VARIABLES

DISTRIBUTION: Final = "qstash-tasks"
_REGIONS: Final = ("EU_CENTRAL_1", "US_EAST_1")
_QSTASH: Final = ("QSTASH_URL", "QSTASH_TOKEN", "QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY")
KNOWN_VARIABLES: Final = frozenset(
    {
        *VARIABLES.values(), DEV_SWITCH, TEST_SWITCH, "QSTASH_DEV_PORT", "QSTASH_REGION", "QTASKS_DB", "QTASKS_LLM_URL",
        *(f"{region}_{name}" for region in _REGIONS for name in _QSTASH),
    }
)  # fmt: skip
_OURS: Final = re.compile(
    r"(?:QSTASH_|QTASKS_|(?:EU_CENTRAL_1|US_EAST_1)_QSTASH_|Q[A-Z]*TASK[A-Z]*_|Q[A-Z]*STASH_)[A-Z_]+"
)
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*((?:[<>=!~]=?[^;,]+,?)*)")
_BROKER: Final = ("aiohttp", "apsw", "watchfiles")
_FASTER: Final = ("uvloop", "httptools", "orjson")
_SECRET_LINE: Final = re.compile(
    r"^\s*(?:export\s+)?(QSTASH_TOKEN|QSTASH_CURRENT_SIGNING_KEY|QSTASH_NEXT_SIGNING_KEY|QTASKS_SECRET_KEY)\s*=\s*['\"]?([^'\"\s]+)",
    re.MULTILINE,
)


def python(_: Patient) -> CheckResult:
    """The version of Python."""
    return ok(f"{platform.python_implementation()} {platform.python_version()} on {platform.system()}")


def package(_: Patient) -> CheckResult:
    """The version of this package; the index has an unrelated one of the name `qtasks`."""
    try:
        foreign = metadata.version("qtasks")
    except metadata.PackageNotFoundError:
        return ok(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
    return fail(
        f"the package qtasks {foreign} is installed, which is another project",
        cause="the distribution of this program is called qstash-tasks, and both have a module qtasks",
        fix=f"pip uninstall qtasks; pip install --force-reinstall {DISTRIBUTION}",
    )


def requirements(_: Patient) -> CheckResult:
    """The packages that this one needs, in the versions that it needs."""
    unmet = []
    for line in metadata.requires(DISTRIBUTION) or ():
        match = _REQUIREMENT.match(line)
        if match is None or "extra ==" in line:
            continue
        name, bounds = match[1], match[2]
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            unmet.append(f"{name} is missing")
            continue
        unmet += [
            f"{name} {installed}, needed {bound}" for bound in bounds.split(",") if not _is_within(installed, bound)
        ]
    if unmet:
        return fail(
            "; ".join(unmet),
            cause="another package has replaced it since the installation",
            fix=f"pip install --upgrade {DISTRIBUTION}",
        )
    return ok("all in the versions that are needed")


def _is_within(installed: str, bound: str) -> bool:
    match = re.fullmatch(r"\s*(>=|<|<=|>|==|!=|~=)\s*([0-9.]+).*", bound)
    if match is None:
        return True
    have, need = (
        tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3]) for text in (installed, match[2])
    )
    return {"<": have < need, "<=": have <= need, ">": have > need, "==": have == need, "!=": have != need}.get(
        match[1], have >= need
    )


def broker_extra(_: Patient) -> CheckResult:
    """The packages of the extra `broker`, which `qtasks dev` and `qtasks broker` need."""
    absent = [name for name in _BROKER if importlib.util.find_spec(name) is None]
    if absent:
        return note(
            f"not installed: {', '.join(absent)}",
            cause="`qtasks dev`, `qtasks broker` and the test fixture need them; sending and running tasks does not",
            fix=f'pip install "{DISTRIBUTION}[broker]"',
        )
    return ok("installed")


def speed_ups(_: Patient) -> CheckResult:
    """Packages that make servers faster."""
    absent = [name for name in _FASTER if importlib.util.find_spec(name) is None]
    if sys.platform == "win32":
        absent = [name for name in absent if name != "uvloop"]
    if absent:
        return note(f"not installed: {', '.join(absent)}", fix=f'pip install "{DISTRIBUTION}[broker]"')
    return ok(", ".join(_FASTER))


def time_zones(_: Patient) -> CheckResult:
    """The time-zone data, which schedules with a zone need."""
    try:
        ZoneInfo("Europe/Berlin")
    except ZoneInfoNotFoundError:
        return fail("no time-zone data", cause="this system has none, as many small images", fix="pip install tzdata")
    return ok("known")


def variables(patient: Patient) -> CheckResult:
    """Environment variables that are spelt almost like ours."""
    unknown = [
        name
        for name in patient.environment
        if _OURS.fullmatch(name) and name not in KNOWN_VARIABLES and not name.startswith("_")
    ]
    for name in sorted(unknown):
        if hint := did_you_mean(name, KNOWN_VARIABLES):
            return fail(
                f"{name} is not a variable of qtasks{hint}",
                cause="it is misspelt, so it has no effect",
                fix="rename it, or remove it",
            )
    if unknown:
        return note(f"unknown, without effect: {', '.join(sorted(unknown))}")
    return ok(f"{sum(name in KNOWN_VARIABLES for name in patient.environment)} set, all known")


def secrets_in_files(patient: Patient) -> CheckResult | None:
    """A `.env` with live secrets that the repository does not ignore."""
    file = patient.folder / ".env"
    if not file.is_file() or shutil.which("git") is None:
        return None
    live = _live_secrets(file)
    if not live or _git(patient.folder, "rev-parse", "--git-dir") != 0:
        return ok(".env has no live secrets, or is in no repository")
    if _git(patient.folder, "check-ignore", "-q", ".env") == 0:
        return ok(".env is ignored by git")
    return fail(
        f".env has {', '.join(live)}, and git does not ignore it",
        cause="the next commit could publish it",
        fix="add .env to .gitignore (`qtasks doctor --fix` does); rotate what was committed already",
        repair=lambda: _ignore(patient.folder),
    )


def readers_of_secrets(patient: Patient) -> CheckResult | None:
    """Only its owner can read a `.env` with live secrets."""
    file = patient.folder / ".env"
    if os.name == "nt" or not file.is_file() or not (live := _live_secrets(file)):
        return None
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        return note(
            f".env can be read by others (mode {mode:o})",
            cause=f"it has {', '.join(live)}",
            fix="chmod 600 .env (`qtasks doctor --fix` does)",
            repair=lambda: _close(file),
        )
    return ok(f"mode {mode:o}")


def _live_secrets(file: Path) -> list[str]:
    """The names of the secrets in a file of variables that are not the public ones of development."""
    return [
        name
        for name, value in _SECRET_LINE.findall(file.read_text(errors="replace"))
        if not development.is_public(value)
    ]


def _close(file: Path) -> str:
    file.chmod(0o600)
    return "only the owner can read .env now"


def _git(folder: Path, *arguments: str) -> int:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode  # noqa: S603


def _ignore(folder: Path) -> str:
    with (folder / ".gitignore").open("a", encoding="utf-8") as file:
        file.write("\n.env\n")
    return "added .env to .gitignore"
