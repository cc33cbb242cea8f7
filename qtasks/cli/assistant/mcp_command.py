"""`qtasks mcp`: let an assistant look at a broker."""

from __future__ import annotations

import click

from qtasks.cli.operate.service import connected
from qtasks.errors import ConfigurationError


@click.command("mcp")
def command() -> None:
    """Serve the Model Context Protocol on standard input and output, read-only.

    An assistant starts this command and asks it what waits, runs and fails. The service is that of QSTASH_TOKEN and
    QSTASH_URL, or the `qtasks dev` that runs in this folder. A token that may only read is enough.
    """
    try:
        from qtasks.cli.assistant.mcp_server import server_of
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("mcp"):
            raise
        raise ConfigurationError(
            "`qtasks mcp` needs the package of the Model Context Protocol", fix='pip install "qstash-tasks[mcp]"'
        ) from None
    with connected() as service:
        server_of(service).run("stdio")
