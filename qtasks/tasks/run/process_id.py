"""The owner of a lock: a name that identifies its process, so that other processes can see when it has died.

A lock expires some seconds after its owner has stopped renewing it. On the same machine other processes need not wait
for that: a process that has died runs nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Final

_NUMBERS: Final = itertools.count(1)


def new_owner() -> str:
    """A name for one run in this process: ``place/process id/start time/random text-number``."""
    return f"{_place()}/{_process(os.getpid())}-{next(_NUMBERS)}"


def is_gone(owner: str) -> bool:
    """True if the process of `owner` has certainly ended; False also if that cannot be seen from here."""
    place, _, rest = owner.partition("/")
    number, _, rest = rest.partition("/")
    if place != _place() or not number.isdecimal() or sys.platform == "win32":
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it lives, and belongs to another user
    return _started(int(number)) != rest.partition("/")[0]  # its id was given to another process


@functools.lru_cache(maxsize=1)
def _place() -> str:
    """Where process ids identify the same processes: this boot of this machine, and this container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # without /proc the name of the machine must suffice
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def _process(pid: int) -> str:
    """This process: its id and start time, and a random text for where nothing tells the start time."""
    return f"{pid}/{_started(pid)}/{secrets.token_hex(8)}"


def _started(pid: int) -> str:
    """When a process began, in ticks of the kernel; empty without /proc, and for a process that does not run."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    stat_fields = text.rpartition(")")[2].split()
    return "" if stat_fields[0] in "ZX" else stat_fields[19]
