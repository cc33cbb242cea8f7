"""The views of the console, called without a server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlencode

from qtasks.broker.api.api_request import ApiRequest, ApiResponse, HttpError, error_response
from qtasks.broker.console.console_context import ConsoleContext, Role, Viewer
from tests.support.api import Service

ViewHandler = Callable[..., Awaitable[ApiResponse]]


class Console:
    """The console of a broker, as one viewer sees it."""

    def __init__(self, service: Service, role: Role = Role.OPERATOR) -> None:
        self.service = service
        broker = service.broker
        self.context = ConsoleContext.of(
            broker.context,
            broker.settings,
            broker.accounts,
            broker.ready,
            broker.questions,
            broker.deliverer.last_offer,
        )
        account = broker.accounts[broker.settings.credentials[service.user].name]
        self.viewer = Viewer(account, role)

    async def ask(self, view: ViewHandler, *arguments: str, body: Any = None, **query: Any) -> tuple[int, Any]:
        """The status and the JSON of a view."""
        answer = await self._answer(view, arguments, body, query)
        return answer.status, json.loads(answer.body)

    async def see(self, view: ViewHandler, *arguments: str, body: Any = None, **query: Any) -> Any:
        """The JSON of a view that answers 200."""
        status, document = await self.ask(view, *arguments, body=body, **query)
        assert status == 200, document
        return document

    async def text(self, view: ViewHandler) -> str:
        """The text of a view that answers 200."""
        answer = await self._answer(view, (), None, {})
        assert answer.status == 200
        return answer.body.decode()

    async def _answer(
        self, view: ViewHandler, arguments: tuple[str, ...], body: Any, query: dict[str, Any]
    ) -> ApiResponse:
        async def read_body(limit: int) -> bytes:
            return b"" if body is None else json.dumps(body).encode()

        request = ApiRequest("GET" if body is None else "POST", "/", urlencode(query), (), "127.0.0.1", read_body)
        try:
            return await view(self.context, self.viewer, request, *arguments)
        except HttpError as error:
            return error_response(error)
