"""What a server of ours answers to a request that its application never sees."""

from __future__ import annotations

from typing import Final

from qtasks.protocol.headers import DISPATCHER_HEADER, INTERRUPTED_HEADER
from qtasks.protocol.stringify import stringify

BUSY: Final = "this server is busy: try again"
STOPPING: Final = "this server is stopping: try again"
_INTERRUPTIONS: Final = {BUSY: "busy", STOPPING: "draining"}
"""How a dispatcher tells a broker that a delivery ends no attempt, by the text of the error."""


class RefusedError(Exception):
    """Ends the parsing of a request that is answered with an error."""

    def __init__(self, status: bytes, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def refusal(status: bytes, text: str, *, is_dispatcher: bool) -> bytes:
    """A whole response, in the same form as every other error of the API.

    `is_dispatcher`: the server runs tasks, so it tells a broker when a delivery ends no attempt.
    """
    body = stringify({"error": text})
    lines = b"retry-after: 1\r\n" if status.startswith(b"503") else b""
    if is_dispatcher and text in _INTERRUPTIONS:
        lines += f"{DISPATCHER_HEADER}: true\r\n{INTERRUPTED_HEADER}: {_INTERRUPTIONS[text]}\r\n".lower().encode()
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b" % (
        status,
        len(body),
        lines,
        body,
    )
