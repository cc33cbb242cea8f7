"""A response over the network whose body is read as it arrives. Bundles need it (docs/protocol.md 5.16)."""

from __future__ import annotations

from qtasks.broker.ports import Failure, ResponseStream, StreamBroken
from qtasks.broker.transport.attempt_failures import failure_of
from qtasks.broker.transport.response import BoundedResponse


async def stream_of(response: BoundedResponse, place: str) -> ResponseStream:
    """The rest of a response from `place`, ``host:port``, whose head has been checked.

    Its connection is kept for the next request if it was read to its end before it is closed.
    """

    async def close() -> None:
        response.close()

    return ResponseStream(response.status, response.header_lines(), _Pieces(response, place), close)


class _Pieces:
    """The pieces of a body. Raises `StreamBroken` if it does not end as it should."""

    def __init__(self, response: BoundedResponse, place: str) -> None:
        self._response = response
        self._place = place

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await self._response.piece()
        except Exception as error:
            raise StreamBroken(self._failure(error)) from error
        if not piece:
            raise StopAsyncIteration
        return piece

    def _failure(self, error: Exception) -> Failure:
        if self._response.is_cut:
            reason = "its body costs far more on the wire than it holds"
            return Failure("bad_response", f"unusable response from {self._place}: {reason}")
        return failure_of(error, self._place, sent=True)
