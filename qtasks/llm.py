"""Language models as tasks: providers, chat messages, and the cost of an answer.

    from qtasks.llm import ChatMessage, openai, user

    @tasks.llm(provider=openai(), model="gpt-4o-mini", output=Summary)
    def summarise(text: str) -> list[ChatMessage]:
        return [user(f"Summarise: {text}")]

The function builds the request, and the broker sends it to the model, so no process of yours waits. The answer arrives
as a delivery, which runs the function of `summarise.on_completion`.
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
