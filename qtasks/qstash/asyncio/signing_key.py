"""The asynchronous counterpart of `qtasks.qstash.signing_key`."""

from __future__ import annotations

from qtasks.qstash import signing_key
from qtasks.qstash.conversation.async_driver import AsyncHttpClient
from qtasks.qstash.signing_key import SigningKey


class AsyncSigningKeyApi:
    """As `SigningKeyApi`."""

    def __init__(self, http: AsyncHttpClient) -> None:
        self._http = http

    async def get(self) -> SigningKey:
        """As `SigningKeyApi.get`."""
        return await self._http.run(signing_key.get())

    async def rotate(self) -> SigningKey:
        """As `SigningKeyApi.rotate`."""
        return await self._http.run(signing_key.rotate())
