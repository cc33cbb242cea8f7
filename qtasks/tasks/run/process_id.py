"""Who holds a run: a name that tells which process, so that others can see when it has died.

A hold ends by itself some seconds after its holder has fallen silent. On the same machine nobody needs to wait for
that: a process that is gone runs nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import secrets
import socket
import sys
from pathlib import Path


def new_owner() -> str:
    """A name for one run of this process: ``place/process/start/chance``."""
    return f"{_place()}/{_process(os.getpid())}/{secrets.token_hex(8)}"


def is_gone(owner: str) -> bool:
    """Whether the process of `owner` has certainly ended; False where that cannot be seen from here."""
    place, _, rest = owner.partition("/")
    number, _, rest = rest.partition("/")
    if place != _place() or not number.isdecimal() or sys.platform == "win32":
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it lives, and belongs to somebody else
    return _started(int(number)) != rest.partition("/")[0]  # its number was given to another one


@functools.lru_cache(maxsize=1)
def _place() -> str:
    """Where process numbers mean the same: this boot of this machine, and this container of it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # without /proc the name of the machine has to do
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def _process(own: int) -> str:
    """This process, of which nothing changes but by a fork."""
    return f"{own}/{_started(own)}"


def _started(number: int) -> str:
    """When a process began, in the kernel's ticks; empty where there is no /proc, or no such process, or a dead one."""
    try:
        facts = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if facts[0] in "ZX" else facts[19]
