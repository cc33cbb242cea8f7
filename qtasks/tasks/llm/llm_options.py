"""How a model is to answer, and how the completion of a call is to be delivered, as a person writes it."""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from typing import Any, TypedDict

import typing_extensions
from pydantic import ConfigDict, TypeAdapter, ValidationError

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.tasks.options import CallOptions, CommonOptions
from qtasks.tasks.retries import RetryPolicy


class ModelOptions(TypedDict, total=False):
    """What may be said to a model besides messages; an absent key leaves it to the provider."""

    temperature: float
    """0 to 2: how much chance there is in the answer."""
    max_tokens: int
    """Longest answer, in tokens. Anthropic has to be told one: 4,096 where nothing is said."""
    top_p: float
    """0 to 1: only the likeliest tokens that make up so much."""
    stop: str | list[str]
    """Texts at which the answer ends."""
    seed: int
    """Ask for the same answer to the same question, as far as the provider can. Not with Anthropic."""
    strict: bool
    """Have the provider enforce the schema of the output, which must then forbid extra members and have no optional
    ones (OpenAI's structured outputs). Not with Anthropic."""
    extra: dict[str, Any]
    """Further members of the request, as the provider documents them; they win over ours."""


class LlmOptions(CommonOptions, ModelOptions, total=False):
    """What an LLM task may say. `retries`, `timeout`, `key` and so on are about the request to the model.

    `callback` and `failure_callback` are taken: that is how the answer comes back.
    """


class LlmCallOptions(CallOptions, ModelOptions, total=False):
    """What one call of an LLM task may say besides."""

    model: str
    """Ask another model of the same provider."""


MODEL_OPTIONS = tuple(ModelOptions.__annotations__)


def check(task: str, options: Mapping[str, Any], known: frozenset[str], provider: str) -> None:
    """Refuse what an LLM task cannot mean. `known` are the settings of the provider's API.

    Raises DefinitionError naming the option. What is common to all tasks is checked elsewhere.
    """
    for name in ("callback", "failure_callback"):
        if name in options:
            raise DefinitionError(
                f"{task}: {name} is how the model's answer comes back, so it cannot be another URL",
                fix="@task.on_completion and @task.on_failure are told of answers and failures",
                code=ErrorCode.OPTION_INVALID,
            )
    policy = options.get("retries")
    if isinstance(policy, RetryPolicy) and policy.chooses:
        raise DefinitionError(
            f"{task}: the broker repeats a request to a model after any failure, so its policy cannot choose by error",
            fix="give `on` and `give_up_on` to @task.on_completion(retries=...)",
            code=ErrorCode.OPTION_INVALID,
        )
    said = {name: value for name, value in options.items() if name in MODEL_OPTIONS}
    for name in said:
        if name not in known:
            raise DefinitionError(f"{task}: {provider} has no option {name!r}", code=ErrorCode.OPTION_INVALID)
    try:
        _reader().validate_python(said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DefinitionError(
            f"{task}: {where}={first['input']!r}: {first['msg']}", code=ErrorCode.OPTION_INVALID
        ) from None


@functools.cache
def _reader() -> TypeAdapter[Any]:
    # The functional form: before Python 3.12 pydantic does not take a TypedDict of `typing`.
    make: Any = typing_extensions.TypedDict
    record = make("ModelOptions", typing.get_type_hints(ModelOptions), total=False)
    record.__pydantic_config__ = ConfigDict(strict=True)
    return TypeAdapter(record)
