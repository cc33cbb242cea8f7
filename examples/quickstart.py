"""The main features in one process: declare tasks, call them with `.delay()`, get the results.

    python examples/quickstart.py

A durable broker runs inside this process. Every task below is published, stored with an fsync, claimed,
signed, delivered as an HTTP request to the dispatcher, verified there, and run. The program ends by itself.
"""

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from qtasks import Embedded, NonRetryable, QTasks, TaskContext, TaskResult, injected
from qtasks.cli.dev.terminal import EventPrinter

logging.getLogger("qtasks").setLevel(logging.CRITICAL)  # the printer shows the same events as the log
folder = tempfile.TemporaryDirectory(prefix="qtasks-quickstart-")
printer = EventPrinter()
tasks = QTasks(embedded=Embedded(Path(folder.name, "tasks.db"), watch=printer.print_event))


@tasks.task
def add(a: int, b: int) -> int:
    return a + b


@tasks.task
async def greet(name: str) -> str:
    return f"hello {name}"


@tasks.task(retries=3, retry_delay="200ms")
def flaky(ctx: TaskContext = injected) -> str:
    if ctx.attempt < 3:
        raise ConnectionError("the mail server is away")
    return f"sent on attempt {ctx.attempt}"


@tasks.task
def charge(order_id: int) -> None:
    raise NonRetryable(f"order {order_id} vanished")


def main() -> None:
    began = time.monotonic()
    printer.base_url = tasks.settings.base_url or ""
    results: list[TaskResult[Any]] = [
        add.delay(2, 3),
        greet.delay("Ada"),
        add.using(delay="1s").delay(20, 22),
        flaky.delay(),
    ]
    failed = charge.delay(42)

    values = [result.get(timeout=8) for result in results]
    status = failed.status
    tasks.close()  # waits for running tasks

    print(f"\nresults  {values}")
    print(f"charge   {status}")
    print(f"{printer.tally} in {time.monotonic() - began:.1f} s")
    folder.cleanup()


if __name__ == "__main__":
    main()
