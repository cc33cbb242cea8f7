"""Steps of a flow as JSON: what is written is read again, by this version and by earlier ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtasks.tasks.flow.steps import Step

TEXTS = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
STEPS = st.builds(
    Step,
    task=TEXTS,
    options=st.dictionaries(TEXTS, TEXTS, max_size=3),
    args=st.lists(JSON, max_size=3),
    kwargs=st.dictionaries(TEXTS, JSON, max_size=3),
    pickled=st.none() | TEXTS,
    immutable=st.booleans(),
    is_llm=st.booleans(),
    queue=st.none() | TEXTS,
    retries=st.none() | st.integers(0, 999),
    expires_ms=st.none() | st.integers(0),
    jitter=st.floats(0, 1),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a machine under load makes them slowly
@given(STEPS)
def test_a_step_survives_the_way_through_json(step: Step) -> None:
    assert Step.from_json(json.loads(json.dumps(step.to_json()))) == step


FIRST_FORM: dict[str, Any] = {
    "task": "add",
    "args": [10],
    "kwargs": {"b": 3},
    "fixed": True,
    "asks": True,
    "queue": "q",
    "options": {"Upstash-Method": "POST", "Upstash-Delay": "60s"},
    "retries": 0,
    "expires_ms": 5,
    "jitter": 0.0,
}
"""A step as version 0.1.0 wrote it."""


def test_the_form_of_the_first_version_is_read_and_written() -> None:
    step = Step.from_json(FIRST_FORM)
    assert step == Step(
        task="add",
        args=[10],
        kwargs={"b": 3},
        immutable=True,
        is_llm=True,
        queue="q",
        options={"Upstash-Method": "POST", "Upstash-Delay": "60s"},
        retries=0,
        expires_ms=5,
    )
    assert json.dumps(step.to_json()) == json.dumps(FIRST_FORM)


def test_what_is_not_set_is_not_written() -> None:
    step = Step(task="add", options={})
    assert step.to_json() == {"task": "add", "args": [], "kwargs": {}, "options": {}, "jitter": 0.0}


@pytest.mark.parametrize("missing", ["task", "options"])
def test_a_step_without_its_task_or_its_options_is_refused(missing: str) -> None:
    with pytest.raises(KeyError, match=missing):
        Step.from_json({name: value for name, value in FIRST_FORM.items() if name != missing})
