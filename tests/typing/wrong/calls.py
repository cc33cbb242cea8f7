"""Calls that are wrong: both checkers must report exactly the lines marked with `# wrong`."""

from qtasks import (
    BackgroundTasks,
    QTasks,
    RetryAfter,
    RetryPolicy,
    Snooze,
    TaskContext,
    TaskResult,
    chain,
    chord,
    group,
    injected,
    task,
)
from qtasks.llm import ChatMessage, openai, user
from qtasks.testing import Environment

tasks = QTasks()


@tasks.task
def add(a: int, b: int = 2) -> int:
    return a + b


@tasks.task(retries=5)
async def greet(name: str, *, ctx: TaskContext = injected) -> str:
    return name


@task
def module_level(a: int) -> int:
    return a


add.delay("1")  # wrong
add.using(search="a")  # wrong
add.delay()  # wrong
add.enqueue("1")  # wrong
add.delay(1, 2, 3)  # wrong
add.delay(1, c=3)  # wrong
add.using(retries=1).delay("1")  # wrong
add.using(retires=1)  # wrong
add.using(retries="1")  # wrong
add.using(eta="tomorrow")  # wrong
greet.delay(1)  # wrong
greet.delay(nam="Ada")  # wrong
module_level.delay("1")  # wrong
add.map(1)  # wrong
add.apply_async((1,), priority=1)  # wrong
add.using(rate=1.5)  # wrong

number: str = add.delay(1).get()  # wrong
result: TaskResult[str] = add.delay(1)  # wrong
text: int = greet.delay("Ada").get()  # wrong


add.delay(1).get(timeout="soon")  # wrong
add.result(1)  # wrong
other_number: str = add.delay(1).return_value  # wrong
number_of_attempts: str = add.delay(1).attempts  # wrong
greet.delay("Ada", ctx=1)  # wrong
chain(add)  # wrong
group(1)  # wrong
chain(add.s(1)).using(retries=3)  # wrong
group(add.s(1)).delay().wait("soon")  # wrong
chord(add.s(), group(add.s()))  # wrong
RetryPolicy(max="1")  # wrong
RetryPolicy(give_up_on="ValueError")  # wrong
Snooze()  # wrong
RetryAfter(None)  # wrong


@add.on_failure  # wrong
def told(event: str) -> None: ...


def in_a_task(ctx: TaskContext) -> None:
    ctx.attempt = 2  # wrong
    ctx.progress("half")  # wrong
    left: int = ctx.call_id  # wrong
    ctx.retry()  # wrong
    del left


async def wrong() -> None:
    await add.adelay("1")  # wrong
    await greet.adelay()  # wrong
    await greet.aenqueue(1)  # wrong
    value: int = await greet("Ada")  # wrong
    other: int = await (await greet.adelay("Ada")).aget()  # wrong
    del value, other


@tasks.task(retries="5")  # wrong
def one() -> None: ...


@tasks.task(delay="5s")  # wrong
def two() -> None: ...


@tasks.cron("0 9 * * *", overlap="queue")  # wrong
def three() -> None: ...


@tasks.cron(9)  # wrong
def four() -> None: ...


@tasks.every("1h", retires=1)  # wrong
def five(n: int = 1) -> int:
    return n


five.delay("1")  # wrong
add.schedule("0 9 * * *", cron="x")  # wrong
add.schedule(every=[1])  # wrong
add.schedule("0 9 * * *", tz=1)  # wrong
tasks.schedules.sync(prune="yes")  # wrong


@tasks.task(serializer="yaml")  # wrong
def six() -> None: ...


@tasks.task(serializer="pickle")
def seven(data: set[bytes]) -> None: ...


seven.delay(["x"])  # wrong
seven.using(serializer="json")  # wrong
tasks.results_router(errors=True)  # wrong
QTasks(tokn="x")  # wrong
QTasks(threads="x")  # wrong


class Summary:
    title: str


@tasks.llm(provider=openai(), model="gpt", output=Summary)
def summarise(text: str) -> list[ChatMessage]:
    return [user(text)]


@summarise.on_completion  # wrong
def store(summary: str, text: str) -> None: ...


@tasks.llm(model="gpt")
def say(text: str) -> list[ChatMessage]:
    return [user(text)]


@say.on_completion(retries=1)  # wrong
def said(answer: int) -> None: ...


summarise.delay(1)  # wrong
summarise.delay("abc", "def")  # wrong
summarise.using(temperature="hot")  # wrong
summarise.using(temprature=1)  # wrong
summary: str = summarise.delay("abc").get()  # wrong
answer: Summary = say.delay("abc").get()  # wrong


@tasks.llm(provider=openai(), model="gpt", output=Summary)  # wrong
def no_messages(text: str) -> str:
    return text


@tasks.llm(provider="openai", model="gpt")  # wrong
def no_provider(text: str) -> list[ChatMessage]:
    return [user(text)]


say.on_completion(queue="q")  # wrong
user(1)  # wrong


def after_the_response(background: BackgroundTasks) -> None:
    background.add_task(add, "x")  # wrong
    background.add_task(add)  # wrong
    background.add_task(print, 1)  # wrong


def in_a_test(qtasks: Environment) -> None:
    qtasks.advance(hous=3)  # wrong
    qtasks.advance(b"3h")  # wrong
    qtasks.assert_enqueued(3)  # wrong
    qtasks.fail_next(add, status="503")  # wrong
    Environment(tasks, mode="eager")  # wrong


information = add.delay(1).info  # wrong
add.delay(1).get(interval=1)  # wrong
add.delay_on_commit(1)  # wrong
tasks.conf.timezone = "Europe/Berlin"  # wrong
QTasks("shop")  # wrong
tasks.send_task("add", 1)  # wrong
add.apply_async((1,), priority=1)  # wrong
