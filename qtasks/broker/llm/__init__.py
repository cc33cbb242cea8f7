"""The language model behind the chat endpoint: an OpenAI-compatible server, the built-in echo, or a fake for tests."""
