"""The work as an application of each queue: imported by that queue's own interpreter, with the standard library and it.

Each module offers `send(work, task)`, plain or as a coroutine function. It may offer `fill(work, tasks)`, a quicker way
to make a backlog, and must offer `connected()`, an asynchronous context manager, when `send` is a coroutine function.
"""
