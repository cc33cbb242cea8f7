"""Calls of language models: the page appears with the first of them, and shows all that is known as text."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from qtasks.protocol.messages import State
from tests.console.test_every_page import violations
from tests.support.browsing.browser import HEIGHT, NARROW, ConsolePage
from tests.support.browsing.world import Account, World
from tests.support.running import Answer, Endpoint, Received

PROMPT = "Say <img src=x onerror=alert(1)> twice"


def answered(request: Received) -> Answer:
    asked = json.loads(request.body)
    message = {"role": "assistant", "content": f"<b>{asked['messages'][-1]['content']}</b>"}
    usage = {"prompt_tokens": 1_234, "completion_tokens": 56}
    answer = {"model": asked["model"], "choices": [{"message": message}], "usage": usage}
    return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


@pytest.fixture
def provider() -> Iterator[Endpoint]:
    endpoint = Endpoint(answered)
    yield endpoint
    endpoint.close()


def ask(account: Account, shop: World, provider: Endpoint, *, model: str = "small-1") -> str:
    """A request to the model, whose answer has arrived; its message id."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    body = json.dumps({"model": model, "messages": messages}).encode()
    url = f"{provider.url}/v1/chat/completions"
    message_id = account.publish(url, body, Callback=f"{shop.endpoint.url}/answered")
    shop.broker.wait_for(State.DELIVERED, message_id)
    return message_id


def test_the_page_is_there_once_a_model_was_asked(
    own: ConsolePage, account: Account, shop: World, provider: Endpoint, axe: str
) -> None:
    page = own.open("llm")
    expect(page.get_by_text("No call of a language model is stored.")).to_be_visible()
    expect(page.get_by_role("link", name="Language models")).to_have_count(0)
    ask(account, shop, provider)
    page.reload()
    page.get_by_role("link", name="Language models").click()
    sums, calls = page.get_by_role("table", name="By model"), page.get_by_role("table", name="Calls")
    expect(sums.locator("tbody tr")).to_contain_text(["small-1"])
    expect(sums.locator("tbody td[data-title='Prompt tokens']")).to_have_text("1,234")
    expect(calls.locator("tbody tr")).to_have_count(1)
    expect(calls.locator("tbody td[data-title='Answer went to']")).to_contain_text("/answered")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page, axe) == []
    page.set_viewport_size({"width": NARROW, "height": HEIGHT})
    assert own.overflow == 0


def test_the_page_of_a_message_shows_prompts_and_answer_as_text(
    own: ConsolePage, account: Account, shop: World, provider: Endpoint, axe: str
) -> None:
    page = own.open(f"messages/{ask(account, shop, provider)}")
    conversation = page.get_by_role("region", name="Conversation")
    expect(conversation.locator("h3")).to_have_text(["system", "user", "answer"])
    expect(conversation.locator("pre")).to_have_text(["Be brief.", PROMPT, f"<b>{PROMPT}</b>"])
    expect(conversation).to_contain_text("1,234 tokens in, 56 out")
    assert violations(page, axe) == []
    page.set_viewport_size({"width": NARROW, "height": HEIGHT})
    assert own.overflow == 0
