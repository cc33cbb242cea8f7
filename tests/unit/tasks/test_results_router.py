"""The part of uvicorn that the results router reads: its server is found, and says when it stops."""

from __future__ import annotations

import signal

import uvicorn

from qtasks.tasks.web.results_router import serving_uvicorn


def test_the_server_is_found_by_its_signal_handler_and_says_when_it_stops() -> None:
    server = uvicorn.Server(uvicorn.Config(lambda: None))
    assert serving_uvicorn() is not server
    with server.capture_signals():
        assert serving_uvicorn() is server
        before = server.should_exit
        server.handle_exit(signal.SIGTERM, None)
        server._captured_signals.clear()
    assert (before, server.should_exit) == (False, True)
