"""Which applications serve which tasks, and where. Only public interfaces of Starlette and FastAPI are used.

An embedded broker delivers to the application that includes the router. Usually the lifespan of that application says
which one it is. Starlette does not run the lifespan of a mounted application, and a test may have no lifespan at all;
then the applications that are alive in the process are searched.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Host, Mount, NoMatchFound

from qtasks.tasks.ports import Receive, Scope, Send

if TYPE_CHECKING:
    from types import FrameType

T = TypeVar("T")

ROUTE_NAME: Final = "qtasks"
"""The name of the route to the tasks."""
_LAYERS: Final = 64
"""How many layers of middleware are looked through."""
_FRAMES: Final = 200
"""How many callers are looked at for the lifespan."""


class NamedEndpoint(Protocol):
    """What answers the deliveries for one application object."""

    owner: object
    """The application object."""
    route_name: str
    """The name of a second route to the endpoint: an application that knows it serves this endpoint."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""


ENDPOINTS: Final[weakref.WeakValueDictionary[str, Any]] = weakref.WeakValueDictionary()
"""Every `NamedEndpoint`, by the name of its own route."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an application serves tasks."""

    prefix: str
    """The path, such as ``/qtasks``."""
    is_mounted: bool
    """True if an application or router mounted in it includes the router of the tasks: its lifespan is not run."""


def place_of(app: object, route_name: str = ROUTE_NAME) -> Place | None:
    """Where `app` serves the tasks behind the named route, itself or in a mounted application; None if it does not."""
    mounts: list[Mount | Host] = []
    for route in routes_of(app):
        if isinstance(route, (Mount, Host)):
            mounts.append(route)
        elif (prefix := _prefix(route, route_name)) is not None:
            return Place(prefix, is_mounted=False)
    for mount in mounts:
        path = mount.path if isinstance(mount, Mount) else ""
        if "{" not in path and (inner := place_of(mount.app, route_name)) is not None:
            return Place(path + inner.prefix, is_mounted=True)
    return None


def prefix_of(app: object) -> str | None:
    """The path under which `app` serves tasks, such as ``/qtasks``, or None if it does not serve any."""
    return None if (place := place_of(app)) is None else place.prefix


def endpoint_of(app: object) -> NamedEndpoint | None:
    """What answers deliveries in `app`, or None if it does not serve any tasks."""
    if (place := place_of(app)) is None:
        return None
    endpoints: list[NamedEndpoint] = list(ENDPOINTS.values())
    return next((endpoint for endpoint in endpoints if place_of(app, endpoint.route_name) == place), None)


def owner_of(app: object) -> object | None:
    """The application object whose tasks `app` serves, or None if it does not serve any."""
    return None if (endpoint := endpoint_of(app)) is None else endpoint.owner


def is_application(value: object) -> bool:
    """True for an application of Starlette or FastAPI, also inside of middleware."""
    if isinstance(value, (type, BaseRoute)) or not callable(value):
        return False
    return any(isinstance(layer, Starlette) for layer in layers(value))


def layers(app: object) -> Iterator[object]:
    """`app` and what it wraps, from the outside: each layer of middleware has the next one as its attribute `app`."""
    layer: object | None = app
    for _ in range(_LAYERS):
        if layer is None:
            return
        yield layer
        inner = _attribute(layer, "middleware_stack" if isinstance(layer, Starlette) else "app")
        layer = inner if inner is not None else _attribute(layer, "router")


def _attribute(layer: object, name: str) -> object | None:
    """An attribute of any object of the user's code, or None: Flask's `current_app` raises an error for each name."""
    try:
        value: object | None = getattr(layer, name, None)
    except Exception:
        return None
    return value


def serving(route_name: str = ROUTE_NAME) -> list[Starlette]:
    """The applications alive in this process that serve the named route, and are not mounted in another of them."""
    apps = outermost([app for app in _alive() if place_of(app, route_name) is not None])
    if len(apps) > 1 and gc.collect():  # some of them may only wait for the collector
        apps = []  # without a reference from here
        apps = outermost([app for app in _alive() if place_of(app, route_name) is not None])
    return apps


def outermost(apps: Sequence[T]) -> list[T]:
    """Those of `apps` that are not inside of another one."""
    inside = {id(inner) for app in apps for inner in _inside(app)}
    return [app for app in apps if id(app) not in inside]


def lifespan_scope() -> Scope | None:
    """The scope of the lifespan that calls this function; None if there is none.

    A router's lifespan gets the application only. The scope also has the state that the server shows to requests, and
    the outermost application. It is a local variable, called `scope` by ASGI, of each caller that passes it on.
    """
    frame: FrameType | None = inspect.currentframe()
    for _ in range(_FRAMES):
        if frame is None:
            return None
        scope = frame.f_locals.get("scope")
        if isinstance(scope, dict) and scope.get("type") == "lifespan":
            return scope
        frame = frame.f_back
    return None


def routes_of(app: object) -> Iterable[BaseRoute]:
    """The routes of an application or a router, also of one inside of middleware."""
    for layer in layers(app):
        routes = getattr(layer, "routes", None)
        if isinstance(routes, list):
            return routes
    return ()


def _prefix(route: BaseRoute, route_name: str) -> str | None:
    try:
        return str(route.url_path_for(route_name, task="x")).removesuffix("/x")
    except (NoMatchFound, NotImplementedError, AttributeError):
        return None


def _inside(app: object) -> Iterator[object]:
    """What `app` wraps, and the applications mounted in it, at any depth."""
    yield from itertools.islice(layers(app), 1, None)
    for route in routes_of(app):
        if isinstance(route, (Mount, Host)):
            yield route.app
            yield from _inside(route.app)


def _alive() -> list[Starlette]:
    """Every application in this process. Modules are searched, too: the collector does not list what it has frozen."""
    alive: dict[int, Starlette] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Starlette):  # `isinstance` would ask the objects of strangers for their class
            alive[id(thing)] = thing
    for module in list(sys.modules.values()):
        for thing in list(getattr(module, "__dict__", {}).values()):
            if issubclass(type(thing), Starlette):
                alive[id(thing)] = thing
    return list(alive.values())
