"""The URL of a destination as people see it. Pure."""

from __future__ import annotations

import re
from typing import Final

_USER: Final = re.compile(r"\A([A-Za-z][\w+.-]*://)[^/]*@")


def without_secrets(url: str) -> str:
    """The URL without its query, a user name and a password."""
    path = url.partition("?")[0]
    return _USER.sub(r"\1", path) if "@" in path else path
