"""Any response of a provider becomes an answer or a qtasks error, never another exception."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from qtasks.errors import OutputError
from qtasks.tasks.llm import provider_apis
from qtasks.tasks.llm.output import Output
from qtasks.tasks.llm.provider_apis import AnthropicApi, OpenAIApi, ProviderApi


class Summary(BaseModel):
    title: str


NAMES = ["choices", "message", "content", "refusal", "finish_reason", "usage", "model", "type", "text", "input", "id"]
documents: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["text", "tool_use", "length", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=15,
)


@pytest.mark.parametrize("api", [OpenAIApi(), AnthropicApi()], ids=["openai", "anthropic"])
@given(document=documents)
def test_any_answer_is_read_or_refused(api: ProviderApi, document: Any) -> None:
    with contextlib.suppress(OutputError):
        answer = provider_apis.read_answer(api, document, "gpt")
        assert isinstance(answer.text, str)
        Output[Any](Summary, task="t").read(answer)


@given(st.text() | documents.map(json.dumps))
def test_any_text_is_read_or_refused(text: str) -> None:
    document = {"choices": [{"message": {"content": text}}]}
    answer = provider_apis.read_answer(OpenAIApi(), document, "gpt")
    assert Output[str](str, task="t").read(answer) == text
    with contextlib.suppress(OutputError):
        assert Output[Summary](Summary, task="t").read(answer).title


@pytest.mark.parametrize("text", ["```\n" + "\n" * 500_000, "```" * 200_000, "```", "``````", "```json\n", " ```\n```"])
def test_what_only_looks_like_a_block_of_code_is_refused_at_once(text: str) -> None:
    answer = provider_apis.read_answer(OpenAIApi(), {"choices": [{"message": {"content": text}}]}, "gpt")
    with pytest.raises(OutputError, match="Invalid JSON"):
        Output[Summary](Summary, task="t").read(answer)


def test_many_mistakes_are_not_all_told() -> None:
    class Many(BaseModel):
        numbers: list[int]

    text = json.dumps({"numbers": ["x"] * 20})
    answer = provider_apis.read_answer(OpenAIApi(), {"choices": [{"message": {"content": text}}]}, "gpt")
    with pytest.raises(OutputError, match=r"numbers\.7: Input should be a valid integer.* \(and 12 more\)") as caught:
        Output[Many](Many, task="t").read(answer)
    assert caught.value.text == text
