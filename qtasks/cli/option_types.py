"""Option types of the command line: durations, sizes, ports, host names and counts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from qtasks.protocol import durations

F = TypeVar("F", bound=Callable[..., Any])

PORT: Final = click.IntRange(0, 65_535)
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_UNITS: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def _files(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


app_argument = click.argument("app", required=False, shell_complete=_files)
"""The application of a command; a shell completes files."""


class Duration(click.ParamType[int]):
    """A duration such as 7d or 1h30m, at least `least` and at most `most`; the value is in milliseconds."""

    name = "duration"

    def __init__(self, least: str | None = None, most: str | None = None) -> None:
        self._least = least
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the text. A text that cannot be read ends the command with exit code 2."""
        if isinstance(value, int):
            return value
        try:
            duration = durations.parse(value)
        except ValueError as error:
            self.fail(f"{error}; write it as 30s, 12h or 7d", param, ctx)
        if self._least is not None and duration < durations.parse(self._least):
            self.fail(f"{value} is too short: at least {self._least}", param, ctx)
        if self._most is not None and duration > durations.parse(self._most):
            self.fail(f"{value} is too long: at most {self._most}", param, ctx)
        return duration


class Size(click.ParamType[int]):
    """A size such as 500MB or 1GB, at least `least`; the value is in bytes, and 0 means no limit."""

    name = "size"

    def __init__(self, least: str | None = None) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the text. A text that cannot be read ends the command with exit code 2."""
        if isinstance(value, int):
            return value
        size = self._bytes(value)
        if size is None:
            self.fail(f"{value!r} is not a size; write it as 500MB or 1GB", param, ctx)
        if self._least is not None and 0 < size < (self._bytes(self._least) or 0):
            self.fail(f"{value} is too small: at least {self._least}, or 0 for no limit", param, ctx)
        return size

    @staticmethod
    def _bytes(value: str) -> int | None:
        text = value.strip().upper()
        unit = next((name for name in _UNITS if text.endswith(name)), "")
        number = text.removesuffix(unit).strip()
        if not (number.isascii() and number.isdigit() and len(number) <= 15):
            return None
        return int(number) * _UNITS.get(unit, 1)


class HostName(click.ParamType[str]):
    """A host name as a `Host` header contains it, without a port; the value is lower-case."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read the text. A text that is not a host name ends the command with exit code 2."""
        if not _HOST_NAME.fullmatch(value):
            self.fail(f"{value!r} is not a host name; write it as app.example.com, without scheme and port", param, ctx)
        return str(value).lower()


def count_option(default: int, most: int | None = None) -> Callable[[F], F]:
    """The option `--count` of a command that lists: how many at most."""
    return click.option(
        "--count", "-n", type=click.IntRange(1, most), default=default, show_default=True, help="How many at most."
    )
