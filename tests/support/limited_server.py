"""A broker or a dispatcher as a process that is impatient: `python -m tests.support.limited_server KIND FOLDER`.

It prints ``ready PORT`` when it accepts requests. SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response

from qtasks.broker.broker import Broker
from qtasks.broker.server import event_loop
from qtasks.broker.server.api_server import ApiServer
from qtasks.broker.server.connection_watch import MIB, ConnectionLimits
from qtasks.broker.server.http_protocol import guarded
from qtasks.broker.server.listen import listen
from qtasks.broker.settings import BrokerSettings
from tests.support.tasks import application

LIMITS = ConnectionLimits(
    head_s=0.4,
    body_idle_s=0.4,
    body_s=0.8,
    body_rate=1_000_000,
    discard_s=0.4,
    write_idle_s=0.4,
    write_s=0.8,
    write_rate=1_000_000,
    goodbye_s=0.2,
    pressed_s=0.2,
    held=32 * MIB,
    connections=100,
    look_s=0.05,
)
PAGE = b"x" * 1_000_000


async def serve(kind: str, folder: Path) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    listener = listen("127.0.0.1", 0)
    port = int(listener.getsockname()[1])
    stop: Callable[[], Awaitable[None]]
    if kind == "broker":
        broker = await Broker.open(BrokerSettings(path=str(folder / "broker.db")))
        server = ApiServer(broker, [listener], limits=LIMITS)
        await server.start()
        stop = server.stop
    else:
        config = uvicorn.Config(dispatcher(port), http=guarded(LIMITS), log_config=None, lifespan="off")
        dispatching = uvicorn.Server(config)
        task = asyncio.create_task(dispatching.serve([listener]))

        async def stop() -> None:
            dispatching.should_exit = True
            await task

    sys.stdout.write(f"ready {port}\n")
    sys.stdout.flush()
    await stopped.wait()
    await stop()


def dispatcher(port: int) -> FastAPI:
    """An application with one task, which runs only for a valid signature, and one large page of its own."""
    tasks = application(base_url=f"http://127.0.0.1:{port}/q")

    @tasks.task
    def work() -> None:
        sys.stdout.write("accepted\n")

    app = FastAPI(openapi_url=None)
    app.include_router(tasks.router, prefix="/q")

    @app.get("/openapi.json")
    async def page() -> Response:
        return Response(PAGE)

    return app


if __name__ == "__main__":
    event_loop.run(serve(sys.argv[1], Path(sys.argv[2])))
