"""`qtasks broker`: run the QStash-compatible server, or manage its tokens and its database."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Final, Literal

import click

from qtasks.broker.core.values import Retention
from qtasks.broker.server import event_loop
from qtasks.broker.server.hosts import LOOPBACK_HOSTS
from qtasks.broker.settings import LLM_VARIABLE, PER_DISPATCHER, PER_HOST, BrokerSettings, DeliveryLimits
from qtasks.broker.store.verbs import accounts
from qtasks.broker.transport.allow_rules import read_rule
from qtasks.cli.broker import tokens
from qtasks.cli.broker.account import ACCOUNT, credentials_from_environment
from qtasks.cli.broker.backup import backup
from qtasks.cli.broker.check import check
from qtasks.cli.broker.database_file import DEFAULT_DB, database_path
from qtasks.cli.broker.repair import repair
from qtasks.cli.broker.restore import restore
from qtasks.cli.configured import configuration
from qtasks.cli.listening import listen_at
from qtasks.cli.logs import LogOptions, log_options, log_to
from qtasks.cli.option_types import PORT, Duration, HostName, Size
from qtasks.cli.output import NonBlockingStream
from qtasks.cli.public_credentials import refuse_public_credentials
from qtasks.cli.signals import SECOND, stop_signals
from qtasks.errors import ConfigurationError, StoreError
from qtasks.protocol import development
from qtasks.protocol.loopback import is_loopback
from qtasks.protocol.messages import SigningKeys

log = logging.getLogger("qtasks.broker")

_VARIABLES: Final = {
    "QSTASH_TOKEN": "none: the tokens in the database are valid",
    "QSTASH_CURRENT_SIGNING_KEY": "made with the database",
    "QSTASH_NEXT_SIGNING_KEY": "made with the database",
    "QTASKS_BASE_URL": "none",
    LLM_VARIABLE: "none",
}
"""The variables of the broker for which there is no option, and what holds without them."""
_FIX_IN_ENVIRONMENT: Final = "unset them and run `qtasks broker init`, or listen on 127.0.0.1"
_FIX_IN_DATABASE: Final = "the database was created with them: use a new one, or listen on 127.0.0.1"


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """The options of `qtasks broker`."""

    host: str
    port: int
    hosts: tuple[str, ...]
    settings: BrokerSettings


@click.group("broker", invoke_without_command=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=PORT, default=development.PORT, show_default=True, help="0 picks a free one.")
@click.option("--db", envvar="QTASKS_DB", default=DEFAULT_DB, show_default=True, help="Database file. [QTASKS_DB]")
@click.option(
    "--destinations",
    type=click.Choice(["local", "public"]),
    default=None,
    help="Allowed destinations: `public` refuses loopback and private addresses."
    "  [default: local on a loopback host, else public]",
)
@click.option(
    "--allow-destination",
    "allow",
    multiple=True,
    metavar="ORIGIN",
    help="Also allow this origin, host or network, or the URLs below this one.",
)
@click.option(
    "--allow-host",
    "hosts",
    type=HostName(),
    multiple=True,
    metavar="NAME",
    help="Also answer requests to this host name.",
)
@click.option("--resolve-on-publish", is_flag=True, help="Refuse a publish to a host name that does not resolve.")
@click.option(
    "--drain",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running deliveries may continue at a stop.",
)
@click.option("--in-flight", type=click.IntRange(1), default=512, show_default=True, help="Concurrent deliveries.")
@click.option(
    "--per-host",
    type=click.IntRange(1),
    default=None,
    show_default=f"{PER_HOST}, or up to {PER_DISPATCHER} to a dispatcher that has so many free slots",
    help="Concurrent deliveries to one host and port.",
)
@click.option(
    "--retention",
    type=Duration(least="1m"),
    default="7d",
    show_default=True,
    help="How long delivered messages and logs are kept.",
)
@click.option(
    "--dlq-retention",
    type=Duration(least="1h"),
    default="30d",
    show_default=True,
    help="How long dead letters are kept.",
)
@click.option(
    "--max-size",
    type=Size(least="10MB"),
    default="1GB",
    show_default=True,
    help="Delete the oldest finished messages if the database is larger; 0 for no limit.",
)
@log_options("info")
@click.pass_context
def command(
    context: click.Context,
    host: str,
    port: int,
    db: str,
    destinations: Literal["local", "public"] | None,
    allow: tuple[str, ...],
    hosts: tuple[str, ...],
    resolve_on_publish: bool,
    drain: float,
    in_flight: int,
    per_host: int | None,
    retention: int,
    dlq_retention: int,
    max_size: int,
    log_level: str,
    log_format: Literal["text", "json"],
) -> None:
    """Run the broker, or manage its tokens and its database.

    It has the tokens and the signing keys that `qtasks broker init` has created. It also accepts the token in
    QSTASH_TOKEN; QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY are the keys of a new database.
    """
    if context.invoked_subcommand is not None:
        context.obj = db
        return
    credentials = credentials_from_environment()
    refuse_public_credentials(_secrets(credentials.token, credentials.keys), host, fix=_FIX_IN_ENVIRONMENT)
    settings = BrokerSettings(
        path=database_path(db),
        credentials=(credentials,),
        destinations=destinations or ("local" if is_loopback(host) else "public"),
        allow=_allowed(allow),
        resolve_on_publish=resolve_on_publish,
        limits=DeliveryLimits(in_flight=in_flight, per_host=per_host),
        retention=Retention(delivered_ms=retention, failed_ms=dlq_retention, max_bytes=max_size or None),
        log_deliveries=True,
        drain_s=drain,
    ).with_model(os.environ.get(LLM_VARIABLE))
    configured = configuration(context, _VARIABLES, {"destinations": settings.destinations})
    settings = replace(settings, configuration=configured)
    out, errors = NonBlockingStream(sys.stdout), NonBlockingStream(sys.stderr)
    log_to(errors, LogOptions(log_level, log_format))
    event_loop.raise_descriptor_limit()
    try:
        sys.exit(event_loop.run(_serve(BrokerOptions(host, port, hosts, settings), out)))
    finally:
        out.close()
        errors.close()


async def _serve(options: BrokerOptions, out: NonBlockingStream) -> int:
    # Imported here: the other commands of the group need neither server nor deliveries.
    from qtasks.broker.broker import INTERRUPTED, Broker
    from qtasks.broker.server.api_server import ApiServer

    async with AsyncExitStack() as stack:
        listener = listen_at(options.host, options.port, "--port")
        stack.callback(listener.close)
        settings = options.settings
        port = listener.getsockname()[1]
        broker = await Broker.open(settings.listening_on(options.host, port))
        stack.push_async_callback(broker.stop)
        if settings.credentials[0].token is None and not await broker.store.read(accounts.tokens):
            raise ConfigurationError(
                f"{settings.path} has no token, so no client could publish",
                fix=f"run `qtasks broker init --db {settings.path}`, or set QSTASH_TOKEN",
            )
        stored_keys = await broker.keys.of(broker.accounts[ACCOUNT])
        refuse_public_credentials(_secrets(None, stored_keys), options.host, fix=_FIX_IN_DATABASE)
        server = ApiServer(
            broker, [listener], hosts=_hosts(options), host_option="--allow-host", grace_s=settings.drain_s
        )
        stop = stack.enter_context(stop_signals())
        await server.start()
        broker.start()
        event_loop.tune_interpreter()
        shown = f"[{options.host}]" if ":" in options.host else options.host
        out.line(
            f"qtasks broker is running at http://{shown}:{port}  store {settings.path} ({broker.store.promise})"
            f"  destinations {settings.destinations}  {broker.recovery.waiting} waiting"
        )
        out.line(f"console at http://{shown}:{port}/")
        stopped = asyncio.ensure_future(stop.once.wait())
        broken = asyncio.ensure_future(broker.store.broken.wait())
        await asyncio.wait({stopped, broken}, return_when=asyncio.FIRST_COMPLETED)
        for waiting in (stopped, broken):
            waiting.cancel()
        # No outcome can be stored in a broken store.
        drain_s = 0.0 if broker.store.broken.is_set() else settings.drain_s
        if (running := broker.deliverer.in_flight) and drain_s:
            then = f"{SECOND}, and they are sent again at the next start"
            log.info("stopping: waiting up to %g s for deliveries in flight: %d; %s", drain_s, running, then)
        # At the same time, so that the stop takes no longer than the slower of the two.
        _, finished = await asyncio.gather(server.stop(), broker.deliverer.drain(drain_s))
        if not finished:
            log.warning(INTERRUPTED, broker.deliverer.interrupted)
        if broker.store.broken.is_set():
            raise StoreError(broker.store.failure or "the store failed")
    return 0


def _hosts(options: BrokerOptions) -> frozenset[str] | None:
    if not is_loopback(options.host):
        return frozenset(options.hosts) or None
    return LOOPBACK_HOSTS | frozenset(options.hosts)


def _allowed(allow: tuple[str, ...]) -> tuple[str, ...]:
    """The allowed destinations of the options, and deliveries to the tasks of the dispatcher, at QTASKS_BASE_URL."""
    base_url = os.environ.get("QTASKS_BASE_URL", "").rstrip("/")
    if not base_url:
        return allow
    rule = f"POST {base_url}"
    try:
        read_rule(rule)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"QTASKS_BASE_URL={base_url} cannot be a destination: {error.message.partition(': ')[2]}",
            fix="set it to the URL of your tasks, such as https://app.example.com/qtasks, or unset it",
        ) from error
    return (*allow, rule)


def _secrets(token: str | None, keys: SigningKeys | None) -> set[str | None]:
    return {token, *((keys.current, keys.next) if keys else ())}


for _subcommand in (tokens.init, tokens.token_group, check, repair, backup, restore):
    command.add_command(_subcommand)
