"""The HTTP side of the tasks: the dispatcher as a FastAPI router, and results over HTTP."""
