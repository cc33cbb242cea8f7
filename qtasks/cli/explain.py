"""`qtasks explain`: what an error code means and what to do about it."""

from __future__ import annotations

import click

from qtasks.cli.changes import as_json_option
from qtasks.cli.printing import echo_json
from qtasks.error_codes import ErrorCode
from qtasks.errors import did_you_mean


@click.command("explain")
@click.argument("code", required=False)
@as_json_option
def command(code: str | None, as_json: bool) -> None:
    """Explain an error code such as QT301; without CODE, list all codes."""
    if code is None and as_json:
        echo_json({"codes": [_facts(member) for member in ErrorCode]})
        return
    if code is None:
        for member in ErrorCode:
            click.echo(f"{member}  {member.title}")
        return
    number = code.strip().upper()
    match = next((member for member in ErrorCode if member == number), None)
    if match is None:
        suggestion = did_you_mean(number, map(str, ErrorCode))
        raise click.UsageError(f"there is no error code {code!r}{suggestion or '; `qtasks explain` lists all codes'}")
    if as_json:
        echo_json(_facts(match))
        return
    click.echo(f"{match}  {match.title}")
    click.echo(f"  cause       {match.cause}")
    click.echo(f"  fix         {match.fix}")


def _facts(code: ErrorCode) -> dict[str, str]:
    return {"code": str(code), "title": code.title, "cause": code.cause, "fix": code.fix}
