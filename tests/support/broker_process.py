"""A broker in a separate process that a test can kill: `python broker_process.py DB PORT`.

It prints ``ready PORT`` when it accepts requests. It has the four public users and makes at most 32 attempts at a time.
SIGTERM drains and ends it.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from qtasks.broker.broker import Broker
from qtasks.broker.server import event_loop
from qtasks.broker.server.api_server import ApiServer
from qtasks.broker.server.listen import listen
from qtasks.broker.settings import BrokerSettings, DeliveryLimits

SLOTS = 32


async def serve(path: str, port: int) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    listener = listen("127.0.0.1", port)
    broker = await Broker.open(BrokerSettings(path=path, limits=DeliveryLimits(in_flight=SLOTS, per_host=SLOTS)))
    server = ApiServer(broker, [listener])
    await server.start()
    broker.start()
    sys.stdout.write(f"ready {listener.getsockname()[1]}\n")
    sys.stdout.flush()
    await stopped.wait()
    await server.stop()
    await broker.stop()


if __name__ == "__main__":
    event_loop.run(serve(sys.argv[1], int(sys.argv[2])))
