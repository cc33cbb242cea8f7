"""Checks of the database of a broker on this machine."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Final

from qtasks.cli.operate.doctor.findings import CheckResult, Patient, fail, note, ok

_CANDIDATES: Final = ("qtasks.db", ".qtasks/dev.db")
_RESERVE: Final = 48 * 1024 * 1024
"""Free bytes below which a broker accepts no messages (docs/operations/disk.md)."""
_REMOTE: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "fuse.glusterfs", "afs"}
)


def _database(patient: Patient) -> Path | None:
    """The database here; None if there is none."""
    named = patient.db or patient.environment.get("QTASKS_DB")
    names = (named.removeprefix("sqlite:///"),) if named else _CANDIDATES
    return next((patient.folder / name for name in names if (patient.folder / name).is_file()), None)


def database(patient: Patient) -> CheckResult | None:
    """The database can be read, and has the schema of this version."""
    if (path := _database(patient)) is None:
        return None
    from qtasks.broker.store.connection import schema_version
    from qtasks.cli.broker.check import read_only

    with read_only(str(path)) as connection:
        version = connection.pragma("user_version")
        messages, unfinished = connection.execute("SELECT count(*), count(*) - count(finished_ms) FROM messages").get
    text = f"{path}: {messages:,} messages, {unfinished:,} not finished"
    if version > schema_version():
        return fail(f"{text}; schema {version}", cause="a newer version wrote it", fix="upgrade this package")
    if version < schema_version():
        return note(
            f"{text}; schema {version}, current is {schema_version()}",
            fix="the next start of a broker upgrades it, or qtasks store upgrade",
        )
    return ok(text)


def sqlite(patient: Patient) -> CheckResult | None:
    """The version of SQLite that the broker uses, and the journal of its database."""
    if (path := _database(patient)) is None:
        return None
    import apsw

    from qtasks.cli.broker.check import read_only

    with read_only(str(path)) as connection:
        mode = connection.pragma("journal_mode")
    if mode not in ("wal", "delete"):
        return fail(f"the journal is {mode}", cause="another program has changed it", fix="see `qtasks store check`")
    return ok(f"SQLite {apsw.sqlite_lib_version()}, journal {mode}")


def file_system(patient: Patient) -> CheckResult | None:
    """The database is on a disk of this machine."""
    mounts = Path("/proc/self/mounts")
    if (path := _database(patient)) is None or not mounts.exists():
        return None
    place = os.path.realpath(path)
    points = [line.split()[1:3] for line in mounts.read_text(errors="replace").splitlines()]
    around = [(point, kind) for point, kind in points if place.startswith(point.rstrip("/") + "/")]
    point, kind = max(around, key=lambda each: len(each[0]), default=("/", "unknown"))
    if kind in _REMOTE:
        return fail(
            f"{path} is on {kind} ({point})",
            cause="locks and syncs of a network share cannot be relied on: two brokers could write, or writes be lost",
            fix="put the database on a disk of this machine",
        )
    return ok(f"{kind} ({point})")


def disk(patient: Patient) -> CheckResult | None:
    """There is room for the database to grow."""
    if (path := _database(patient)) is None:
        return None
    usage = shutil.disk_usage(path.parent)
    text = f"{usage.free / 1e9:,.1f} GB free"
    if usage.free < _RESERVE:
        return fail(text, cause="a broker accepts no messages with less than 48 MiB", fix="make room")
    if usage.free < usage.total // 20:
        return note(f"{text}, less than 5 %", fix="make room, or shorten --retention and --max-size")
    return ok(text)


def permissions(patient: Patient) -> CheckResult | None:
    """Only its owner can read the database: it has the signing keys in it."""
    if (path := _database(patient)) is None or os.name == "nt":
        return None
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return fail(
            f"{path} can be read by others (mode {mode:o})",
            cause="it contains messages and signing keys",
            fix=f"chmod 600 {path} (`qtasks doctor --fix` does)",
            repair=lambda: _close(path),
        )
    return ok(f"mode {mode:o}")


def damage(patient: Patient) -> CheckResult | None:
    """The last broker did not end because of its storage, and no repair is left half done."""
    if (path := _database(patient)) is None:
        return None
    if Path(f"{path}.failed").exists():
        return fail(
            "the last broker ended because its storage had failed",
            cause="a page could not be read or written",
            fix=f"qtasks store --db {path} check; the next start checks all pages as well",
        )
    kept = sorted(path.parent.glob(f"{path.name}.damaged-*")) + sorted(path.parent.glob(f"{path.name}.before-*"))
    if kept:
        return note(f"kept from a repair or a restore: {kept[0].name}", fix="remove it once nothing in it is needed")
    return ok("no trace")


def _close(path: Path) -> str:
    for file in path.parent.glob(f"{path.name}*"):
        file.chmod(0o600)
    return f"only the owner can read {path.name} now"
