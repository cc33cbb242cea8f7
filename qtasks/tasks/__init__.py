"""The framework: tasks, their calls and results, and the dispatcher. Knows the client, never the broker."""
