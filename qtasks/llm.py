"""Language models as tasks: providers, messages, and what an answer cost.

    from qtasks.llm import ChatMessage, openai, user

    @tasks.llm(provider=openai(), model="gpt-4o-mini", output=Summary)
    def summarise(text: str) -> list[ChatMessage]:
        return [user(f"Summarise: {text}")]

The function builds the request, the broker makes it, and the answer comes back as a delivery.
"""

from qtasks.tasks.llm.chat_messages import ChatMessage, Usage, assistant, system, user
from qtasks.tasks.llm.providers import Provider, anthropic, custom, openai, upstash

__all__ = [
    "ChatMessage",
    "Provider",
    "Usage",
    "anthropic",
    "assistant",
    "custom",
    "openai",
    "system",
    "upstash",
    "user",
]
