"""What chains and groups have in common: their options, and the names under which they are started."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, Unpack

from qtasks.tasks.celery import celery_names
from qtasks.tasks.celery.celery_options import positional
from qtasks.tasks.flow.flow_times import AT_ONCE, FlowOptions, FlowTimes
from qtasks.tasks.results.task_result import TaskResult

if TYPE_CHECKING:
    from typing import Self

R = TypeVar("R")
H = TypeVar("H")
"""The handle of a flow."""


@dataclass(slots=True, kw_only=True)
class Startable(Generic[H]):
    """A flow that can be started. Celery's names for that work, too: calling it, and `apply_async`."""

    word: ClassVar[str]
    """What it is, for errors."""

    times: FlowTimes = AT_ONCE

    @abstractmethod
    def start(self, times: FlowTimes) -> H:
        """As `delay`, with the options of the flow around this one, or its own."""

    @abstractmethod
    async def astart(self, times: FlowTimes) -> H:
        """As `start`, without blocking the event loop."""

    @abstractmethod
    def more(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Self:
        """The same flow with more arguments for its first calls, before those that they have."""

    def using(self, **options: Unpack[FlowOptions]) -> Self:
        """Return the same flow with options for the whole of it. Raises DefinitionError for an option not valid.

        ``chain(fetch.s(url), parse.s()).using(countdown="10m", expires="2h").delay()``
        """
        return replace(self, times=self.times.using(self.word, options))

    def set(self, **options: Unpack[FlowOptions]) -> Self:
        """Change the options of this very flow and return it, as Celery's `set` does. `using` makes another one."""
        self.times = self.times.using(self.word, options)
        return self

    def delay(self, /, *args: Any, **kwargs: Any) -> H:
        """Start the flow in one request and return its handle: on the last call of a chain, on all of a group.

        Arguments are put before those of the first calls. Raises as `Task.delay`, also for the arguments of later
        calls; DefinitionError; and ResultsDisabled for a chain with a group in it if no result backend is configured.
        """
        return self.more(args, kwargs).start(self.times)

    async def adelay(self, /, *args: Any, **kwargs: Any) -> H:
        """As `delay`, without blocking the event loop."""
        return await self.more(args, kwargs).astart(self.times)

    def __call__(self, /, *args: Any, **kwargs: Any) -> H:
        """Celery's other name for `delay`: ``chain(...)()``."""
        return self.delay(*args, **kwargs)

    def apply_async(
        self, args: Sequence[Any] | None = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[FlowOptions]
    ) -> H:
        """`delay` with Celery's signature: ``chain(...).apply_async(countdown=10, expires=60)``."""
        return self.using(**options).delay(*positional(self.word, args), **(kwargs or {}))

    async def aapply_async(
        self, args: Sequence[Any] | None = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[FlowOptions]
    ) -> H:
        """As `apply_async`, without blocking the event loop."""
        return await self.using(**options).adelay(*positional(self.word, args), **(kwargs or {}))

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return celery_names.attribute(self, name, celery_names.FLOW)


class CeleryTask(Protocol[R]):
    """The methods of a task that have Celery's names."""

    def apply_async(self, args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any) -> TaskResult[R]:
        """See `Task.apply_async`."""
        ...

    async def aapply_async(self, args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any) -> TaskResult[R]:
        """See `Task.aapply_async`."""
        ...
