"""The handle of a group: the handles of its members, in order, and what they have in common."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from qtasks.api_names import ApiNames
from qtasks.error_codes import ErrorCode
from qtasks.errors import ResultError, ResultTimeout, TaskCancelled, TaskExpired, TaskFailed
from qtasks.tasks.celery import celery_names
from qtasks.tasks.results.backend import ResultBackend, ResultStatus, pauses
from qtasks.tasks.results.flow_shape import SUCCESSES, Collect
from qtasks.tasks.results.task_result import ResultAccess, TaskResult
from qtasks.tasks.results.wait_in_task import WaitInTask
from qtasks.tasks.results.waiting import WATCH_POLL_LAST_S, wake

_ENDED_OTHERWISE = (TaskFailed, TaskCancelled, TaskExpired)
_ONE_BY_ONE = ".get(timeout=...); [call.get(propagate=False) for call in handle.calls] has errors in place of results"


class GroupResult(ApiNames, Sequence["TaskResult[Any] | GroupResult"]):
    """The handle of a group: what `.delay()` of a group returns.

    It is the sequence of the handles of its members, in order: of a call, of the last call of a chain, or of a group
    inside the group. Every `timeout` is in seconds, for all members together; None waits without a limit.
    Without a result backend everything but the sequence and `cancel` raises ResultsDisabled.

    With `collect` ``"successes"`` the results are those of the members that have succeeded. A group without calls has
    no `runtime`; it is done.
    """

    _internal = frozenset({"await_all"})

    __slots__ = ("_collect", "_members", "_runtime")

    def __init__(
        self,
        runtime: ResultAccess | None,
        members: Sequence[TaskResult[Any] | GroupResult],
        collect: Collect = "all",
    ) -> None:
        self._runtime = runtime
        self._members = tuple(members)
        self._collect = collect

    def __repr__(self) -> str:
        return f"<GroupResult of {len(self)} members>"

    def __len__(self) -> int:
        """The number of members."""
        return len(self._members)

    @overload
    def __getitem__(self, index: int) -> TaskResult[Any] | GroupResult: ...
    @overload
    def __getitem__(self, index: slice) -> GroupResult: ...
    def __getitem__(self, index: int | slice) -> TaskResult[Any] | GroupResult:
        """The handle of a member; a slice is the handle of some members."""
        if isinstance(index, slice):
            return GroupResult(self._runtime, self._members[index], self._collect)
        return self._members[index]

    @property
    def calls(self) -> list[TaskResult[Any]]:
        """The handles of all calls, those of groups inside the group included."""
        return [call for member in self._members for call in _calls_of(member)]

    @property
    def status(self) -> ResultStatus:
        """The state of the group: final when every member has ended; `succeeded` if all of them have succeeded."""
        return _combined([member.status for member in self._members])

    async def astatus(self) -> ResultStatus:
        """As `status`, without blocking the event loop."""
        return _combined([await member.astatus() for member in self._members])

    @property
    def is_finished(self) -> bool:
        """True if every member has ended."""
        return self.status.is_final

    def counts(self) -> GroupCounts:
        """How many members are done, have failed, and are still waited for."""
        return _counted([member.status for member in self._members])

    async def acounts(self) -> GroupCounts:
        """As `counts`, without blocking the event loop."""
        return _counted([await member.astatus() for member in self._members])

    def ready(self) -> bool:
        """Celery's name for `is_finished`."""
        return self.is_finished

    def successful(self) -> bool:
        """Celery's name: True if every member has succeeded."""
        return self.status is ResultStatus.SUCCEEDED

    def failed(self) -> bool:
        """Celery's name: True if a member has failed, was cancelled or has expired."""
        return self.counts().failed > 0

    def waiting(self) -> bool:
        """Celery's name: True if a member has not ended."""
        return not self.is_finished

    def completed_count(self) -> int:
        """Celery's name: how many members have succeeded."""
        return self.counts().done

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every member has ended, however it did. Returns False if `timeout` ends first.

        Raises ResultError if the results cannot be read, or on the thread of the event loop that has to run the tasks.
        """
        remaining = _countdown(timeout)
        for call in self.calls:
            try:
                call.get(remaining())
            except _ENDED_OTHERWISE:
                continue
            except ResultTimeout:
                return False
        return True

    async def await_all(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the same words as `wait`
        """As `wait`, without blocking the event loop."""
        remaining = _countdown(timeout)
        for call in self.calls:
            try:
                await call.aget(remaining())
            except _ENDED_OTHERWISE:
                continue
            except ResultTimeout:
                return False
        return True

    def results(self, timeout: float | None = None) -> list[Any]:
        """Wait for all results and return them, in order. Raises as `TaskResult.get`."""
        remaining, values = _countdown(timeout), []
        for member in self._members:
            with self._without_failed():
                values.append(member.get(remaining()))
        return values

    async def aresults(self, timeout: float | None = None) -> list[Any]:  # noqa: ASYNC109 - as `results`
        """As `results`, without blocking the event loop."""
        remaining, values = _countdown(timeout), []
        for member in self._members:
            with self._without_failed():
                values.append(await member.aget(remaining()))
        return values

    def get(self, timeout: float | None = None, **celery: Any) -> list[Any]:
        """The same as `results`: a group is waited for as a call is."""
        celery_names.refuse(".get() of a group", celery, _ONE_BY_ONE)
        return self.results(timeout)

    async def aget(self, timeout: float | None = None) -> list[Any]:  # noqa: ASYNC109 - the same words as `get`
        """As `get`, without blocking the event loop."""
        return await self.aresults(timeout)

    def join(self, timeout: float | None = None, **celery: Any) -> list[Any]:
        """Celery's name for `results`."""
        celery_names.refuse(".join() of a group", celery, _ONE_BY_ONE)
        return self.results(timeout)

    def __await__(self) -> Generator[Any, None, list[Any]]:
        """Wait for all results, without a time limit: ``await result``."""
        return self.aresults().__await__()

    def as_completed(self, timeout: float | None = None) -> Completions:
        """The handles of all calls in the order in which they end: ``for result in handle.as_completed(timeout=60)``.

        Also for ``async for``. Raises ResultTimeout when `timeout` ends before the calls.
        """
        return Completions(self._runtime, self.calls, timeout)

    def cancel(self) -> bool:
        """Cancel every member; see `TaskResult.cancel`. Returns True if one of them was still to be cancelled."""
        was_cancelled = [member.cancel() for member in self._members]
        return any(was_cancelled)

    async def acancel(self) -> bool:
        """As `cancel`, without blocking the event loop."""
        return await asyncio.to_thread(self.cancel)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return celery_names.attribute(self, name, celery_names.GROUP_RESULT)

    def _without_failed(self) -> AbstractContextManager[None]:
        """Leaves out the result of a member that ended without one, if the group collects successes."""
        left_out = _ENDED_OTHERWISE if self._collect == SUCCESSES else ()
        return contextlib.suppress(*left_out)


