"""Where a function is defined: its place for errors, whether it is defined once more, and the name that leads to it.

A module that is imported twice, a module that is reloaded and a cell of a notebook that is run again define the same
functions once more: the later definition replaces the earlier one. Two functions of one name are a mistake.
"""

from __future__ import annotations

import dis
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any

_DEPTH = 8
"""Wrappers and captured functions are compared to this depth."""
_TYPE_PARAMETERS = "<generic parameters of"
"""The beginning of the name of the code in which Python 3.12 puts a function with type parameters."""


@dataclass(frozen=True, slots=True)
class Definition:
    """The definition of a function, as two of them are compared."""

    function: Callable[..., Any]
    rivals: tuple[CodeType, ...] = ()
    """The functions of this name in the code that defines it: several if it is written there several times.

    Empty if that code had ended before the definition was made.
    """

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Definition:
        """The definition of `function`, which the code that runs here may be about to decorate."""
        code = _code(function)
        if code is None or (frame := _defining(code)) is None:
            return cls(function)
        name = code.co_qualname
        return cls(function, tuple(rival for rival in _constants(frame.f_code) if rival.co_qualname == name))

    def replaces(self, earlier: Definition) -> bool:
        """True if this is the definition of the earlier function once more, maybe edited; False for another one."""
        if self.function is earlier.function:
            return True
        code, old = _code(self.function), _code(earlier.function)
        if code is None or old is None:
            return bool(self.function == earlier.function)
        if code is old:
            return not _is_in_loop(_defining(code)) and _are_alike(self.function, earlier.function)
        if code.co_qualname != old.co_qualname or _is_among(old, self.rivals):
            return False
        if not self.rivals:
            return _file(code) == _file(old) and _position(code) == _position(old)
        return _file(code) == _file(old) or None is not _cell(self.function) == _cell(earlier.function)

    def is_beside(self, function: Callable[..., Any]) -> bool:
        """True if `function` is written in the same file or in the same cell as this one."""
        code, other = _code(self.function), _code(function)
        return code is not None and other is not None and _file(code) == _file(other)


def put(functions: list[Any], function: Callable[..., Any]) -> None:
    """Add `function`, or put it in the place of its earlier definition: its module or its cell is run again."""
    new = Definition.of(function)
    for place, earlier in enumerate(functions):
        if new.replaces(Definition.of(earlier)):
            functions[place] = function
            return
    functions.append(function)


def place(function: Callable[..., Any]) -> str:
    """Where `function` is written, for errors; of a decorated function, where the inner one is."""
    inner = inspect.unwrap(function)
    name = f"{getattr(inner, '__module__', None)}.{qualified_name(inner)}"
    code = _code(inner)
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"


def is_method(function: Callable[..., Any]) -> bool:
    """True if `function` is written in the body of a class and takes the instance, or the class, first."""
    owner, _, _ = qualified_name(function).rpartition(".")
    if not owner or owner.endswith("<locals>"):
        return False
    return next(iter(inspect.signature(function).parameters), "") in ("self", "cls", "mcs")


def qualified_name(function: Callable[..., Any]) -> str:
    """The name of `function` in its module, as it was written."""
    name: str = getattr(function, "__qualname__", None) or type(function).__qualname__
    return name.removesuffix(_SUFFIX) if _ATTRIBUTE in vars_of(function) else name


def vars_of(value: object) -> dict[str, Any]:
    """The attributes of `value`; none for an object without a dictionary."""
    return getattr(value, "__dict__", {})


_ATTRIBUTE = "function"
_SUFFIX = f".{_ATTRIBUTE}"


def make_picklable(function: Callable[..., Any]) -> None:
    """Let `pickle` find `function`, whose name leads to a task: as the `function` of that task.

    Pickle looks a function up by its qualified name, and compares. The attribute marks that the name was changed.
    """
    if _ATTRIBUTE not in vars_of(function):
        function.__qualname__ = f"{function.__qualname__}{_SUFFIX}"
        function.__dict__[_ATTRIBUTE] = function


