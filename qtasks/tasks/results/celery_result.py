"""The names that Celery's `AsyncResult` has, on a handle of ours."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, overload

from qtasks.api_names import ApiNames
from qtasks.errors import TaskCancelled, TaskFailed
from qtasks.tasks.celery import celery_names
from qtasks.tasks.results.backend import ResultStatus

R = TypeVar("R")

STATES: Final[Mapping[ResultStatus, str]] = {
    ResultStatus.QUEUED: "PENDING",
    ResultStatus.UNKNOWN: "PENDING",
    ResultStatus.RUNNING: "STARTED",
    ResultStatus.CANCELLING: "STARTED",
    ResultStatus.RETRYING: "RETRY",
    ResultStatus.SUCCEEDED: "SUCCESS",
    ResultStatus.FAILED: "FAILURE",
    ResultStatus.CANCELLED: "REVOKED",
    ResultStatus.EXPIRED: "REVOKED",
}
"""Celery's word for each status."""


class CeleryResult(ApiNames, Generic[R]):
    """Celery's names for what a handle has under names of its own. Each of them asks once, as `status` does."""

    __slots__ = ()

    @property
    @abstractmethod
    def status(self) -> ResultStatus:
        """The current state of the call."""

    @property
    @abstractmethod
    def return_value(self) -> R:
        """The result of a call that has succeeded."""

    @overload
    def get(self, timeout: float | None = None, *, propagate: Literal[True] = True) -> R: ...
    @overload
    def get(self, timeout: float | None = None, *, propagate: bool) -> R | TaskFailed | TaskCancelled: ...
    def get(self, timeout: float | None = None, *, propagate: bool = True, **celery: Any) -> Any:
        """Wait for the result and return it.

        `timeout` is in seconds; None waits without a limit. Raises ResultTimeout, TaskFailed if the task has failed for
        good, TaskCancelled or TaskExpired if it was cancelled or has expired, and ResultError for an unknown call, on
        the thread of the event loop that has to run the task, or if all threads for tasks wait for one another.
        With ``propagate=False`` TaskFailed and TaskCancelled are returned.
        """
        celery_names.refuse(".get()", celery, ".get(timeout=...)")
        try:
            return self.waited_for(timeout)
        except (TaskFailed, TaskCancelled) as error:
            if propagate:
                raise
            return error

    @abstractmethod
    def waited_for(self, timeout: float | None) -> R:
        """Wait for the result and return it; raises as `get`."""

    @property
    def state(self) -> str:
        """The status in Celery's words: PENDING, STARTED, RETRY, SUCCESS, FAILURE or REVOKED."""
        return STATES[self.status]

    def ready(self) -> bool:
        """True if the call has ended, also without a result: the same as `is_finished`."""
        return self.status.is_final

    def successful(self) -> bool:
        """True if the call has succeeded; False also while it has not ended."""
        return self.status is ResultStatus.SUCCEEDED

    def failed(self) -> bool:
        """True if the call has failed for good; False also for one that was cancelled or has expired."""
        return self.status is ResultStatus.FAILED

    @property
    def result(self) -> R | TaskFailed | TaskCancelled | None:
        """The result of a call that has succeeded, the error of one that has ended otherwise, None before."""
        if not self.status.is_final:
            return None
        try:
            return self.return_value
        except (TaskFailed, TaskCancelled) as error:
            return error

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return celery_names.attribute(self, name, celery_names.RESULT)
