"""The work as an application of each queue, imported by that queue's own interpreter.

These modules import only the standard library and their queue.

Each module offers `send(work, task)`, plain or as a coroutine function. It may offer `fill(work, tasks)`, a faster way
to store a backlog, and must offer `connected()`, an asynchronous context manager, when `send` is a coroutine function.
"""
