"""`qtasks broker`: run the QStash-compatible server, or manage its tokens."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import apsw
import click

from qtasks.broker import ids
from qtasks.broker.broker import Broker
from qtasks.broker.core.values import AccountCredentials, Retention
from qtasks.broker.server import event_loop
from qtasks.broker.server.api_server import ApiServer
from qtasks.broker.server.asgi import LOOPBACK_HOSTS
from qtasks.broker.server.listen import listen
from qtasks.broker.settings import LLM_VARIABLE, BrokerSettings, DeliveryLimits
from qtasks.broker.store.connection import connect, run_in_transaction
from qtasks.broker.store.verbs import accounts
from qtasks.cli.option_types import PORT, Duration, Size
from qtasks.cli.output import NonBlockingStream, log_to
from qtasks.cli.public_credentials import refuse_public_credentials
from qtasks.cli.signals import stop_signals
from qtasks.errors import ConfigurationError, StoreError
from qtasks.protocol import development, signing
from qtasks.protocol.loopback import is_loopback
from qtasks.protocol.messages import SigningKeys
from qtasks.randomness import SystemRandom

T = TypeVar("T")

log = logging.getLogger("qtasks.broker")

ACCOUNT: Final = "default"
DEFAULT_DB: Final = "qtasks.db"
_FIX_IN_ENVIRONMENT: Final = "unset them and run `qtasks broker init`, or listen on 127.0.0.1"
_FIX_IN_DATABASE: Final = "the database was created with them: use a new one, or listen on 127.0.0.1"


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """The options of `qtasks broker`."""

    host: str
    port: int
    hosts: tuple[str, ...]
    settings: BrokerSettings


_db = click.option(
    "--db",
    default=None,
    callback=lambda context, _, path: path or context.obj,  # the option of the group
    help="Database file. The option may also stand before the command.",
)


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
    "--allow-destination", "allow", multiple=True, metavar="ORIGIN", help="Also allow this origin, host or network."
)
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="Also answer requests to this host name.")
@click.option("--resolve-on-publish", is_flag=True, help="Refuse a publish to a host name that does not resolve.")
@click.option(
    "--drain",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running deliveries may continue at a stop.",
)
@click.option("--in-flight", type=click.IntRange(1), default=256, show_default=True, help="Concurrent deliveries.")
@click.option(
    "--per-host",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Concurrent deliveries to one host and port.",
)
@click.option(
    "--retention",
    type=Duration(),
    default="7d",
    show_default=True,
    help="How long delivered messages and logs are kept.",
)
@click.option(
    "--dlq-retention", type=Duration(), default="30d", show_default=True, help="How long dead letters are kept."
)
@click.option(
    "--max-size",
    type=Size(),
    default="1GB",
    show_default=True,
    help="Delete the oldest finished messages if the database is larger.",
)
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
    per_host: int,
    retention: int,
    dlq_retention: int,
    max_size: int,
) -> None:
    """Run the broker, or manage its tokens.

    Its credentials are those in QSTASH_TOKEN, QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY, or those that
    `qtasks broker init` has created.
    """
    if context.invoked_subcommand is not None:
        context.obj = db
        return
    credentials = _credentials()
    refuse_public_credentials(_secrets(credentials.token, credentials.keys), host, fix=_FIX_IN_ENVIRONMENT)
    settings = BrokerSettings(
        path=_path(db),
        credentials=(credentials,),
        destinations=destinations or ("local" if is_loopback(host) else "public"),
        allow=_allowed(allow),
        resolve_on_publish=resolve_on_publish,
        limits=DeliveryLimits(in_flight=in_flight, per_host=per_host),
        retention=Retention(delivered_ms=retention, failed_ms=dlq_retention, max_bytes=max_size or None),
        drain_s=drain,
    ).with_model(os.environ.get(LLM_VARIABLE))
    out, errors = NonBlockingStream(sys.stdout), NonBlockingStream(sys.stderr)
    log_to(errors)
    try:
        sys.exit(event_loop.run(_serve(BrokerOptions(host, port, hosts, settings), out)))
    finally:
        out.close()
        errors.close()


@command.command("init")
@_db
def init(db: str) -> None:
    """Create the database with signing keys and a first token, and print them once."""
    path = _path(db)
    token = ids.token_secret(SystemRandom())

    def make(connection: apsw.Connection) -> SigningKeys | None:
        account = accounts.ensure_account(connection, _credentials(), ids.signing_keys(SystemRandom()))
        if accounts.tokens(connection):
            return None
        accounts.add_token(connection, token, account, "first", read_only=False, now_ms=_now_ms())
        return accounts.signing_keys(connection, account)

    keys = _change(path, make)
    if keys is None:
        raise ConfigurationError(
            f"{path} is already initialised; its token was shown then and cannot be shown again",
            fix="create another token with `qtasks broker token create NAME`; GET /v2/keys returns the signing keys",
        )
    click.echo("# Shown once. Put these into the environment of your applications.")
    click.echo(f"QSTASH_URL=http://127.0.0.1:{development.PORT}")
    click.echo(f"QSTASH_TOKEN={token}")
    click.echo(f"QSTASH_CURRENT_SIGNING_KEY={keys.current}")
    click.echo(f"QSTASH_NEXT_SIGNING_KEY={keys.next}")


@command.group("token")
def token_group() -> None:
    """Create, list and revoke API tokens. A running broker notices a change within a second."""


@token_group.command("create")
@click.argument("name")
@click.option("--read-only", is_flag=True, help="Allow reading logs, messages and dead letters, but no changes.")
@_db
def create_token(name: str, read_only: bool, db: str) -> None:
    """Create a token named NAME and print it once."""
    token = ids.token_secret(SystemRandom())

    def add(connection: apsw.Connection) -> bool:
        account = accounts.ensure_account(connection, AccountCredentials(ACCOUNT), ids.signing_keys(SystemRandom()))
        return accounts.add_token(connection, token, account, name, read_only=read_only, now_ms=_now_ms())

    if not _change(_existing(db), add):
        raise ConfigurationError(f"a token named {name!r} already exists", fix="choose another name, or revoke it")
    click.echo(token)


@token_group.command("list")
@_db
def list_tokens(db: str) -> None:
    """List the names of the tokens; the tokens themselves are not stored."""
    for token in _change(_existing(db), accounts.tokens):
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(token.created_ms / 1000))
        click.echo(f"{token.name:<24}  {'read only' if token.read_only else 'publish':<10}  created {created}")


@token_group.command("revoke")
@click.argument("name")
@_db
def revoke_token(name: str, db: str) -> None:
    """Revoke the token named NAME."""

    def remove(connection: apsw.Connection) -> bool:
        account = accounts.ensure_account(connection, AccountCredentials(ACCOUNT), ids.signing_keys(SystemRandom()))
        return accounts.remove_token(connection, account, name)

    if not _change(_existing(db), remove):
        raise ConfigurationError(f"there is no token named {name!r}", fix="list them with `qtasks broker token list`")
    click.echo(f"revoked {name}")


async def _serve(options: BrokerOptions, out: NonBlockingStream) -> int:
    async with AsyncExitStack() as stack:
        listener = listen(options.host, options.port)
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
        server = ApiServer(broker, [listener], hosts=_hosts(options), grace_s=settings.drain_s)
        stop = stack.enter_context(stop_signals())
        await server.start()
        broker.start()
        event_loop.tune_interpreter()
        shown = f"[{options.host}]" if ":" in options.host else options.host
        out.line(
            f"qtasks broker is running at http://{shown}:{port}  store {settings.path} ({broker.store.promise})"
            f"  destinations {settings.destinations}  {broker.recovery.waiting} waiting"
        )
        stopped = asyncio.ensure_future(stop.wait())
        broken = asyncio.ensure_future(broker.store.broken.wait())
        await asyncio.wait({stopped, broken}, return_when=asyncio.FIRST_COMPLETED)
        for waiting in (stopped, broken):
            waiting.cancel()
        # At the same time, so that the stop takes no longer than the slower of the two.
        _, finished = await asyncio.gather(server.stop(), broker.deliverer.drain(settings.drain_s))
        if not finished:
            log.warning("stopped before all attempts had ended; the next start makes these attempts again")
        if broker.store.broken.is_set():
            raise StoreError("the store failed; start the broker again once the disk works")
    return 0


def _hosts(options: BrokerOptions) -> frozenset[str] | None:
    if not is_loopback(options.host):
        return frozenset(options.hosts) or None
    return LOOPBACK_HOSTS | frozenset(options.hosts)


def _credentials() -> AccountCredentials:
    token = os.environ.get("QSTASH_TOKEN") or None
    current = os.environ.get("QSTASH_CURRENT_SIGNING_KEY") or None
    next_key = os.environ.get("QSTASH_NEXT_SIGNING_KEY") or None
    if (current is None) != (next_key is None):
        missing = "QSTASH_NEXT_SIGNING_KEY" if next_key is None else "QSTASH_CURRENT_SIGNING_KEY"
        raise ConfigurationError(f"{missing} is not set, but the other signing key is", fix="set both or neither")
    keys = SigningKeys(current, next_key) if current and next_key else None
    if keys is not None:
        signing.check_keys(keys, dev=True)
    return AccountCredentials(ACCOUNT, token, keys)


def _secrets(token: str | None, keys: SigningKeys | None) -> set[str | None]:
    return {token, *((keys.current, keys.next) if keys else ())}


def _allowed(allow: tuple[str, ...]) -> tuple[str, ...]:
    """The allowed destinations of the options, and the origin of QTASKS_BASE_URL, where the dispatcher is."""
    base_url = os.environ.get("QTASKS_BASE_URL", "")
    return (*allow, "/".join(base_url.split("/")[:3])) if base_url else allow


def _path(db: str) -> str:
    if db.startswith(("postgres://", "postgresql://")):
        raise ConfigurationError(
            "QTASKS_DB names PostgreSQL, in which this version cannot store messages",
            fix="name a SQLite file: --db qtasks.db",
        )
    return db.removeprefix("sqlite:///")


def _existing(db: str) -> str:
    path = _path(db)
    if not Path(path).is_file():
        raise ConfigurationError(
            f"there is no database at {path}", fix=f"create one with `qtasks broker init --db {path}`"
        )
    return path


def _change(path: str, change: Callable[[apsw.Connection], T]) -> T:
    """Run one transaction, possibly while a broker uses the file; only the broker checkpoints the log."""
    Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    connection = connect(path)
    connection.pragma("wal_autocheckpoint", 0)
    try:
        return run_in_transaction(connection, change)
    except apsw.Error as error:
        raise StoreError(f"{path} cannot be changed: {error}") from error
    finally:
        connection.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
