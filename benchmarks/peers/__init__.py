"""The same work on the queues people would use instead, each in a virtual environment of its own."""
