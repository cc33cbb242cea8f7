"""Private parts of uvicorn and aiohttp that the broker relies on: each test fails with the name of a part that is gone.

A release of either package may change them without notice. When a test fails after an upgrade, read the module that
the test names, adapt it, and run `tests/integration/test_http_protocol.py` and `test_http_transport.py`.
"""

import asyncio
import inspect
from unittest.mock import Mock

import aiohttp
import httptools
import pytest
import uvicorn
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

pytestmark = pytest.mark.anyio

ADAPT = "{package} {version} has changed: {owner}.{name} is gone. Adapt {module}."


def check(owner: object, names: str, module: str, package: str, version: str) -> None:
    missing = [name for name in names.split() if not hasattr(owner, name)]
    name_of_owner = owner.__name__ if isinstance(owner, type) else type(owner).__name__
    assert not missing, ADAPT.format(
        package=package, version=version, owner=name_of_owner, name=", ".join(missing), module=module
    )


def in_uvicorn(owner: object, names: str, module: str) -> None:
    check(owner, names, module, "uvicorn", uvicorn.__version__)


def in_aiohttp(owner: object, names: str, module: str) -> None:
    check(owner, names, module, "aiohttp", aiohttp.__version__)


@pytest.fixture
async def protocol() -> HttpToolsProtocol:
    async def app(scope: object, receive: object, send: object) -> None: ...

    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    return HttpToolsProtocol(config=config, server_state=ServerState(), app_state={})


async def test_the_http_protocol_finds_the_parts_of_uvicorn_that_it_overrides(protocol: HttpToolsProtocol) -> None:
    overridden = (
        "connection_made connection_lost data_received on_message_begin on_headers_complete on_body "
        "on_message_complete pause_writing resume_writing shutdown"
    )
    in_uvicorn(protocol, overridden, "qtasks.broker.server.http_protocol")
    in_uvicorn(FlowControl, "pause_reading resume_reading", "qtasks.broker.server.http_protocol")
    parameters = list(inspect.signature(HttpToolsProtocol.__init__).parameters)
    assert parameters == ["self", "config", "server_state", "app_state", "_loop"]


async def test_the_http_protocol_finds_the_parts_of_uvicorn_that_it_reads(protocol: HttpToolsProtocol) -> None:
    protocol.connection_made(Mock(spec=asyncio.Transport))
    protocol.on_message_begin()
    in_uvicorn(
        protocol,
        "loop transport parser cycle pipeline url headers flow timeout_keep_alive timeout_keep_alive_task "
        "timeout_keep_alive_handler _unset_keepalive_if_required _should_upgrade handle_websocket_upgrade",
        "qtasks.broker.server.http_protocol",
    )
    in_uvicorn(
        protocol.parser,
        "get_http_version get_method should_upgrade feed_data set_dangerous_leniencies",
        "qtasks.broker.server.http_protocol",
    )
    in_uvicorn(protocol.flow, "read_paused", "qtasks.broker.server.http_protocol")
    source = inspect.getsource(RequestResponseCycle)
    for name in [
        "response_started",
        "response_complete",
        "body",
        "disconnected",
        "keep_alive",
        "message_event",
        "waiting_for_100_continue",
    ]:
        assert f"self.{name}" in source, f"uvicorn {uvicorn.__version__} has changed: RequestResponseCycle.{name}"
    assert "self.headers.append" in inspect.getsource(HttpToolsProtocol.on_header)  # trailer fields go to another list
    assert protocol.cycle is None  # `is_response_pending` compares with None before the first request


def test_the_api_server_finds_the_parts_of_uvicorn_that_it_uses() -> None:
    server = uvicorn.Server(uvicorn.Config("none:none"))
    in_uvicorn(server, "capture_signals serve started should_exit", "qtasks.broker.server.api_server")


async def test_the_bounded_response_finds_the_parts_of_aiohttp_that_it_uses() -> None:
    parser = ResponseHandler(asyncio.get_running_loop())
    module = "qtasks.broker.transport.response"
    in_aiohttp(
        parser, "read feed_data force_close __len__ exception data_received eof_received connection_lost", module
    )
    in_aiohttp(parser, "pause_writing resume_writing", module)
    in_aiohttp(Connection, "protocol transport", module)
    in_aiohttp(aiohttp.StreamReader, "is_eof exception set_exception readany", module)
    in_aiohttp(aiohttp.ClientResponse, "start close raw_headers", module)


async def test_the_exchange_finds_the_parts_of_aiohttp_and_httptools_that_it_uses() -> None:
    module = "qtasks.broker.transport.http_exchange"
    in_aiohttp(Connection, "protocol transport release close", module)
    in_aiohttp(ResponseHandler(asyncio.get_running_loop()), "_tail", module)
    in_aiohttp(aiohttp.ClientSession, "connector timeout", module)
    connect = list(inspect.signature(aiohttp.TCPConnector.connect).parameters)
    assert connect == ["self", "req", "traces", "timeout"], f"aiohttp {aiohttp.__version__} has changed: connect"
    assert "loop" in inspect.signature(aiohttp.ClientRequest.__init__).parameters
    parser = httptools.HttpResponseParser(object())
    check(
        parser,
        "feed_data get_status_code should_keep_alive set_dangerous_leniencies",
        module,
        "httptools",
        httptools.__version__,
    )


def test_the_transport_finds_the_options_of_aiohttp_that_it_sets() -> None:
    in_aiohttp(aiohttp.BytesPayload, "write_with_length", "qtasks.broker.transport.http_transport")
    in_aiohttp(aiohttp.BytesIOPayload, "write_with_length", "qtasks.broker.transport.http_transport")
    session = inspect.signature(aiohttp.ClientSession.__init__).parameters
    connector = inspect.signature(aiohttp.TCPConnector.__init__).parameters
    for option in ("response_class", "auto_decompress", "read_bufsize", "max_line_size", "max_field_size"):
        assert option in session, f"aiohttp {aiohttp.__version__} has changed: ClientSession has no option {option}"
    for option in ("resolver", "use_dns_cache", "limit", "limit_per_host", "keepalive_timeout", "force_close"):
        assert option in connector, f"aiohttp {aiohttp.__version__} has changed: TCPConnector has no option {option}"


def test_the_resting_server_finds_the_loop_of_uvicorn_that_it_overrides() -> None:
    in_uvicorn(uvicorn.Server, "main_loop on_tick", "qtasks.broker.server.resting_server")
