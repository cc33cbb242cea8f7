"""A conversation with a language model, as tasks: the broker sends the requests, and no thread of ours waits for them.

    python examples/llm_chat.py

The broker runs inside this process. Unless a model is configured, its built-in echo answers, so the example runs
offline. For a real model name an OpenAI-compatible server (Ollama, vLLM, llama.cpp), or set OPENAI_API_KEY:

    QTASKS_LLM_URL=http://127.0.0.1:11434/v1 CHAT_MODEL=llama3.2 python examples/llm_chat.py
    OPENAI_API_KEY=sk-... CHAT_MODEL=gpt-4o-mini python examples/llm_chat.py
"""

import os
from collections import defaultdict

from pydantic import BaseModel

from qtasks import Embedded, QTasks, TaskEvent, injected
from qtasks.llm import ChatMessage, Usage, assistant, openai, system, upstash, user

tasks = QTasks(embedded=Embedded(":memory:"))
provider = openai() if os.environ.get("OPENAI_API_KEY") else upstash()
model = os.environ.get("CHAT_MODEL", "any")
chats: dict[str, list[ChatMessage]] = defaultdict(list)  # an application would use a database


class Minutes(BaseModel):
    """The required form of the answer. An answer of another form is requested once more."""

    topic: str
    decisions: list[str]


@tasks.llm(provider=provider, model=model, temperature=0.2, key="chat", parallelism=2)
def reply(chat: str, text: str) -> list[ChatMessage]:
    return [system("You are brief and kind."), *chats[chat], user(text)]


@reply.on_completion  # a task like any other: retried, run once for each answer
def remember(answer: str, chat: str, text: str, *, usage: Usage = injected) -> None:
    chats[chat] += [user(text), assistant(answer)]
    print(f"you       {text}")
    print(f"{usage.model:9} {answer}")


@tasks.llm(provider=provider, model=model, output=Minutes)
def minutes(chat: str) -> list[ChatMessage]:
    return [*chats[chat], user("Write the minutes of this conversation.")]


@reply.on_failure
@minutes.on_failure
def gave_up(event: TaskEvent) -> None:
    print(f"{event.context.task} failed: {event.reason}")


def main() -> None:
    with tasks:
        for text in ("Shall we meet on Friday?", "At ten, then."):
            reply.delay("chat-1", text).get(timeout=60)  # waits, so that the messages stay in order
        written = minutes.delay("chat-1").get(timeout=60)
        print(f"topic     {written.topic}")
        print(f"decisions {written.decisions}")
        print(f"messages  {len(chats['chat-1'])}")


if __name__ == "__main__":
    main()
