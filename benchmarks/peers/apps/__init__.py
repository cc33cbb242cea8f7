"""The work as an application of each queue, imported by that queue's own interpreter.

These modules import only the standard library and their queue.

Each module offers `send(work, task)`, plain or as a coroutine function;
with a plain one `asend` may be the other. It may offer `bulk(work, tasks)`, the queue's own way to enqueue many,
`backlog(work, tasks)`, a faster way to store many, and `connected()`, an asynchronous context manager around all.
"""
