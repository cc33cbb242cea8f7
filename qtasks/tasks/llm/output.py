"""The required type of a model's answer: its JSON schema for the request, and the validation of the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError, OutputError
from qtasks.lazy import lazy_property
from qtasks.tasks.encode.annotations import adapter, type_name
from qtasks.tasks.encode.wire_types import WIRE
from qtasks.tasks.llm.chat_messages import ModelAnswer

T = TypeVar("T")

MAX_COMPLAINTS = 8
"""Largest number of errors in one complaint to a model."""

_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
_FENCE = "```"


class Output(Generic[T]):
    """The type of a model's answer: a class whose JSON is an object, or ``str`` for the text itself."""

    def __init__(self, annotation: Any, *, task: str) -> None:
        self.annotation = annotation
        self._task = task

    @property
    def is_text(self) -> bool:
        """True if any text is a valid answer."""
        return self.annotation is str

    @property
    def name(self) -> str:
        """The name of the type in requests: at most 64 of the characters that providers allow."""
        return _NOT_A_NAME.sub("_", type_name(self.annotation))[:64]

    @lazy_property
    def adapter(self) -> TypeAdapter[T]:
        """Validates an answer and produces its schema. Raises DefinitionError for an unsupported type."""
        return adapter(self.annotation, where=f"{self._task}: the output")

    @lazy_property
    def schema(self) -> Mapping[str, Any]:
        """The JSON schema. Raises DefinitionError for a type whose JSON is not an object, which providers require."""
        schema = self.adapter.json_schema()
        root = schema
        if (reference := schema.get("$ref", "")).startswith("#/$defs/"):
            root = schema["$defs"][reference.removeprefix("#/$defs/")]
        if root.get("type") != "object":
            raise DefinitionError(
                f"{self._task}: the output {type_name(self.annotation)} is not an object in JSON, as providers require",
                fix="put it into a pydantic model: class Answer(BaseModel): value: ...",
                code=ErrorCode.MODEL_OUTPUT_TYPE_INVALID,
            )
        return schema

    def complaint(self, error_text: str) -> str:
        """The next message to a model whose answer was wrong.

        It repeats the schema, because not every server passes the schema of the request on to the model.
        """
        schema = json.dumps(self.schema, ensure_ascii=False)
        return f"{error_text}\n\nAnswer again, with nothing but JSON that fits this schema:\n{schema}"

    def read(self, answer: ModelAnswer) -> T:
        """The answer as a value of the type. Raises OutputError naming what does not fit."""
        text = answer.text
        if self.is_text:
            return self.adapter.validate_python(text)
        try:
            return self.adapter.validate_json(_without_fence(text), context=WIRE)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
            complaints = "; ".join(_complaint(details) for details in errors[:MAX_COMPLAINTS])
            omitted = len(errors) - MAX_COMPLAINTS
            omission = f" (and {omitted} more)" if omitted > 0 else ""
            cut_off = "; it was cut off at max_tokens" if answer.cut_off else ""
            raise OutputError(
                f"the answer does not fit {type_name(self.annotation)}: {complaints}{omission}{cut_off}", text=text
            ) from None


def _without_fence(text: str) -> str:
    """The content of a fenced code block if `text` is one; otherwise `text`."""
    inside = text.strip()  # string methods, because a regular expression can take quadratic time here
    if not (inside.startswith(_FENCE) and inside.endswith(_FENCE)):
        return text
    _, _, inside = inside.partition("\n")
    return inside.removesuffix(_FENCE)


def _complaint(error: ErrorDetails) -> str:
    path = ".".join(map(str, error["loc"]))
    return f"{path}: {error['msg']}" if path else error["msg"]
