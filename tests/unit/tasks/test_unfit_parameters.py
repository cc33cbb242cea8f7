"""What cannot work is refused where it is declared, with what to write in its place."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, cast

import fastapi
import pytest
from fastapi import Body, Cookie, Depends, FastAPI, File, Form, Header, Path, Query, Request, Security, UploadFile
from fastapi.responses import JSONResponse
from fastapi.security import SecurityScopes
from pydantic import Field
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket
from typing_extensions import TypeAliasType

from qtasks import QTasks, TaskContext, injected
from qtasks.errors import DefinitionError
from qtasks.llm import ChatMessage, openai
from tests.support.tasks import application, deliver, envelope

pytestmark = pytest.mark.anyio


def refused(function: Callable[..., Any], **options: Any) -> DefinitionError:
    with pytest.raises(DefinitionError) as caught:
        QTasks().task(**options)(function)
    return caught.value


# --- methods


def test_a_method_is_refused_in_the_body_of_its_class() -> None:
    tasks = QTasks()
    with pytest.raises(DefinitionError, match=r"Mailer\.send is a method") as caught:

        class Mailer:
            @tasks.task
            def send(self, to: str) -> None: ...

    assert caught.value.code == "QT102"
    assert "top level of the module" in str(caught.value.fix)
    assert tasks.tasks == {}


def test_a_class_method_and_an_async_and_a_scheduled_method_are_refused_too() -> None:
    tasks = QTasks()
    for decorate in (lambda f: classmethod(tasks.task(f)), tasks.cron("0 9 * * *"), tasks.llm(model="m")):
        with pytest.raises(DefinitionError, match="is a method"):

            class Mailer:
                def send(cls, to: str = "") -> list[ChatMessage]:  # noqa: N805
                    return []

                send = cast("Any", decorate)(send)


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_a_static_method_below_the_decorator_says_which_order_works(kind: Any) -> None:
    def send(to: str) -> None: ...

    assert "@staticmethod above @tasks.task" in str(refused(kind(send)).fix)


def test_a_static_method_above_the_decorator_and_a_function_in_a_class_work() -> None:
    tasks = QTasks()

    class Jobs:
        @staticmethod
        @tasks.task
        def double(n: int) -> int:
            return 2 * n

        @tasks.task
        def triple(n: int) -> int:  # noqa: N805
            return 3 * n

    assert (Jobs.double(2), Jobs().double(2), Jobs.triple(2)) == (4, 4, 6)


def test_a_function_inside_a_function_may_call_its_first_parameter_self() -> None:
    tasks = QTasks()

    @tasks.task
    def send(self: str) -> str:
        return self

    assert send("x") == "x"


def test_bound_methods_and_classes_name_a_function_that_makes_the_object() -> None:
    class Mailer:
        def send(self) -> None: ...

    for thing in (Mailer().send, Mailer):
        assert "define a function that makes the object" in str(refused(thing).fix)


def test_what_contextlib_makes_of_a_generator_is_refused_as_the_generator_is() -> None:
    def opened() -> Iterator[int]:
        yield 1

    async def opened_async() -> AsyncIterator[int]:
        yield 1

    for thing in (contextlib.contextmanager(opened), contextlib.asynccontextmanager(opened_async)):
        assert "yields; a task returns one result" in refused(thing).message


# --- parts of a request


@pytest.mark.parametrize("part", [Header, Query, Cookie, Body, Form, File, Path])
def test_a_part_of_a_request_is_no_parameter(part: Any) -> None:
    def by_default(x: str = part()) -> None: ...

    def by_annotation(x: Annotated[str, part()]) -> None: ...

    # Their annotations are texts, and `part` is a name that is not in the module.
    by_annotation.__annotations__["x"] = Annotated[str, part()]
    for function in (by_default, by_annotation):
        error = refused(function)
        assert error.code == "QT108"
        assert f"parameter 'x' is {part.__name__}(), a part of a request" in error.message


def test_a_field_as_the_default_is_refused_and_in_an_annotation_it_works() -> None:
    def wrong(n: int = Field(gt=0)) -> None: ...

    def right(n: Annotated[int, Field(gt=0)] = 5) -> None: ...

    assert "Annotated[..., Field(...)]" in str(refused(wrong).fix)
    assert QTasks().task(right).parameters.defaults == {"n": 5}


UPLOAD, SCOPES = UploadFile, SecurityScopes


@pytest.mark.parametrize(
    ("annotation", "fix"),
    [
        (Request, "take it in a dependency"),
        ("Request", "take it in a dependency"),
        ("Annotated[Request, 'mine']", "take it in a dependency"),
        ("Request | None", "take it in a dependency"),
        (HTTPConnection | None, "take it in a dependency"),
        (WebSocket, "take it in a dependency"),
        ("SCOPES", "take it in a dependency"),
        ("fastapi.Response", "return the result"),
        (JSONResponse, "return the result"),
        ("fastapi.BackgroundTasks", ".delay()"),
        ("UPLOAD", "pass its key"),
    ],
)
def test_what_fastapi_makes_of_a_request_is_no_parameter(annotation: Any, fix: str) -> None:
    def work(x) -> None: ...  # type: ignore[no-untyped-def]

    work.__annotations__["x"] = annotation
    error = refused(work)
    assert error.code == "QT108"
    assert "belongs to a request" in error.message
    assert fix in str(error.fix)


def test_an_annotation_that_exists_later_is_checked_when_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(x: Later) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    task = QTasks().task(work)
    monkeypatch.setitem(globals(), "Later", Request)
    with pytest.raises(DefinitionError, match="belongs to a request"):
        task.ready()


def test_a_context_that_is_not_injected_is_refused_at_once() -> None:
    def alone(ctx: TaskContext) -> None: ...

    def optional(ctx: TaskContext | None = None) -> None: ...

    for function in (alone, optional):
        error = refused(function)
        assert (error.code, error.fix) == ("QT107", "ctx: TaskContext = injected")


# --- dependencies


def tenant(request: Request) -> str:
    return str(request.url.path)


class Pager:
    def __init__(self, request: Request) -> None:
        self.size = 7


Tenant = TypeAliasType("Tenant", Annotated[str, Depends(tenant)])


async def test_dependencies_in_annotations_need_no_argument_in_any_spelling() -> None:
    tasks = application()
    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")

    def work(
        n: int,
        request: Annotated[str, Depends(tenant)] = injected,
        *,
        first: Annotated[str, Depends(tenant)],
        pager: Annotated[Pager, Depends()],
        nested: Annotated[Annotated[str, Depends(tenant)], "documented"] = injected,
        secured: Annotated[str, Security(tenant)] = injected,
        named: Tenant = injected,
        request_: str = Depends(tenant),
    ) -> list[Any]:
        return [n, request, first, pager.size, nested, secured, named, request_]

    task = tasks.task(work)
    assert task.parameters.signature == "work(n: int) -> list[Any]"
    answer = await deliver(app, "work", envelope(3))
    path = "/qtasks/work"
    assert answer.json == [3, path, path, 7, path, path, path, path]


async def test_a_task_that_is_defined_once_more_gets_its_new_dependencies() -> None:
    tasks = application()
    app = FastAPI()
    app.include_router(tasks.router, prefix="/qtasks")
    for number in (1, 2):
        cell = f"@tasks.task\ndef work(n: int = Depends(lambda: {number})) -> int:\n    return n\n"
        exec(cell, {"tasks": tasks, "Depends": Depends, "__name__": "__main__"})
        assert (await deliver(app, "work", envelope())).json == number


def test_two_dependencies_for_one_parameter_are_refused() -> None:
    def work(x: Annotated[str, Depends(tenant)] = Depends(tenant)) -> None: ...

    assert "has two Depends" in refused(work).message


# --- texts that look like templates


@pytest.mark.parametrize(
    "options",
    [
        {"key": "{order}", "parallelism": 1},
        {"key": "orders-{order}", "parallelism": 1},
        {"key": "{ order.id }", "parallelism": 1},
        {"key": "{order!r:>5}", "parallelism": 1},
        {"label": "{order}"},
        {"label": ["all", "order-{order}"]},
        {"callback": "https://example.com/{order}"},
        {"failure_callback": "https://example.com/?order={order}"},
    ],
)
def test_a_text_with_a_parameter_in_braces_is_no_template(options: dict[str, Any]) -> None:
    def work(order: int) -> None: ...

    error = refused(work, **options)
    assert error.code == "QT156"
    assert "is not a template" in error.message
    option, text = next((name, value) for name, value in options.items() if "order" in str(value))
    text = text if isinstance(text, str) else text[1]
    assert error.fix == f'set it for each call: work.using({option}=f"{text}").delay(...)'
    with pytest.raises(DefinitionError, match="is not a template"):
        QTasks().task(work).using(**options)


def test_other_braces_are_a_text_as_any_other() -> None:
    def work(order: int) -> None: ...

    task = QTasks().task(key="{tenant}", parallelism=1, label="{}")(work)
    flow_control = task.delivery_options.publish.flow_control
    assert flow_control is not None
    assert flow_control.key == "{tenant}"
    assert task.using(deduplication_id="{7}").options["deduplication_id"] == "{7}"


@pytest.mark.parametrize("unique", ["oder", ["order", "size"], "{order}"])
def test_a_unique_key_of_no_parameter_is_refused_where_it_is_declared(unique: Any) -> None:
    def work(order: int) -> None: ...

    message = refused(work, unique=unique).message
    assert ("is not a template" if unique == "{order}" else "there is no parameter") in message


def test_a_task_of_a_language_model_is_checked_as_well() -> None:
    with pytest.raises(DefinitionError, match="belongs to a request"):

        @QTasks().llm(provider=openai(), model="m")
        def summarise(x: fastapi.Request) -> list[ChatMessage]:
            return []
