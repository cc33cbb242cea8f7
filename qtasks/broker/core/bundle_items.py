"""The lines of a bundle, composed from the rows of its messages (docs/protocol.md 5.16). Pure.

The header lines of a message are stored as JSON. So they go into the line as they are, and no `Message` is made.
"""

from __future__ import annotations

from typing import Final

import orjson

from qtasks.broker.core.message_rows import MessageRow

USER_AGENT: Final = "Upstash-QStash"
"""The `User-Agent` of a delivery whose publish has forwarded none."""

_USER_AGENT_LINE: Final = orjson.dumps(("User-Agent", USER_AGENT))


def item_line_of(row: MessageRow, body: bytes, *, target: str, region: str) -> bytes | None:
    """The line of a message, as `bundles.item_line` would write its single delivery; None if `body` is not UTF-8.

    `row` must be readable, as that of each claim is. `target` is the rest of its URL behind the common folder.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    forwarded = row.headers[1:-1]
    own = [
        ("Upstash-Caller-Ip", row.caller_ip),
        ("Upstash-Message-Id", row.id),
        ("Upstash-Region", region),
        ("Upstash-Retried", str(row.retried)),
    ]
    if row.url_group is not None:
        own.append(("Upstash-Topic-Name", row.url_group))
    if row.schedule_id is not None:
        own.append(("Upstash-Schedule-Id", row.schedule_id))
    lines = [] if _has_user_agent(forwarded) else [_USER_AGENT_LINE]
    if forwarded:
        lines.append(forwarded.encode())
    lines.append(orjson.dumps(own)[1:-1])
    return b'{"to":%b,"headers":[%b],"body":%b}\n' % (orjson.dumps(target), b",".join(lines), orjson.dumps(text))


def _has_user_agent(header_lines: str) -> bool:
    """True if stored header lines name a `User-Agent`. Inside a value, JSON has a backslash before each quote."""
    return '["user-agent",' in header_lines.lower()
