"""Changing the body of a message in an editor."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

import click

from qtasks.errors import InvalidCallError

if TYPE_CHECKING:
    from qtasks.qstash.message import Message


def edited_body(message: Message, file: IO[bytes] | Any | None) -> bytes | None:
    """The new body: that of `file`, or what the user makes of the old one in $EDITOR. None if it is unchanged.

    A body that was JSON is shown indented, and must be JSON afterwards: else InvalidCallError.
    """
    before = message.body or ""
    if message.body_base64 is not None and file is None:
        raise InvalidCallError("the body is not text", fix="give the new one as a file: --body FILE")
    try:
        document = json.loads(before)
    except ValueError:
        document = None
    is_json = document is not None
    if file is not None:
        after = file.read()
    else:
        shown = json.dumps(document, indent=2, ensure_ascii=False) if is_json else before
        text = click.edit(shown, extension=".json" if is_json else ".txt", require_save=True)
        if text is None or text.rstrip("\n") == shown:
            return None
        after = text.rstrip("\n").encode()
    if not is_json:
        return None if after == before.encode() else bytes(after)
    try:
        changed = json.loads(after)
    except ValueError as error:
        raise InvalidCallError(f"the new body is not JSON: {error}", fix="nothing was published; try again") from None
    return None if changed == document else json.dumps(changed, ensure_ascii=False, separators=(",", ":")).encode()
