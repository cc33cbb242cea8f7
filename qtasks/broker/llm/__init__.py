"""The language model behind the chat endpoint: an OpenAI-compatible server, an echo, or a fake for tests."""
