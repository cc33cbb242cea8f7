"""The same work on alternative queues, each in its own virtual environment."""