class GroupCounts(NamedTuple):
    """The members of a group by how they are; together they are all members."""

    done: int
    """How many have succeeded."""
    failed: int
    """How many have ended without a result: failed, cancelled or expired."""
    waiting: int
    """How many have not ended."""


class Completions:
    """The handles of some calls in the order in which they end. Iterate once, with ``for`` or ``async for``."""

    def __init__(self, runtime: ResultAccess | None, calls: Sequence[TaskResult[Any]], timeout_s: float | None) -> None:
        self._runtime = runtime
        self._pending = list(calls)
        self._remaining = _countdown(timeout_s)
        self._total = len(calls)

    def __iter__(self) -> Iterator[TaskResult[Any]]:
        """Wait for the next call that ends, blocking. Raises as `TaskResult.get` where that would block."""
        if self._runtime is None:  # no calls
            return
        if self._runtime.runs_on_this_thread():
            raise ResultError(
                "as_completed() would block the event loop that has to run the tasks",
                fix="async for result in handle.as_completed()",
                code=ErrorCode.GET_WOULD_BLOCK,
            )
        changed, backend = threading.Event(), self._runtime.results()
        intervals = pauses(WATCH_POLL_LAST_S)
        while self._pending:
            changed.clear()
            with self._watching(backend, changed.set):
                ended = [call for call in reversed(self._pending) if call.is_finished]
                if not ended:
                    pause_s = self._pause_s(intervals)
                    with self._wait_in_task(self._runtime) as wait:
                        wait.check()
                        changed.wait(pause_s)
            yield from self._ended(ended)

    async def __aiter__(self) -> AsyncIterator[TaskResult[Any]]:
        """Wait for the next call that ends, without blocking the event loop."""
        if self._runtime is None:  # no calls
            return
        changed, loop, backend = asyncio.Event(), asyncio.get_running_loop(), self._runtime.results()
        intervals = pauses(WATCH_POLL_LAST_S)
        while self._pending:
            changed.clear()
            with self._watching(backend, lambda: wake(loop, changed)):
                ended = [call for call in reversed(self._pending) if (await call.astatus()).is_final]
                if not ended:
                    pause_s = self._pause_s(intervals)
                    with self._wait_in_task(self._runtime) as wait, contextlib.suppress(TimeoutError):
                        wait.check()
                        await asyncio.wait_for(changed.wait(), pause_s)
            for call in self._ended(ended):
                yield call

    def _watching(self, backend: ResultBackend, wake_up: Callable[[], None]) -> AbstractContextManager[object]:
        """Call `wake_up` when the record of a pending call changes. The first of them is the one that is waited for."""
        first, *others = self._pending
        stack = ExitStack()
        stack.enter_context(backend.watchers.waiting(first.id, wake_up))
        for call in others:
            stack.enter_context(backend.watchers.watching(call.id, wake_up))
        return stack

    def _wait_in_task(self, runtime: ResultAccess) -> WaitInTask:
        return WaitInTask(runtime, self._pending[0].task, [call.id for call in self._pending])

    def _ended(self, ended: Sequence[TaskResult[Any]]) -> Iterator[TaskResult[Any]]:
        """Take calls that have ended, read from the last to the first, off those that are pending."""
        for call in reversed(ended):
            self._pending.remove(call)
            yield call

    def _pause_s(self, intervals: Iterator[float]) -> float:
        """How long to wait before the records are read again. Raises ResultTimeout."""
        remaining_s, pause_s = self._remaining(), next(intervals)
        if remaining_s is None:
            return pause_s
        if remaining_s <= 0:
            raise ResultTimeout(f"{len(self._pending)} of {self._total} calls of a group have not finished in time")
        return min(pause_s, remaining_s)


def _calls_of(member: TaskResult[Any] | GroupResult) -> Sequence[TaskResult[Any]]:
    return member.calls if isinstance(member, GroupResult) else [member]


def _counted(states: Sequence[ResultStatus]) -> GroupCounts:
    done = states.count(ResultStatus.SUCCEEDED)
    waiting = sum(not state.is_final for state in states)
    return GroupCounts(done, len(states) - done - waiting, waiting)


def _countdown(timeout_s: float | None) -> Callable[[], float | None]:
    """Returns the seconds that remain of a time limit, 0 after it; None without a limit."""
    if timeout_s is None:
        return lambda: None
    deadline_s = time.monotonic() + timeout_s
    return lambda: max(0.0, deadline_s - time.monotonic())


def _combined(states: Sequence[ResultStatus]) -> ResultStatus:
    """The state of a group whose members are in these states."""
    if not all(state.is_final for state in states):
        begun = any(state is not ResultStatus.QUEUED for state in states)
        return ResultStatus.RUNNING if begun else ResultStatus.QUEUED
    for state in (ResultStatus.FAILED, ResultStatus.CANCELLED, ResultStatus.EXPIRED):
        if state in states:
            return state
    return ResultStatus.SUCCEEDED
