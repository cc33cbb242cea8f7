"""Values over the wire without a broker: as an argument of a call, and as a result."""

from __future__ import annotations

import json
from typing import Any

from qtasks.tasks.codec import AS_JSON
from qtasks.tasks.encode import envelope as envelopes
from qtasks.tasks.encode import result_codec
from qtasks.tasks.encode.encoding import Encoding
from qtasks.tasks.encode.parameter_reader import read_parameters
from qtasks.tasks.encode.parameters import TaskParameters
from qtasks.tasks.encode.pickling import Purpose


def taking(annotation: Any) -> TaskParameters:
    """The parameters of a task that takes one `value`."""

    def work(value: Any) -> None: ...

    work.__annotations__["value"] = annotation
    return read_parameters("work", work)


def as_argument(annotation: Any, value: Any) -> Any:
    """What the task gets."""
    made = taking(annotation)
    plain = made.to_json(made.check(made.bind((value,), {})))
    read = envelopes.decode(envelopes.encode(envelopes.Envelope("call_1", (), plain)))
    return made.check(made.bind(read.args, read.kwargs), from_wire=True)["value"]


def as_result(annotation: Any, value: Any) -> Any:
    """What the caller gets."""

    def work() -> None: ...

    work.__annotations__["return"] = annotation
    made = read_parameters("work", work)
    text = result_codec.dump(made, value, Encoding(AS_JSON, _no_keys), Purpose.result("work", "call_1"))
    assert made.result is not None
    return made.result.read(json.loads(text))


def _no_keys() -> Any:
    raise AssertionError("nothing is encrypted here")
