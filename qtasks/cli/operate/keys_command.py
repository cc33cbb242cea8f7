"""`qtasks keys`: the signing keys of the account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qtasks.cli.changes import as_json_option, confirmed, dry_run_option, yes_option
from qtasks.cli.operate.groups import OperatorGroup
from qtasks.cli.operate.service import connected
from qtasks.cli.printing import echo_json, talk

if TYPE_CHECKING:
    from qtasks.qstash.signing_key import SigningKey

_SHOWN = 8
"""Characters of a key that are shown: ``sig_`` and four, to tell keys apart."""


class KeysGroup(OperatorGroup):
    """Without a command it runs ``show``."""

    default = "show"


@click.group("keys", cls=KeysGroup)
def command() -> None:
    """Show and rotate the signing keys.

    Applications verify deliveries with both keys, the current and the next one. The service is that of QSTASH_TOKEN and
    QSTASH_URL, or the `qtasks dev` that runs in this folder.
    """


@command.command("show")
@click.option("--reveal", is_flag=True, help="Print the keys in full, as lines for the environment.")
@as_json_option
def show(reveal: bool, as_json: bool) -> None:
    """Show the beginning of both keys."""
    from qtasks.qstash import signing_key

    with connected() as service:
        keys = service.run(signing_key.get())
    _echo(keys, reveal=reveal, as_json=as_json)


@command.command("rotate")
@yes_option
@dry_run_option
@as_json_option
def rotate(yes: bool, dry_run: bool, as_json: bool) -> None:
    """Make the next key the current one, make a new next key, and print both.

    Applications that have the two keys of before go on: the current key is their next one. Put the new pair into their
    environment before the next rotation, which they would not survive.
    """
    from qtasks.qstash import signing_key

    with connected() as service:
        if not confirmed(f"rotate the signing keys at {service.url}", [], yes=yes, dry_run=dry_run):
            if as_json:
                _echo(service.run(signing_key.get()), reveal=False, as_json=True)
            return
        keys = service.run(signing_key.rotate())
    _echo(keys, reveal=True, as_json=as_json)
    talk("put these into the environment of your applications before you rotate again")


def _echo(keys: SigningKey, *, reveal: bool, as_json: bool) -> None:
    current, following = (key if reveal else f"{key[:_SHOWN]}..." for key in (keys.current, keys.next))
    if as_json:
        echo_json({"current": current, "next": following})
        return
    click.echo(f"QSTASH_CURRENT_SIGNING_KEY={current}")
    click.echo(f"QSTASH_NEXT_SIGNING_KEY={following}")
