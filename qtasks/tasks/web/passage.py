"""What a request passes between the server and the tasks, and what of it is the user's.

A delivery passes all of it, so middleware of the user sees each delivery. A bundle would pass it once for all of its
deliveries. So an application takes bundles only if nothing of the user's stands in front of its tasks. That is known in
two ways. The layers of an application are its middleware, also middleware that calls the rest in an asyncio task of its
own. And the functions that are running when a request arrives are all that it has passed, also wrappers that have no
attribute `app`; the outermost of them must be one of a server.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.routing import Host, Mount

from qtasks.tasks.web.applications import layers, place_of, routes_of

if TYPE_CHECKING:
    from types import FrameType

_USUAL: Final = (
    "builtins",
    "fastapi.",
    "starlette.applications",
    "starlette.middleware.errors",
    "starlette.middleware.exceptions",
    "starlette.routing",
)
"""Modules whose classes are layers of every application."""
_JUDGES: Final = (
    "starlette.middleware.cors",
    "starlette.middleware.httpsredirect",
    "starlette.middleware.trustedhost",
)
"""Layers that judge host, scheme and origin, which a bundle has in common with its deliveries."""
_PASSED: Final = (
    *_USUAL,
    *_JUDGES,
    "hypercorn.middleware",
    "qtasks.cli.",
    "qtasks.tasks.web.",
    "starlette._exception_handler",
    "uvicorn.middleware",
)
"""Modules with functions that pass a request on."""
_SERVERS: Final = (
    "granian.",
    "gunicorn.",
    "httpx._transports.asgi",
    "hypercorn.",
    "qtasks.broker.transport.",
    "uvicorn.protocols.",
)
"""Modules of servers, and of what calls an application as a server does, in place of one."""
_LOOPS: Final = ("anyio.", "asyncio.", "threading", "uvloop")
"""Modules that call the first function of an asyncio task."""
_FRAMES: Final = 200
"""How many callers are looked at."""
OWN_TASK: Final = "code that starts an asyncio task for each request"
"""The name of a caller that is not known."""


def layers_on_the_way(app: object) -> Iterator[object]:
    """What a request passes on its way to the tasks: the layers of `app`, and of what is mounted in it."""
    yield from layers(app)
    for route in routes_of(app):
        if isinstance(route, (Mount, Host)) and place_of(route.app) is not None:
            yield route
            yield from layers_on_the_way(route.app)


def is_usual(layer: object) -> bool:
    """True for what every application consists of."""
    return type(layer).__module__.startswith(_USUAL)


def layer_name(layer: object) -> str:
    """The class of a layer, with the function that it calls, if it is one of ``@app.middleware("http")``."""
    function = getattr(getattr(layer, "dispatch_func", None), "__name__", "dispatch")
    return type(layer).__name__ + ("" if function == "dispatch" else f" ({function})")


def layers_of_the_user(*apps: object) -> list[str]:
    """The names of the layers of the user's on the ways through `apps`, from the outside."""
    names = (
        layer_name(layer)
        for app in apps
        for layer in layers_on_the_way(app)
        if not type(layer).__module__.startswith(_PASSED)
    )
    return list(dict.fromkeys(names))


def is_direct() -> bool:
    """True if all that the request has passed, which the caller is answering, is known and ends at a server."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(_PASSED):
            return bool(module.startswith(_SERVERS))
        frame = frame.f_back
    return False


def in_front(app: object) -> list[str]:
    """The names of all that is not known of what the request, which the caller is answering, has passed.

    They are in the order in which it passed them; `app` is the application that serves it.
    """
    apps: dict[int, object] = {}
    names: list[str] = []
    has_server = False
    for frame in _callers():
        module = frame.f_globals.get("__name__", "")
        if has_server := module.startswith(_SERVERS):
            break
        if module.startswith(_LOOPS):
            break
        caller = _method_owner(frame)
        if isinstance(caller, Starlette):
            apps[id(caller)] = caller
        if not module.startswith(_PASSED):
            names.append(frame.f_code.co_qualname.partition(".")[0] if caller is None else layer_name(caller))
    names = [*reversed(names), *layers_of_the_user(*reversed(apps.values()), app)]
    return list(dict.fromkeys(names)) if names or has_server else [OWN_TASK]


def _method_owner(frame: FrameType) -> object | None:
    """The object whose coroutine method is running in `frame`; None for other functions.

    Their variables are not looked at: up to Python 3.12 a frame keeps what it has shown, for as long as it exists.
    """
    code = frame.f_code
    if code.co_flags & inspect.CO_COROUTINE and ("self" in code.co_varnames or "self" in code.co_freevars):
        return frame.f_locals.get("self")
    return None


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = inspect.currentframe()
    for _ in range(_FRAMES):
        if frame is None:
            return
        yield frame
        frame = frame.f_back
