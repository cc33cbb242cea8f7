"""What a server was started with: each option and variable, its default, and where the value comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Final

import click
from click.core import ParameterSource

from qtasks.broker.settings import HIDDEN, ConfiguredValue
from qtasks.cli.option_types import Duration, Size
from qtasks.protocol import durations

_NONE: Final = "none"
_UNITS: Final = (("GB", 10**9), ("MB", 10**6), ("KB", 10**3))


def configuration(
    context: click.Context, variables: Mapping[str, str], effective: Mapping[str, str]
) -> tuple[ConfiguredValue, ...]:
    """The options of the command, then `variables` of the environment with what holds without them.

    `effective` has the values of options without which the command decides itself, by their parameter names.
    """
    return (*_options(context, effective), *(_variable(name, default) for name, default in variables.items()))


def _options(context: click.Context, effective: Mapping[str, str]) -> Iterator[ConfiguredValue]:
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in context.params:
            continue
        option = parameter.opts[0] if isinstance(parameter, click.Option) else name.upper()
        default_value, value = parameter.get_default(context), context.params[name]
        default = _shown(parameter, default_value)
        if isinstance(default_value, str) and value == parameter.type_cast_value(context, default_value):
            value = default_value  # as it was written: 7d
        value = _shown(parameter, value)
        match context.get_parameter_source(name):
            case ParameterSource.COMMANDLINE:
                source = f"option {option}" if option.startswith("-") else "argument"
            case ParameterSource.ENVIRONMENT:
                source = f"environment {_variable_of(parameter)}"
            case _:
                source, value = "default", effective.get(name, value)
                default = value if default == _NONE else default
        yield ConfiguredValue(option, value, default, source)


def _variable_of(parameter: click.Parameter) -> str:
    names = parameter.envvar
    return names if isinstance(names, str) else ", ".join(names or ())


def _variable(name: str, default: str) -> ConfiguredValue:
    value = os.environ.get(name)
    if not value:
        return ConfiguredValue(name, default, default, "default")
    is_secret = name.endswith(("TOKEN", "KEY"))
    return ConfiguredValue(name, HIDDEN if is_secret else value, default, f"environment {name}")


def _shown(parameter: click.Parameter, value: Any) -> str:
    # An option without a value has a member of an enumeration in its place.
    if callable(value) or value is None or value == () or isinstance(value, Enum):
        return _NONE
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and isinstance(parameter.type, Duration):
        return durations.format(value)
    if isinstance(value, int) and isinstance(parameter.type, Size):
        return next(
            (f"{value // size}{unit}" for unit, size in _UNITS if value >= size and value % size == 0), str(value)
        )
    return f"{value:g}" if isinstance(value, float) else str(value)
