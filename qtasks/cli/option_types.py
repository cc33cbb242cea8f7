"""Option types of the command line: durations, sizes and ports."""

from __future__ import annotations

from typing import Any, Final

import click

from qtasks.protocol import durations

PORT: Final = click.IntRange(0, 65_535)
_UNITS: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Duration(click.ParamType[int]):
    """A duration such as 7d or 1h30m; the value is in milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the text. A text that cannot be read ends the command with exit code 2."""
        if isinstance(value, int):
            return value
        try:
            return durations.parse(value)
        except ValueError as error:
            self.fail(f"{error}; write it as 30s, 12h or 7d", param, ctx)


class Size(click.ParamType[int]):
    """A size such as 500MB or 1GB; the value is in bytes, and 0 means no limit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the text. A text that cannot be read ends the command with exit code 2."""
        if isinstance(value, int):
            return value
        text = value.strip().upper()
        unit = next((name for name in _UNITS if text.endswith(name)), "")
        number = text.removesuffix(unit).strip()
        if not (number.isascii() and number.isdigit() and len(number) <= 15):
            self.fail(f"{value!r} is not a size; write it as 500MB or 1GB", param, ctx)
        return int(number) * _UNITS.get(unit, 1)