def path_to(value: object, module: str, qualified_name: str) -> str | None:
    """The name that leads to `value` in a loaded module; None if it has none there."""
    named: Any = sys.modules.get(module)
    names = vars_of(named)
    for name in qualified_name.split("."):
        named = getattr(named, name, None)
    return qualified_name if named is value else next((name for name in list(names) if names[name] is value), None)


def caller_module() -> str:
    """The name of the module outside of this package whose code runs here."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == __name__.partition(".")[0]:
        frame = frame.f_back
    return "__main__" if frame is None else str(frame.f_globals.get("__name__"))


def resolved(module: str, path: str) -> Any:
    """What `path` leads to in `module`, which is imported: the reverse of `path_to`."""
    value: Any = __import__(module, fromlist=["_"])
    for name in path.split("."):
        value = getattr(value, name)
    return value


def not_picklable(name: str, function: Callable[..., Any]) -> pickle.PicklingError:
    """The error for a task that no name of a module leads to."""
    return pickle.PicklingError(
        f"the task {name} is pickled by its name, and no name of a module leads to it: {place(function)}; "
        "define it at the top level of a module"
    )


def _code(function: Callable[..., Any]) -> CodeType | None:
    """The code of the innermost function; None for what is not written in Python."""
    inner = inspect.unwrap(function) if isinstance(function, FunctionType) else function
    return inner.__code__ if isinstance(inner, FunctionType) else None


def _defining(code: CodeType) -> FrameType | None:
    """The frame, of those that run here, whose code defines the function of `code`."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and not _is_among(code, _constants(frame.f_code)):
        frame = frame.f_back
    return frame


def _constants(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            if constant.co_name.startswith(_TYPE_PARAMETERS):
                yield from _constants(constant)


def _is_among(code: CodeType, others: Iterator[CodeType] | tuple[CodeType, ...]) -> bool:
    return any(code is other for other in others)  # by identity: code that is loaded twice is equal


def _is_in_loop(frame: FrameType | None) -> bool:
    """True if the instruction that runs in `frame` is inside a loop."""
    if frame is None:
        return False
    here = frame.f_lasti
    return any(
        "JUMP_BACKWARD" in instruction.opname and instruction.argval <= here < instruction.offset
        for instruction in dis.get_instructions(frame.f_code)
    )


def _position(code: CodeType) -> object:
    return code.co_firstlineno, code.co_code, list(code.co_positions())


def _file(code: CodeType) -> str:
    return os.path.realpath(code.co_filename)


def _cell(function: Callable[..., Any]) -> str | None:
    """The module of a function that was typed in: at a prompt, in a notebook, in a doctest. None for one in a file."""
    inner: Any = inspect.unwrap(function)
    file = inner.__globals__.get("__file__")
    is_of_file = isinstance(file, str) and os.path.realpath(file) == _file(inner.__code__)
    return None if is_of_file else str(inner.__module__)


def _are_alike(value: Any, other: Any, depth: int = _DEPTH) -> bool:
    """True if two functions were made by the same code from equal values, so that they do the same; or are equal."""
    if value is other:
        return True
    if depth == 0 or type(value) is not type(other):
        return False
    if not isinstance(value, FunctionType):
        if hasattr(value, "__wrapped__"):
            return _are_alike(value.__wrapped__, other.__wrapped__, depth - 1)
        try:
            return bool(value == other)
        except Exception:  # the class of a value decides what happens here
            return False
    if value.__code__ is not other.__code__:
        return Definition.of(value).replaces(Definition.of(other))
    pairs: list[tuple[Any, Any]] = [
        (value.__defaults__, other.__defaults__),
        (value.__kwdefaults__, other.__kwdefaults__),
        *zip(map(_content, value.__closure__ or ()), map(_content, other.__closure__ or ()), strict=True),
    ]
    return all(new is _UNBOUND or _are_alike(new, old, depth - 1) for new, old in pairs)


_UNBOUND = object()
"""The content of a cell before its variable is bound: the name of the function that is being decorated."""


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _UNBOUND
