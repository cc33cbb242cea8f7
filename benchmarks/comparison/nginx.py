"""nginx before the dispatcher, with its default settings: buffered answers, a new connection for each request."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks import processes
from benchmarks.processes import HOST, Program

_CONFIGURATION: Final = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {host}:{port};
        location / {{ proxy_pass http://{host}:{app_port}; }}
    }}
}}
"""
_VERSION_S: Final = 10


class NoNginxError(Exception):
    """nginx is not installed."""

    def __init__(self) -> None:
        super().__init__("nginx is not installed; on Debian: apt install nginx-light")


def version() -> str:
    """The installed version. Raises NoNginxError."""
    said = subprocess.run([_program(), "-v"], capture_output=True, text=True, check=True, timeout=_VERSION_S)
    found = re.search(r"nginx/([\d.]+)", said.stderr + said.stdout)
    return found[1] if found else "of an unknown version"


@contextlib.contextmanager
def before(app_port: int, folder: Path) -> Iterator[int]:
    """Run nginx before an application on this machine; gives the port of nginx. Raises NoNginxError."""
    port = processes.free_port()
    configuration = folder / "nginx.conf"
    text = _CONFIGURATION.format(folder=folder, host=HOST, port=port, app_port=app_port)
    # As the user of the benchmarks, whose folder for buffers nobody else may enter.
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    configuration.write_text(user + text)
    command = (_program(), "-c", configuration, "-e", "stderr")
    with processes.running(Program("nginx", command, processes.environment(), log=folder / "nginx.log")) as program:
        program.wait_until(lambda: processes.listens(port))
        yield port


def _program() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise NoNginxError
    return found
