"""Every public name of the official package stands here under the same path, with the same parameters and fields."""

import dataclasses
import enum
import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints, is_typeddict

import pytest
import qstash as official

from qtasks import qstash as ours
from qtasks.errors import QTasksError

WIRING = {"HttpClient", "AsyncHttpClient"}
"""Made by the clients, never by a user: their constructors differ."""

INTERNAL = ("parse_", "prepare_", "convert_", "get_destination", "raise_for", "verify_with_key", "_limit_error")
"""Helpers of the official modules that no documentation mentions and no caller needs."""


def modules() -> list[str]:
    found = pkgutil.walk_packages(official.__path__, "qstash.")
    return [info.name for info in found]


def public(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", module.__name__) != module.__name__:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value


NAMES = [
    pytest.param(module, name, value, id=f"{module}.{name}")
    for module in modules()
    for name, value in public(importlib.import_module(module))
    if not any(mark in name for mark in INTERNAL)
]
METHODS = [
    pytest.param(module, cls, name, method, id=f"{module}.{cls}.{name}")
    for module, cls, value in (parameters.values for parameters in NAMES)
    if inspect.isclass(value) and cls not in WIRING
    for name, method in vars(value).items()
    if inspect.isfunction(method) and (not name.startswith("_") or name == "__init__")
    if not dataclasses.is_dataclass(value)
]


def twin(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"qtasks.{module}"), name)


def parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Name to kind and default; the keywords of an options type count as keyword-only parameters of default None."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            (options,) = get_type_hints(function)[name].__args__
            found.update(dict.fromkeys(options.__annotations__, (inspect.Parameter.KEYWORD_ONLY, None)))
        else:
            found[name] = (parameter.kind, parameter.default)
    return found


def test_there_is_something_to_compare() -> None:
    assert len(modules()) >= 20
    assert len(NAMES) >= 60
    assert len(METHODS) >= 80


@pytest.mark.parametrize(("module", "name", "value"), NAMES)
def test_the_name_is_here(module: str, name: str, value: Any) -> None:
    mine = twin(module, name)
    if dataclasses.is_dataclass(value):
        assert_same_fields(mine, value)
    elif inspect.isclass(value) and issubclass(value, enum.Enum):
        assert {member.name: member.value for member in value}.items() <= {m.name: m.value for m in mine}.items()
    elif is_typeddict(value):
        assert value.__annotations__.keys() <= mine.__annotations__.keys()
        assert value.__total__ == mine.__total__ or not mine.__required_keys__ - value.__required_keys__
    elif inspect.isclass(value) and issubclass(value, Exception):
        assert issubclass(mine, QTasksError)
        assert {base.__name__ for base in value.__mro__} <= {base.__name__ for base in mine.__mro__}


@pytest.mark.parametrize(("module", "cls", "name", "method"), METHODS)
def test_the_method_takes_the_same_parameters(module: str, cls: str, name: str, method: Any) -> None:
    mine = getattr(twin(module, cls), name)
    assert inspect.iscoroutinefunction(mine) == inspect.iscoroutinefunction(method)
    if issubclass(twin(module, cls), Exception) and cls in {"QStashError", "SignatureError"}:
        return  # they carry more than a text
    takes = parameters(mine)
    for parameter, (kind, default) in parameters(method).items():
        assert parameter in takes
        my_kind, my_default = takes[parameter]
        assert my_kind == kind
        if default is not inspect.Parameter.empty:
            assert my_default == default
    extra = {parameter: takes[parameter] for parameter in takes.keys() - parameters(method).keys()}
    assert all(default is not inspect.Parameter.empty for _, default in extra.values()), "more may not be required"


def assert_same_fields(mine: Any, value: Any) -> None:
    theirs = [field.name for field in dataclasses.fields(value)]
    own = {field.name: field for field in dataclasses.fields(mine)}
    assert set(theirs) <= own.keys()
    for name in own.keys() - set(theirs):
        assert own[name].default is not dataclasses.MISSING, "what only we know must not be asked for"


def test_the_front_door_has_the_same_names() -> None:
    assert set(official.__all__) <= set(ours.__all__)


def test_both_clients_offer_the_same_apis() -> None:
    sync, aio = ours.QStash("t"), ours.AsyncQStash("t")
    assert set(vars(official.QStash("t"))) | {"chat", "event"} == set(vars(sync)) == set(vars(aio))


def apis(client: Any) -> dict[str, Any]:
    return {name: api for name, api in vars(client).items() if name != "http"}


def test_the_async_twins_have_the_same_methods_and_parameters() -> None:
    sync, aio = apis(ours.QStash("t")), apis(ours.AsyncQStash("t"))
    for name, api in sync.items():
        methods = {key for key in dir(api) if not key.startswith("_")}
        assert methods == {key for key in dir(aio[name]) if not key.startswith("_")}
        for method in methods:
            own, other = getattr(api, method), getattr(aio[name], method)
            assert inspect.iscoroutinefunction(other), (name, method)
            assert parameters(own) == parameters(other), (name, method)


def test_the_clients_themselves_differ_in_await_alone() -> None:
    renamed = {"__aenter__": "__enter__", "__aexit__": "__exit__"}
    sync = {name: value for name, value in vars(ours.QStash).items() if inspect.isfunction(value)}
    aio = {
        renamed.get(name, name): value for name, value in vars(ours.AsyncQStash).items() if inspect.isfunction(value)
    }
    assert sync.keys() == aio.keys()
    for name in sync.keys() - {"__init__"}:
        assert parameters(sync[name]) == parameters(aio[name])
    assert parameters(sync["__init__"]).keys() == parameters(aio["__init__"]).keys()
