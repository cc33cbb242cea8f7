"""A code base written for Celery, of which only the imports are changed: every line works, or names what to write.

A comment `# -> text` at the end of the first line of a statement is what its error must contain.
"""

from __future__ import annotations

import ast
from typing import Any

import pytest

from qtasks import QTasks
from qtasks.errors import QTasksError

CODE = """
import functools
import logging as celery_logging
from datetime import UTC, datetime, timedelta
from threading import Event

from qtasks import Embedded, QTasks as Celery, SoftTimeLimitExceeded, chain, chord, group

# --- shop/celery.py

app = Celery("shop", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")  # -> QTASKS_RESULTS
app = Celery(embedded=Embedded(":memory:"))
app.config_from_object("shop.settings", namespace="CELERY")  # -> QSTASH_URL
app.autodiscover_tasks()  # -> import the modules with tasks
app.conf.task_serializer = "json"  # -> leave it out
app.conf.task_default_queue = "default"  # -> @tasks.task(queue="...")
app.conf.update(task_track_started=True, task_time_limit=30 * 60)  # -> @tasks.task(timeout="30s")
app.conf["worker_prefetch_multiplier"] = 1  # -> leave it out
app.conf.CELERY_TASK_ROUTES = {"thumbnails": {"queue": "images"}}  # -> @tasks.task(queue="images") above thumbnails

# --- shop/beat.py

app.conf.beat_schedule = {  # -> @tasks.every("1d", kwargs={'days': 1}) above digest
    "digest": {"task": "digest", "schedule": timedelta(days=1), "kwargs": {"days": 1}},
}
app.on_after_configure.connect(lambda sender, **kwargs: None)  # -> @tasks.cron
app.add_periodic_task(3600.0, None, name="hourly")  # -> @tasks.cron

# --- shop/tasks.py

logger = celery_logging.getLogger(__name__)

@app.task
def charge(order, amount=10):
    if order == 13:
        raise ValueError("no such order")
    return order * amount

@app.task(name="shop.receipt")
def receipt(charged, order=None):
    logger.info("receipt %s", charged)
    return f"receipt {charged}"

@app.task
def total(amounts):
    return sum(amounts)

@app.task
def alarm(request, exc):
    alarms.append((request, exc))
    alarmed.set()

@app.task(bind=True, max_retries=5, default_retry_delay=60)  # -> @tasks.task(retries=5, retry_delay=60), and `ctx
def fetch(self, url):
    try:
        return url
    except OSError as error:
        raise self.retry(exc=error, countdown=2 ** self.request.retries)

@app.task(bind=True)  # -> self.request.id is ctx.call_id
def which(self):
    return self.request.id

@app.task(autoretry_for=(OSError,), retry_backoff=True, retry_kwargs={"max_retries": 5})  # -> max=5, on=(OSError,)
def download(url): ...

@app.task(soft_time_limit=20, time_limit=30)  # -> timeout=30
def convert(path): ...

@app.task(soft_time_limit=20)  # -> ctx.should_stop
def transcode(path): ...

@app.task(soft_time_limit=20)
async def crawl(url):
    try:
        return url
    except SoftTimeLimitExceeded:
        return None

@app.task(ignore_result=True, acks_late=True, track_started=True)  # -> leave it out
def log_visit(page): ...

@app.task(rate_limit="100/h")  # -> rate="100/1h"
def ping(): ...

@app.task(base=object)  # -> @tasks.run_middleware
def with_base(): ...

# --- shop/views.py

alarms, alarmed = [], Event()
charge(1)
charge.delay(1, amount=2)
charge.apply_async((1,), {"amount": 3}, countdown=0.1, expires=60)
charge.apply_async(args=[1], eta=datetime.now(UTC) + timedelta(milliseconds=50), task_id="charge-1")
charge.apply_async((1,), queue="billing", retries=2)
charge.apply_async((1,), queue="billing", countdown=10)  # -> queue=None
charge.apply_async((1,), priority=9)  # -> key="..."
charge.apply_async((1,), routing_key="billing", exchange="shop")  # -> queue="..."
charge.apply_async((1,), retry=True, retry_policy={"max_retries": 3})  # -> leave it out
charge.apply_async((1,), soft_time_limit=5)  # -> @tasks.task(soft_time_limit=...)
charge.apply_async((1,), serializer="pickle")  # -> where the task is declared
charge.apply_async((1,), headers={"tenant": "a"})  # -> message.carrying
charge.apply_async((1,), ignore_result=True)  # -> leave it out
linked = charge.apply_async((4,), link=receipt.s(order=4), link_error=alarm.s())
failing = charge.apply_async((13,), retries=0, link=[receipt.s()], link_error=[alarm.s()])
charge.delay_on_commit(1)  # -> transaction.on_commit
functools.partial(charge.delay, 1)()
charge.apply(args=(1,))  # -> call it
charge.run(1)  # -> call it
charge.retry(countdown=5)  # -> RetryAfter
charge.request.id  # -> ctx.call_id
charge.update_state(state="PROGRESS", meta={"done": 1})  # -> ctx.progress
charge.subtask((1,))  # -> task.s(
charge.signature((1,), countdown=5)  # -> task.s(
charge.chunks([(1,), (2,)], 10)  # -> task.starmap
app.signature("charge", args=(1,))  # -> task.s(
app.send_task("charge", args=(1,), kwargs={"amount": 2}, countdown=0.1)
app.send_task("shop.elsewhere", args=[1, {"a": None}])
app.send_task("shop.elsewhere", args=[datetime.now(UTC)])  # -> would not arrive as it is

# --- canvas

summed = (group(charge.s(n) for n in range(3)) | total.s()).delay()
chained = chain(charge.s(2), receipt.s()).delay()
chorded = chord([charge.s(1), charge.s(2)], total.s()).delay()
assert summed.get(timeout=20) == 30
assert chained.get(timeout=20) == "receipt 20"
assert chorded.get(timeout=20) == 30

# --- results

result = app.AsyncResult("charge-1")
assert result.get(timeout=20) == 10
assert charge.AsyncResult("charge-1").get(timeout=20) == 10
assert result.ready() and result.successful() and not result.failed()
assert (result.state, result.result, result.status) == ("SUCCESS", 10, "succeeded")
result.status == "SUCCESS"  # -> result.state
result.status in ("FAILURE", "REVOKED")  # -> result.state
result.info  # -> result.progress
result.traceback  # -> result.error
result.task_id  # -> result.id
result.date_done  # -> result.finished_at
result.children  # -> keep the handle
result.forget()  # -> QTASKS_RESULT_TTL
result.revoke(terminate=True)  # -> result.cancel()
result.get(disable_sync_subtasks=False)  # -> .get(timeout=...)
assert str(failing.get(timeout=20, propagate=False).error) == "ValueError: no such order"
assert failing.state == "FAILURE"
app.control.revoke("charge-1", terminate=True)  # -> tasks.result(id).cancel()
app.control.purge()  # -> qtasks.qstash
app.control.inspect().active()  # -> qtasks.qstash
app.GroupResult.restore("x")  # -> tasks.result(id)
app.current_task  # -> current_context()
app.worker_main(["worker"])  # -> qtasks run
"""


def statements() -> list[Any]:
    """Each statement, with the number of its line for a name, and what its error must contain."""
    lines = CODE.splitlines()
    found = []
    for node in ast.parse(CODE).body:
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
        _, arrow, expected = lines[first - 1].partition("  # -> ")
        source = "\n" * (first - 1) + "\n".join(lines[first - 1 : node.end_lineno])
        found.append((source, expected if arrow else None))
    return found


def test_every_line_works_or_names_what_to_write() -> None:
    names: dict[str, Any] = {"__name__": "shop"}
    refused = 0
    try:
        for source, expected in statements():
            if expected is None:
                exec(source, names)
                continue
            with pytest.raises(QTasksError) as caught:
                exec(source, names)
            assert expected in str(caught.value), source.strip()
            refused += 1
        assert refused > 50
        assert names["linked"].get(timeout=20) == 40
        assert names["alarmed"].wait(20)
    finally:
        app: QTasks | None = names.get("app")
        if app is not None:
            app.close()
    assert names["alarms"] == [(names["failing"].id, "ValueError: no such order")]
