"""Listen on a port. If it is taken, say by which program, and by which option another port is chosen."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from qtasks.broker.server.listen import PortTakenError, listen

_LISTENING: Final = "0A"
"""The state of a listening socket in ``/proc/net/tcp``."""
_MAX_COMMAND: Final = 120
_DEV_FILE: Final = Path(".qtasks", "dev.json")


def listen_at(host: str, port: int, option: str) -> socket.socket:
    """As `listen`; the error for a taken port names its owner, and `option`, which chooses another port."""
    try:
        return listen(host, port)
    except PortTakenError as error:
        owner = _dev_owner(port) or _owner(port)
        details = {} if owner is None else {"used by": owner}
        fix = f"stop that program, or choose another port with {option} (0 picks a free one)"
        raise PortTakenError(error.message, details=details, fix=fix) from None


def _dev_owner(port: int) -> str | None:
    """The `qtasks dev` of this folder or of one above, if it listens on the port."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            facts = json.loads((folder / _DEV_FILE).read_text(encoding="utf-8"))
            if port in {urlsplit(str(facts[name])).port for name in ("broker", "base_url")} and _runs(facts["pid"]):
                place = "this folder" if folder == here else str(folder)
                return f"qtasks dev of {place} (process {facts['pid']})"
    return None


def _runs(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _owner(port: int) -> str | None:
    """The process that listens on a port, as Linux tells; None if it cannot be known."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    # A child may have inherited the socket: the first process is the one to stop.
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)) if sockets else ():
        if any(target in sockets for target in _descriptors(process)):
            return f"process {process.name} ({_command(process)})"
    return None


def _inodes(port: int) -> Iterator[str]:
    """The inodes of the sockets that listen on a port."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                cells = line.split()
                if cells[3] == _LISTENING and int(cells[1].rpartition(":")[2], 16) == port:
                    yield cells[9]


def _descriptors(process: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):  # of another user, or it has ended
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(descriptor.readlink())


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return "unknown"
    # The program and its first argument: later ones may be secret.
    command = " ".join([Path(words[0]).name, *(Path(word).name for word in words[1:3])]).strip()
    return "".join(char if char.isprintable() else "?" for char in command)[:_MAX_COMMAND]
