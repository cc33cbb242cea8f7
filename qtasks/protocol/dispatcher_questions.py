"""What the broker's console asks a dispatcher, and what it answers (docs/protocol.md 5.17, 5.18, 5.20). Pure.

Extensions of the protocol between this broker and the framework's dispatcher. The broker asks with a signed POST to a
name beside the tasks; the answer is one JSON object. Each prefix answers for itself, so that several applications on
one broker never replace each other's answers. `MANIFEST` asks, without a body, which tasks and schedules there are;
`CALL` asks what is known of one call; `SOURCE` asks for the lines of code around places where exceptions were raised.
"""

from __future__ import annotations

from typing import Any, Final, NotRequired, TypedDict

NAMES: Final = "_tasks"
"""Asks for the names of the tasks alone: a JSON list."""
MANIFEST: Final = "_manifest"
CALL: Final = "_call"
SOURCE: Final = "_source"
"""The last path segment of the URL, where a delivery has the name of its task."""
VERSION: Final = 1
TIMEOUT_MS: Final = 5_000
"""Limit for the whole request, milliseconds."""
MAX_QUESTION: Final = 1_024
"""Bytes of a question about a call."""
MAX_SOURCE_QUESTION: Final = 8_192
"""Bytes of a question for lines of code."""
MAX_PLACES: Final = 24
"""Places of a question at most; an answer leaves out further ones."""
MAX_RESULT: Final = 65_536
"""Bytes of a result that an answer has; of a larger one only its beginning."""


class Parameter(TypedDict):
    """One parameter of a task that its caller passes."""

    name: str
    type: str
    """The annotation as its author wrote it; ``any`` without one."""
    required: bool
    byPosition: bool
    """True if it must be passed by position."""
    schema: NotRequired[dict[str, Any]]
    """The JSON schema of its values; absent if its type has none."""
    default: NotRequired[Any]
    """Absent if it has none, or one that is not JSON, or one that is secret."""


class ManifestSchedule(TypedDict):
    """One schedule that the code declares."""

    id: str
    name: str
    cron: str
    labels: list[str]
    """Among them the fingerprint of the whole schedule: another one at the broker means that the two differ."""


class ManifestTask(TypedDict):
    """One task."""

    name: str
    aliases: list[str]
    kind: str
    """``task``, or ``llm``: the function makes a request to a language model."""
    module: str
    doc: str
    signature: str
    """Such as ``(a: int, b: int = 1) -> int``."""
    parameters: list[Parameter]
    searchable: list[str]
    """Parameters by whose values messages can be searched."""
    headers: list[list[str]]
    """The header lines of a publish of one call without an id."""
    queue: str | None
    envelope: str
    """The body of such a call, JSON, without arguments."""
    refusal: str | None
    """Why a call cannot be made outside of the application; None if it can."""
    schedules: list[ManifestSchedule]


class Manifest(TypedDict):
    """What a dispatcher answers."""

    v: int
    package: str
    """The version of the package that the dispatcher runs."""
    python: NotRequired[str]
    """Its version of Python."""
    tasks: list[ManifestTask]


class CallQuestion(TypedDict):
    """The body of a question about a call."""

    v: int
    id: str
    """The id of the call, or of its message if its body has no id."""
    flow: NotRequired[str]
    """The id of the flow's record, from the envelope of the call."""


class CallResult(TypedDict):
    """What a call returned."""

    form: str
    """``json``; ``pickle``, ``coded`` or ``encrypted``, which only the application can read; ``redacted``."""
    bytes: int
    """The size of the stored text."""
    text: NotRequired[str]
    """JSON, with the values of secret names masked; its beginning if `isCut`. For the form ``json`` only."""
    isCut: NotRequired[bool]


class ReportedProgress(TypedDict):
    """The progress that a running call has reported."""

    done: float
    total: float | None
    note: str


class CallRecord(TypedDict):
    """What the result backend knows of a call."""

    id: str
    task: str
    state: str
    """A word of `ResultStatus`, such as ``running`` or ``succeeded``."""
    attempt: int
    updatedMs: int
    progress: ReportedProgress | None
    result: CallResult | None
    error: str | None


class FlowStep(TypedDict):
    """A call of a flow."""

    task: str
    id: str
    state: str
    """As in `CallRecord`; ``queued`` also if nothing is recorded yet."""


class FlowGroup(TypedDict):
    """Sequences of a flow that run side by side."""

    members: list[list[Any]]
    """Each a sequence of steps, groups and `LeftOut`; one that is left out is a list of one `LeftOut`."""
    collect: str
    """``all``, or ``successes``: the flow goes on with what worked."""


class LeftOut(TypedDict):
    """Parts of a long flow that are only counted."""

    leftOut: dict[str, int]
    """How many calls there are in each state."""


class FlowReport(TypedDict):
    """The flow that a call belongs to."""

    id: str
    state: str
    sequence: list[FlowStep | FlowGroup | LeftOut]


class CallReport(TypedDict):
    """What a dispatcher answers about a call."""

    v: int
    results: bool
    """False if no result backend is configured."""
    call: CallRecord | None
    """None if nothing is recorded."""
    flow: FlowReport | None


class SourceFrame(TypedDict):
    """Lines of a function around a place."""

    at: str
    """The place, as in the answer of a failed attempt."""
    first: int
    """The number of the first line."""
    lines: list[str]
    """Without what follows the names of secrets."""


class SourceReport(TypedDict):
    """What a dispatcher answers about places. A place of which it has no lines is left out."""

    v: int
    frames: list[SourceFrame]
