"""Facts about this machine, and memory and processor time of processes, from Linux's /proc."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

_PROC: Final = Path("/proc")
_BUSY_LOAD: Final = 0.5


class NoProcError(Exception):
    """The system has no /proc to read this from."""

    def __init__(self) -> None:
        super().__init__("memory and processor time are read from /proc, which does not exist on this system")


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory of one process."""

    resident_mb: float
    peak_mb: float
    """The highest value so far."""


def usage(pid: int) -> Usage:
    """Resident memory of a process, in units of 1,000,000 bytes. Raises NoProcError."""
    lines = _read(pid, "status").splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return Usage(kib["VmRSS"] * 1024 / 1e6, kib["VmHWM"] * 1024 / 1e6)


def shared_out_mb(pids: list[int]) -> float:
    """Memory of several processes together; shared pages are counted once (PSS). Raises NoProcError."""
    total = 0
    for pid in pids:
        try:
            lines = _read(pid, "smaps_rollup").splitlines()
        except ProcessLookupError:
            continue  # ended meanwhile
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6


def cpu_s(pid: int) -> float:
    """Processor time a process has used, seconds, in steps of a hundredth. Raises NoProcError."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_cpu_s() -> float:
    """Processor time of the processes that this one has started and seen end."""
    times = os.times()
    return times.children_user + times.children_system


def family(pid: int) -> list[int]:
    """A process and all its descendants, the process itself first. Raises NoProcError."""
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
            except ProcessLookupError:
                continue
    pids = [pid]
    for ancestor in pids:  # the list grows during the loop: children follow their parents
        pids += [child for child, parent in parents.items() if parent == ancestor]
    return pids


def facts(folder: Path) -> dict[str, str]:
    """What the figures depend on: processor, system, Python, disk of `folder`, and load of the machine."""
    load = os.getloadavg()[0]
    return {
        "processor": f"{os.cpu_count()} cores, {_processor()}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "disk": f"{_filesystem(folder)}, an fsync of 4 KiB takes {_fsync_us(folder):,.0f} µs (median)",
        "load": f"{load:.2f} before the start"
        + (": other programs are running, so do not trust the figures" if load > _BUSY_LOAD else ""),
    }


def _processor() -> str:
    try:
        lines = (_PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _filesystem(folder: Path) -> str:
    """The kind of file system `folder` is on: the longest mount point above it."""
    try:
        mounts = [line.split()[1:3] for line in (_PROC / "mounts").read_text().splitlines()]
    except OSError:
        return "unknown file system"
    place = folder.resolve()
    above = [(point, kind) for point, kind in mounts if place.is_relative_to(point)]
    return max(above, key=lambda mount: len(mount[0]))[1] if above else "unknown file system"


def _fsync_us(folder: Path, rounds: int = 100) -> float:
    """Median time of an fsync in microseconds: the lower limit of a commit."""
    page = os.urandom(4096)
    spans: list[float] = []
    with TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(rounds):
            file.write(page)
            began = time.perf_counter()
            os.fsync(file.fileno())
            spans.append(time.perf_counter() - began)
    return statistics.median(spans) * 1e6


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold spaces: state is 0, parent 1."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _read(pid: int, name: str) -> str:
    if sys.platform != "linux":
        raise NoProcError
    try:
        return (_PROC / str(pid) / name).read_text()
    except FileNotFoundError:
        raise ProcessLookupError(f"there is no process {pid}") from None
