"""Options of LLM tasks and of their calls: TypedDicts for users, and their validation."""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from typing import Any, TypedDict

import typing_extensions
from pydantic import ConfigDict, TypeAdapter, ValidationError

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError
from qtasks.tasks.options import CallOptions, CommonOptions, SearchOptions
from qtasks.tasks.retries import RetryPolicy


class ModelOptions(TypedDict, total=False):
    """Options of a request to a model. An absent key leaves the provider's default."""

    temperature: float
    """How random the answer is, 0 to 2."""
    max_tokens: int
    """Longest answer, in tokens. With Anthropic 4,096 by default, because its API requires a value."""
    top_p: float
    """Choose only among the most likely tokens, whose probabilities add up to this value: 0 to 1."""
    stop: str | list[str]
    """A text, or several, at which the answer ends."""
    seed: int
    """Ask for the same answer to the same request (best effort of the provider). Not with Anthropic."""
    strict: bool
    """True: the provider enforces the schema of the output (OpenAI's structured outputs). The schema must then forbid
    extra members and have no optional ones. Not with Anthropic."""
    extra: dict[str, Any]
    """Further members of the request, as the provider documents them. They replace members of the same name."""


class LlmOptions(CommonOptions, SearchOptions, ModelOptions, total=False):
    """Options of an LLM task. `retries`, `timeout`, `key` and so on apply to the request to the model.

    `callback` and `failure_callback` are not allowed: the answer uses them.
    """

    encrypt: bool
    """Only False is possible: the broker makes the request to the model, so it has to be able to read it. Needed in an
    application that encrypts by default."""


class LlmCallOptions(CallOptions, ModelOptions, total=False):
    """Options of one call of an LLM task."""

    model: str
    """Another model of the same provider, for this call."""


MODEL_OPTIONS = tuple(ModelOptions.__annotations__)


def check(task: str, options: Mapping[str, Any], supported: frozenset[str], provider: str) -> None:
    """Validate the options that are special to LLM tasks. `supported` are the model options of the provider's API.

    Raises DefinitionError naming the option.
    """
    for name in ("callback", "failure_callback"):
        if name in options:
            raise DefinitionError(
                f"{task}: {name} is the URL for the model's answer, so it cannot be set",
                fix="use @task.on_completion for answers, @task.on_failure for failures",
                code=ErrorCode.OPTION_INVALID,
            )
    if options.get("encrypt"):
        raise not_encryptable(task)
    policy = options.get("retries")
    if isinstance(policy, RetryPolicy) and policy.chooses:
        raise DefinitionError(
            f"{task}: the broker retries a request to a model after any failure, so the policy cannot depend on the "
            "error",
            fix="give `on` and `give_up_on` to @task.on_completion(retries=...)",
            code=ErrorCode.OPTION_INVALID,
        )
    model_options = {name: value for name, value in options.items() if name in MODEL_OPTIONS}
    for name in model_options:
        if name not in supported:
            raise DefinitionError(f"{task}: {provider} has no option {name!r}", code=ErrorCode.OPTION_INVALID)
    try:
        _reader().validate_python(model_options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(map(str, first["loc"]))
        raise DefinitionError(
            f"{task}: {path}={first['input']!r}: {first['msg']}", code=ErrorCode.OPTION_INVALID
        ) from None


def not_encryptable(task: str) -> DefinitionError:
    """The error for an LLM task that is to be encrypted."""
    return DefinitionError(
        f"{task}: the broker makes the request to the model and gets the answer, so it has to be able to read them",
        fix="encrypt=False, if the broker may read its arguments, its messages and its answers",
        code=ErrorCode.OPTION_INVALID,
    )


@functools.cache
def _reader() -> TypeAdapter[Any]:
    # Before Python 3.12 pydantic does not accept a TypedDict of `typing`, so this makes one of `typing_extensions`.
    typed_dict: Any = typing_extensions.TypedDict
    model = typed_dict("ModelOptions", typing.get_type_hints(ModelOptions), total=False)
    model.__pydantic_config__ = ConfigDict(strict=True)
    return TypeAdapter(model)
