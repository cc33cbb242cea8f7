"""The form that an answer has to have: what is asked of the model, and what is made of what it says."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from qtasks.error_codes import ErrorCode
from qtasks.errors import DefinitionError, OutputError
from qtasks.tasks.encode.annotations import WIRE, adapter, type_name

if TYPE_CHECKING:
    from qtasks.tasks.llm.provider_apis import ModelAnswer

T = TypeVar("T")

MAX_COMPLAINTS = 8
"""Mistakes that a model is told of at once."""

_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
_FENCE = "```"


class Output(Generic[T]):
    """The type of an answer: a class whose JSON is an object, or ``str`` for text as it comes."""

    def __init__(self, annotation: Any, *, task: str) -> None:
        self.annotation = annotation
        self._task = task

    @property
    def is_text(self) -> bool:
        """Whether nothing is asked of the answer."""
        return self.annotation is str

    @property
    def name(self) -> str:
        """What providers are told that it is called."""
        return _NOT_A_NAME.sub("_", type_name(self.annotation))[:64]

    @functools.cached_property
    def adapter(self) -> TypeAdapter[T]:
        """Reads and writes it. Raises DefinitionError."""
        return adapter(self.annotation, where=f"{self._task}: the output")

    @functools.cached_property
    def schema(self) -> Mapping[str, Any]:
        """Its JSON schema. Raises DefinitionError for a type whose JSON is no object: providers want one."""
        schema = self.adapter.json_schema()
        root = schema
        if (reference := schema.get("$ref", "")).startswith("#/$defs/"):
            root = schema["$defs"][reference.removeprefix("#/$defs/")]
        if root.get("type") != "object":
            raise DefinitionError(
                f"{self._task}: the output {type_name(self.annotation)} is no object in JSON, which providers want",
                fix="put it into a pydantic model: class Answer(BaseModel): value: ...",
                code=ErrorCode.MODEL_OUTPUT_TYPE_INVALID,
            )
        return schema

    def complaint(self, wrong: str) -> str:
        """What the model is told of an answer that is `wrong`. The schema again: not every server passes it on."""
        schema = json.dumps(self.schema, ensure_ascii=False)
        return f"{wrong}\n\nAnswer again, with nothing but JSON that fits this schema:\n{schema}"

    def read(self, answer: ModelAnswer) -> T:
        """The answer in its type. Raises OutputError saying what does not fit."""
        text = answer.text
        if self.is_text:
            return self.adapter.validate_python(text)
        try:
            return self.adapter.validate_json(_unfenced(text), context=WIRE)
        except ValidationError as error:
            complaints = error.errors(include_url=False, include_input=False)
            said = "; ".join(_complaint(complaint) for complaint in complaints[:MAX_COMPLAINTS])
            more = len(complaints) - MAX_COMPLAINTS
            rest = f" (and {more} more)" if more > 0 else ""
            cut = "; it was cut off at max_tokens" if answer.cut_off else ""
            raise OutputError(
                f"the answer does not fit {type_name(self.annotation)}: {said}{rest}{cut}", text=text
            ) from None


def _unfenced(text: str) -> str:
    """What stands in a block of code, if `text` is one."""
    inside = text.strip()  # an expression would look at every line break again and again
    if not (inside.startswith(_FENCE) and inside.endswith(_FENCE)):
        return text
    _, _, inside = inside.partition("\n")
    return inside.removesuffix(_FENCE)


def _complaint(error: ErrorDetails) -> str:
    path = ".".join(map(str, error["loc"]))
    return f"{path}: {error['msg']}" if path else error["msg"]
