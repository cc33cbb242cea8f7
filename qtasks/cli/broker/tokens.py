"""`qtasks broker init` and `qtasks broker token`: the signing keys and the tokens in the database."""

from __future__ import annotations

import os
import time

import apsw
import click

from qtasks.broker import ids
from qtasks.broker.core.values import AccountCredentials, StoredToken
from qtasks.broker.store.verbs import accounts
from qtasks.cli.broker.account import ACCOUNT, credentials_from_environment
from qtasks.cli.broker.database_file import (
    DEFAULT_DB,
    change_database,
    database_path,
    db_option,
    existing_database,
    note_change,
    now_ms,
)
from qtasks.cli.changes import as_json_option
from qtasks.cli.printing import echo_json, talk
from qtasks.errors import ConfigurationError
from qtasks.protocol import development, signing
from qtasks.protocol.messages import SigningKeys
from qtasks.randomness import SystemRandom
from qtasks.tasks.settings import DEV_BASE_URL


@click.command("init")
@db_option
def init(db: str) -> None:
    """Create the database with signing keys and a first token, and print them once."""
    path = database_path(db)
    token = ids.token_secret(SystemRandom())
    configured, made = credentials_from_environment(), ids.signing_keys(SystemRandom())
    _refuse_public(configured.keys, "the environment", "unset QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY")

    def make(connection: apsw.Connection) -> SigningKeys | None:
        account = accounts.ensure_account(connection, configured, made)
        if accounts.tokens(connection):
            return None
        accounts.add_token(connection, token, account, "first", read_only=False, now_ms=now_ms())
        note_change(connection, account, "token.create", "first")
        keys = accounts.signing_keys(connection, account)
        _refuse_public(keys, path, "name a new file with --db")
        return keys

    keys = change_database(path, make)
    if keys is None:
        raise ConfigurationError(
            f"{path} is already initialised; its token was shown then and cannot be shown again",
            fix="create another token with `qtasks broker token create NAME`; GET /v2/keys returns the signing keys",
        )
    click.echo("# Shown once. Put these into the environment of your applications.")
    click.echo(f"# The signing keys {_origin(keys, configured.keys, made)}.")
    click.echo(f"QSTASH_URL=http://127.0.0.1:{development.PORT}")
    click.echo(f"QSTASH_TOKEN={token}")
    click.echo(f"QSTASH_CURRENT_SIGNING_KEY={keys.current}")
    click.echo(f"QSTASH_NEXT_SIGNING_KEY={keys.next}")
    click.echo("# Where the broker reaches the tasks of `qtasks run`: their public URL, prefix included.")
    click.echo(f"QTASKS_BASE_URL={DEV_BASE_URL}")
    if path != DEFAULT_DB:
        click.echo("# The database, for the commands of `qtasks broker`.")
        click.echo(f"QTASKS_DB={path}")
    click.echo("# `qtasks run` and callers need these lines. `qtasks broker` has token and keys in its database.")
    click.echo("# Do not give it QSTASH_TOKEN: a broker with this variable accepts its token even after a revocation.")


def _refuse_public(keys: SigningKeys | None, place: str, instead: str) -> None:
    if keys is not None and not signing.DEV_KEYS.isdisjoint((keys.current, keys.next)):
        raise ConfigurationError(
            f"the signing keys in {place} are the public ones of `qtasks dev`: every stranger could sign with them",
            fix=f"{instead}; `qtasks broker init` then makes keys of your own",
        )


def _origin(keys: SigningKeys, configured: SigningKeys | None, made: SigningKeys) -> str:
    """Where the signing keys of a database come from, in words."""
    if keys == made:
        return "were made now"
    if keys == configured:
        return "are those of QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY in the environment"
    unused = "" if configured is None else "; those in the environment are not used"
    return f"were in the database already{unused}"


@click.group("token")
def token_group() -> None:
    """Create, list and revoke API tokens. A running broker notices a change within a second."""


@token_group.command("create")
@click.argument("name")
@click.option("--read-only", is_flag=True, help="Allow reading logs, messages and dead letters, but no changes.")
@click.option(
    "--without-payloads",
    is_flag=True,
    help="Open the console and /metrics only, and show no body, header, argument, result or error text there.",
)
@db_option
def create_token(name: str, read_only: bool, without_payloads: bool, db: str) -> None:
    """Create a token named NAME and print it once."""
    token = ids.token_secret(SystemRandom())

    def add(connection: apsw.Connection) -> bool:
        account = accounts.ensure_account(connection, AccountCredentials(ACCOUNT), ids.signing_keys(SystemRandom()))
        is_new = accounts.add_token(
            connection,
            token,
            account,
            name,
            read_only=read_only or without_payloads,
            without_payloads=without_payloads,
            now_ms=now_ms(),
        )
        if is_new:
            note_change(connection, account, "token.create", name)
        return is_new

    if not change_database(existing_database(db), add):
        raise ConfigurationError(f"a token named {name!r} already exists", fix="choose another name, or revoke it")
    click.echo(token)


@token_group.command("list")
@as_json_option
@db_option
def list_tokens(as_json: bool, db: str) -> None:
    """List the names of the tokens; the tokens themselves are not stored."""
    tokens = change_database(existing_database(db), accounts.tokens)
    if as_json:
        rows = [{"name": token.name, "role": _role(token), "createdMs": token.created_ms} for token in tokens]
        echo_json({"tokens": rows})
        return
    for token in tokens:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(token.created_ms / 1000))
        click.echo(f"{token.name:<24}  {_role(token):<16}  created {created}")


def _role(token: StoredToken) -> str:
    if token.without_payloads:
        return "without payloads"
    return "read only" if token.read_only else "publish"


@token_group.command("revoke")
@click.argument("name")
@db_option
def revoke_token(name: str, db: str) -> None:
    """Revoke the token named NAME."""
    configured = os.environ.get("QSTASH_TOKEN")
    digest = accounts.token_digest(configured) if configured else None
    is_configured = False

    def remove(connection: apsw.Connection) -> bool:
        nonlocal is_configured
        is_configured = any((token.name, token.digest) == (name, digest) for token in accounts.tokens(connection))
        account = accounts.ensure_account(connection, AccountCredentials(ACCOUNT), ids.signing_keys(SystemRandom()))
        is_known = accounts.remove_token(connection, account, name)
        if is_known:
            note_change(connection, account, "token.revoke", name)
        return is_known

    if not change_database(existing_database(db), remove):
        raise ConfigurationError(f"there is no token named {name!r}", fix="list them with `qtasks broker token list`")
    click.echo(f"revoked {name}")
    if is_configured:
        talk(
            f"{name} is the token in QSTASH_TOKEN of this environment: a broker that was started with this variable"
            " still accepts it; remove the variable there, and restart that broker"
        )
