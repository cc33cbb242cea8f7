"""Testing applications of tasks: the pytest plugin, and the same without pytest.

The fixture `qtasks` is an `Environment`: the real broker on a store in memory, with a clock that stands still until a
test moves it. A call takes the whole way: it is encoded, published, stored, claimed, signed, delivered as an HTTP
request to the application, verified there and run. Only the sockets are left out; mode ``"full"`` has those as well.

Each name is loaded at its first use, because pytest imports this package in every run of every project that has it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qtasks.testing.environment import Environment as Environment
    from qtasks.testing.sent_call import Call as Call
    from qtasks.testing.sent_call import DeadCall as DeadCall

__all__ = ["Call", "DeadCall", "Environment"]

_MODULES = {
    "Call": "qtasks.testing.sent_call",
    "DeadCall": "qtasks.testing.sent_call",
    "Environment": "qtasks.testing.environment",
}


def __getattr__(name: str) -> object:
    if (module := _MODULES.get(name)) is None:
        raise AttributeError(f"module 'qtasks.testing' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
