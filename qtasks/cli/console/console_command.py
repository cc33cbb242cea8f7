"""`qtasks console`: the console in a process of its own, before any QStash service.

What it runs is loaded when it is called, so `--help` and completion stay quick.
"""

from __future__ import annotations

import os

import click

from qtasks.cli.option_types import PORT, HostName
from qtasks.errors import ConfigurationError
from qtasks.protocol.loopback import is_loopback


@click.command("console")
@click.option("--url", envvar="QSTASH_URL", required=True, help="The QStash service. [QSTASH_URL]")
@click.option(
    "--token-env",
    default="QSTASH_TOKEN",
    show_default=True,
    metavar="NAME",
    help="The environment variable that holds the token. It never reaches the browser.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=PORT, default=8090, show_default=True, help="0 picks a free one.")
@click.option("--allow-host", "hosts", type=HostName(), multiple=True, metavar="NAME", help="Also answer to this name.")
@click.option("--read-only", is_flag=True, help="Show everything and change nothing.")
def command(url: str, token_env: str, host: str, port: int, hosts: tuple[str, ...], read_only: bool) -> None:
    """Open the console of a QStash service: a broker of qtasks, or the hosted one.

    There is no sign-in: everyone who reaches the address uses the token. So it listens on this machine only; with
    another --host you must name the hosts that it answers to, and protect it by other means.
    """
    token = os.environ.get(token_env, "")
    if not token:
        raise ConfigurationError(
            f"the environment variable {token_env} is not set", fix="set it to the token, or name another: --token-env"
        )
    if not is_loopback(host) and not hosts:
        raise ConfigurationError(
            f"everyone who reaches {host} would use the token without a sign-in",
            fix="listen on 127.0.0.1; or name each host that it answers to with --allow-host, behind a proxy that asks"
            " for a password",
        )
    from qtasks.cli.console.console_server import ConsoleOptions, run

    run(ConsoleOptions(url, token, host, port, hosts, read_only))
