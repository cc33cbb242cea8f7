"""The files of the page, as the package has them: read once, compressed once.

They are the same for every visitor and reveal nothing, so they need no sign-in. Only paths in this list are served: no
path of a request ever reaches the file system.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError

PREFIX: Final = "/console/static/"
_INDEX: Final = "index.html"
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
"""Content types by the end of the name; a file with another end is not served."""
_WORTH_PACKING: Final = 512
"""Bytes from which a file is compressed."""


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file in the forms in which it is sent."""

    content_type: str
    plain: bytes
    packed: bytes | None
    """Compressed with gzip; None for a short file."""
    tag: str
    """Changes with the content."""


@functools.cache
def files() -> Mapping[str, StaticFile]:
    """All files of the page by their path; that of the page itself is ``/``."""
    folder = resources.files("qtasks.broker.console").joinpath("static")
    return {"/" if name == _INDEX else PREFIX + name: _file(name, content) for name, content in _walk(folder, "")}


def _walk(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{path}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _TYPES:
            yield path + entry.name, entry.read_bytes()


def _file(name: str, content: bytes) -> StaticFile:
    packed = gzip.compress(content, mtime=0) if len(content) >= _WORTH_PACKING else None
    return StaticFile(_TYPES[name.rpartition(".")[2]], content, packed, hashlib.sha256(content).hexdigest()[:20])


def respond(request: ApiRequest) -> ApiResponse:
    """The response to a request for the page or one of its files. HttpError 404, or 405 for a method that writes."""
    file = files().get(request.path)
    if file is None:
        raise HttpError(404, f"the console has no file {request.path[:200]}")
    if request.method not in ("GET", "HEAD"):
        raise HttpError(405, f"{request.method} is not allowed here", (("Allow", "GET, HEAD"),))
    is_packed = file.packed is not None and _accepts_gzip(request.header("accept-encoding") or "")
    tag = f'"{file.tag}-gz"' if is_packed else f'"{file.tag}"'
    headers = (
        ("Content-Type", file.content_type),
        ("ETag", tag),
        ("Cache-Control", "no-cache"),  # asked again each time: the names of the files stay when their content changes
        ("Vary", "Accept-Encoding"),
    )
    if tag in (part.strip().removeprefix("W/") for part in (request.header("if-none-match") or "").split(",")):
        return ApiResponse(304, b"", headers)
    if is_packed and file.packed is not None:
        return ApiResponse(200, file.packed, (*headers, ("Content-Encoding", "gzip")))
    return ApiResponse(200, file.plain, headers)


def _accepts_gzip(text: str) -> bool:
    for part in text.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
