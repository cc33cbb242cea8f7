"""nginx with a configuration of the documentation, on ports of this machine, with a certificate for the test."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final, Self

from tests.support.process import Process, soon

NGINX: Final = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
_AROUND: Final = """
{user}daemon off;
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
    {site}
}}
"""


class ProxyServer(Process):
    """A running nginx with `site`, the blocks of a configuration that stand in `http`.

    `ports` are those that it listens at, by `server_name`: each server listens at a port of its own in place of 443.
    `behind` are the ports of the servers behind it, by the port that `site` has. `certificate` is for ``localhost``,
    with its key; see `make_certificate`.
    """

    def __init__(
        self, folder: Path, site: str, *, certificate: Path, ports: Mapping[str, int], behind: Mapping[int, int]
    ) -> None:
        assert NGINX is not None
        self.program = (NGINX,)
        self.ports = ports
        for known, port in behind.items():
            site = site.replace(f"server 127.0.0.1:{known};", f"server 127.0.0.1:{port};")
        for name, port in ports.items():
            site, found = re.subn(
                rf"listen 443 ssl;(\s+server_name {re.escape(name)};)", rf"listen 127.0.0.1:{port} ssl;\1", site
            )
            assert found == 1, name
        site = re.sub(r"(ssl_certificate(?:_key)?) [^;]+;", rf"\1 {certificate};", site)
        # As the user of the test, whose folder for buffers nobody else may enter.
        user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(_AROUND.format(user=user, folder=folder, site=site))
        super().__init__(folder, "-c", str(folder / "nginx.conf"), "-e", "stderr")

    def started(self) -> Self:
        """Wait until it listens."""
        for port in self.ports.values():
            soon(partial(_listens, port), f"nginx listens at {port}")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGTERM)  # its workers outlive a parent that is killed

    def url(self, name: str) -> str:
        """The address of a server."""
        return f"https://localhost:{self.ports[name]}"


def make_certificate(folder: Path) -> Path:
    """A certificate for ``localhost``, signed by itself, and its key, in one file. Programs read it when they start."""
    file, key = folder / "proxy.pem", folder / "proxy.key"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        ["openssl", "req", *kind, *names, "-keyout", key, "-out", file], check=True, capture_output=True, cwd=folder
    )
    file.write_bytes(file.read_bytes() + key.read_bytes())
    return file


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
