"""The service that the commands speak to: that of QSTASH_URL and QSTASH_TOKEN, or the running `qtasks dev`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from qtasks.cli.printing import talk
from qtasks.clock import SystemClock
from qtasks.errors import ApiError, ConfigurationError, did_you_mean
from qtasks.protocol.headers import NOTE_HEADER
from qtasks.qstash.conversation.operation import JSON_TYPE, Operation, answer, query, to_json
from qtasks.tasks.admin.searches import CONSOLE, MAX_PAGE, ListRequest
from qtasks.tasks.admin.service_steps import Steps, lacks_path, run_steps
from qtasks.tasks.admin.summaries import DeadLetterPage, MessagePage
from qtasks.tasks.dev_server import find_dev_server
from qtasks.tasks.settings import Settings, resolve

if TYPE_CHECKING:
    from qtasks.qstash import QStash

T = TypeVar("T")
E = TypeVar("E")
P = TypeVar("P", MessagePage, DeadLetterPage)

_RETRIES: Final = 2
_RETRY_FOR_S: Final = 1.0
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class ServiceConnection:
    """An open connection to the service."""

    client: QStash
    settings: Settings

    @property
    def url(self) -> str:
        """The address of the service."""
        return self.settings.url or ""

    def run(self, operation: Operation[T]) -> T:
        """Run one operation. Raises QStashError, in the words of the service."""
        if self.settings.is_hosted and NOTE_HEADER in dict(operation.headers):
            talk("the note is not kept: only a broker of qtasks keeps notes")
        try:
            return self.client.http.run(operation)
        except ApiError as error:
            if not lacks_path(error) or error.detail.startswith("{"):
                raise
            raise error.reworded(f"{error.detail} (answered by {self.url})") from None

    def steps(self, steps: Steps[T]) -> T:
        """Run several operations. Raises QStashError."""
        return run_steps(steps, self.run)

    def read(self, path: str, *pairs: tuple[str, str]) -> Any:
        """The JSON that the API answers to a GET of `path`, such as ``/v2/queues``."""
        return self.run(Operation("GET", path + query(pairs), answer))

    def request(self, text: str, count: int = 50, cursor: str | None = None) -> ListRequest:
        """A page of a list, with the filter `text`."""
        return ListRequest(text, count, cursor, now_ms(), asks_console=not self.settings.is_hosted)

    def collect(
        self,
        search: Callable[[ListRequest], Steps[P]],
        entries: Callable[[P], list[E]],
        text: str,
        count: int | None,
    ) -> tuple[list[E], bool]:
        """The first `count` entries that match the filter `text`, or all of them; and whether there are more."""
        selected: list[E] = []
        cursor: str | None = None
        while count is None or len(selected) < count:
            size = MAX_PAGE if count is None else min(MAX_PAGE, count - len(selected))
            page = self.steps(search(self.request(text, size, cursor)))
            selected += entries(page)
            cursor = page.cursor
            if cursor is None:
                break
        return selected, cursor is not None

    def console(self, what: str, path: str, *pairs: tuple[str, str]) -> Any:
        """The JSON of a view that only a broker of ours has. Raises ConfigurationError for any other service."""
        return self._of_console(what, Operation("GET", f"{CONSOLE}/{path}{query(pairs)}", answer))

    def console_if_any(self, path: str) -> Any | None:
        """As `console`; None where there is no such view."""
        try:
            return self.console("views", path)
        except ConfigurationError:
            return None

    def console_post(self, what: str, path: str, body: object) -> Any:
        """As `console`, for what changes something."""
        operation = Operation(
            "POST", f"{CONSOLE}/{path}", answer, headers=JSON_TYPE, body=to_json(body), repeatable=False
        )
        return self._of_console(what, operation)

    def _of_console(self, what: str, operation: Operation[Any]) -> Any:
        if not self.settings.is_hosted:
            try:
                return self.run(operation)
            except ApiError as error:
                is_ours = error.status == HTTPStatus.NOT_FOUND and "endpoint" not in error.detail.lower()
                if is_ours or not lacks_path(error):
                    raise
        raise ConfigurationError(
            f"{what} are known to a `qtasks broker` only, and {self.url} is not one with a console",
            fix="name such a broker in QSTASH_URL; `qtasks dlq` and `qtasks logs` work with every service",
        )


@contextlib.contextmanager
def connected(
    environment: Mapping[str, str] | None = None, *, timeout_s: float = _TIMEOUT_S, retries: int = _RETRIES
) -> Iterator[ServiceConnection]:
    """Open a connection to the service that `environment`, by default that of this process, configures.

    Raises ConfigurationError if there is no service.
    """
    from qtasks.qstash import QStash, Retry  # completion and --help need neither

    variables = os.environ if environment is None else environment
    settings = resolve(variables, {}, lambda url: find_dev_server(url, start=Path.cwd()))
    if settings.url is None or settings.token is None:
        raise ConfigurationError(
            "no QStash service is configured",
            details={"looked for": settings.searched},
            fix="start `qtasks dev`, or set QSTASH_TOKEN (and QSTASH_URL for a broker of your own)",
        )
    retry = Retry(retries=retries, backoff=lambda retried: 100 * 2**retried, total_s=_RETRY_FOR_S)
    with QStash(settings.token, base_url=settings.url, retry=retry, timeout_s=timeout_s) as client:
        yield ServiceConnection(client, settings)


def missing(what: str, name: str, names: list[str]) -> ApiError:
    """The error for the `name` of a queue, key or dead letter that is unknown; `names` are those that there are."""
    known_names = f"; known: {', '.join(sorted(names)[:10])}" if names else ""
    return ApiError(
        f"there is no {what} {name!r}{did_you_mean(name, names) or known_names}",
        status=HTTPStatus.NOT_FOUND,
        detail=f"no {what} {name}",
    )


def now_ms() -> int:
    """Wall time, Unix milliseconds."""
    return SystemClock().now_ms()
