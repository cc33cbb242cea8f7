"""Calls of language models in an environment: answered by the test, the echo or a recording, and seen as calls."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from qtasks import QTasks, chain
from qtasks.llm import ChatMessage, openai, upstash, user
from qtasks.testing import Environment
from qtasks.testing.llm import fake_llm, refused

OPENAI = "https://api.openai.com/"


class Summary(BaseModel):
    title: str


@pytest.fixture
def stored() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def tasks(stored: list[tuple[str, str]]) -> QTasks:
    tasks = QTasks()

    @tasks.llm(provider=openai(), model="gpt-4o-mini", output=Summary)
    def summarise(text: str) -> list[ChatMessage]:
        return [user(f"Summarise: {text}")]

    @summarise.on_completion
    async def store(summary: Summary, text: str) -> None:
        stored.append((summary.title, text))

    @tasks.llm(provider=upstash(), model="any")
    def chat(text: str) -> list[ChatMessage]:
        return [user(text)]

    @tasks.task
    def shout(answer: str) -> str:
        return answer.upper()

    return tasks


def test_a_model_that_the_test_made_answers(tasks: QTasks, qtasks: Environment, stored: list[tuple[str, str]]) -> None:
    model = fake_llm(Summary(title="Short"))
    qtasks.use_model(model)
    summarise = tasks.tasks["summarise"]
    result = summarise.delay("a long text")
    [call] = qtasks.assert_enqueued(summarise, "a long text")
    assert call.request is not None
    assert call.request["model"] == "gpt-4o-mini"
    assert qtasks.drain() == 2  # the model, then the completion
    assert stored == [("Short", "a long text")]
    assert result.get() == Summary(title="Short")
    assert model.asked[0].text == "Summarise: a long text"
    assert len(qtasks.sent) == 1
    assert qtasks.pending == []


def test_a_function_of_the_request_answers_for_an_address(tasks: QTasks, qtasks: Environment) -> None:
    qtasks.answer(OPENAI, fake_llm(lambda asked: Summary(title=asked.model)))
    result = tasks.tasks["summarise"].delay("x")
    qtasks.drain()
    assert result.get() == Summary(title="gpt-4o-mini")


def test_a_provider_that_nobody_answers_for_ends_in_the_dead_letters(tasks: QTasks, qtasks: Environment) -> None:
    tasks.tasks["summarise"].delay("x")
    qtasks.drain()
    assert [dead.task for dead in qtasks.dlq] == ["summarise"]
    assert f'qtasks.answer("{OPENAI}v1/chat/completions", ...)' in qtasks.dlq[0].error


def test_a_model_that_is_busy_is_asked_again_as_time_passes(
    tasks: QTasks, qtasks: Environment, stored: list[tuple[str, str]]
) -> None:
    qtasks.use_model(fake_llm(refused(429, "slow down"), Summary(title="At last")))
    tasks.tasks["summarise"].delay("x")
    qtasks.drain()
    assert stored == []
    assert len(qtasks.pending) == 1
    qtasks.advance(minutes=1)
    assert stored == [("At last", "x")]
    assert len(qtasks.sent) == 1


def test_answers_that_do_not_fit_are_repaired_within_the_same_call(
    tasks: QTasks, qtasks: Environment, stored: list[tuple[str, str]]
) -> None:
    qtasks.use_model(fake_llm("no JSON", Summary(title="Now it fits")))
    tasks.tasks["summarise"].delay("x")
    qtasks.advance(minutes=1)
    assert stored == [("Now it fits", "x")]
    assert len(qtasks.sent) == 1


def test_the_brokers_own_model_is_an_echo_and_flows_go_through_it(tasks: QTasks, qtasks: Environment) -> None:
    chat, shout = tasks.tasks["chat"], tasks.tasks["shout"]
    result = chain(chat.s("hello"), shout.s()).delay()
    qtasks.drain()
    assert result.get().endswith("YOU SAID: HELLO")
    assert [call.task for call in qtasks.sent] == ["chat", "shout"]


def test_what_the_model_is_told_can_be_asked_for(tasks: QTasks, qtasks: Environment) -> None:
    summarise = tasks.tasks["summarise"]
    summarise.using(model="gpt-4o").delay("x")  # type: ignore[call-arg]  # of an LLM task, which the registry hides
    qtasks.assert_enqueued(summarise.using(model="gpt-4o"))  # type: ignore[call-arg]
    with pytest.raises(AssertionError, match=r"- model='gpt-4o-mini'\n  \+ model='gpt-4o'"):
        qtasks.assert_enqueued(summarise.using(model="gpt-4o-mini"), "x")  # type: ignore[call-arg]


def test_a_call_that_is_too_large_for_a_header_is_seen_whole(tasks: QTasks, qtasks: Environment) -> None:
    text = "word " * 5000
    tasks.tasks["summarise"].delay(text)
    assert qtasks.assert_enqueued("summarise")[0].arguments == {"text": text}
