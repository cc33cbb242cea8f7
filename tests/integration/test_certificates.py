"""Why a delivery over TLS failed is said in words, from real TLS servers with certificates made for the test (4.7)."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qtasks.broker.ports import DeliveryRequest, Failure
from qtasks.broker.transport.attempt_failures import failure_of
from qtasks.broker.transport.destination_policy import DestinationPolicy
from qtasks.broker.transport.http_transport import HttpTransport
from tests.support.api import Service
from tests.support.hostile import OK, Behaviour, Connection, HostileServer, answering

pytestmark = pytest.mark.anyio

NAME = "good.test"
CONFIGURATION = """
[ca]
default_ca = own
[own]
database = index
serial = serial
new_certs_dir = .
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = supplied
[names]
subjectAltName = DNS:good.test
[req]
distinguished_name = none
[none]
"""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Makes a self-signed certificate for `NAME` with its key, valid between two times."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("no openssl to make certificates with")

    def certified(begin: str, end: str) -> Path:
        folder = tmp_path_factory.mktemp("certificate")
        for name, text in (("configuration", CONFIGURATION), ("index", ""), ("serial", "01\n")):
            (folder / name).write_text(text)
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key"]
        ask = ["req", "-new", *key, "-out", "csr", "-subj", f"/CN={NAME}"]
        sign = ["ca", "-selfsign", "-batch", "-in", "csr", "-keyfile", "key", "-out", "crt", "-notext"]
        for command in (ask, [*sign, "-startdate", begin, "-enddate", end]):
            whole = [openssl, *command, "-config", "configuration"]
            subprocess.run(whole, cwd=folder, check=True, capture_output=True)
        both = folder / "pem"
        both.write_bytes((folder / "crt").read_bytes() + (folder / "key").read_bytes())
        return both

    return certified


@pytest.fixture(scope="module")
def valid(certified: Callable[[str, str], Path]) -> Path:
    return certified("20200101000000Z", "20991231000000Z")


def serving(certificate: Path, *, asks_for: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if asks_for is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(asks_for)
    return context


async def names(host: str) -> list[str]:
    return ["127.0.0.1"]


async def failed(url: str, *, trusted: Path | None = None) -> Failure:
    """The failure of one attempt by a broker that trusts the authorities of the system, or only `trusted`."""
    tls = None if trusted is None else ssl.create_default_context(cafile=str(trusted))
    transport = HttpTransport(DestinationPolicy("local"), resolve=names, tls=tls)
    outcome = await transport.send(DeliveryRequest(url, "POST", (), b"body", 5000))
    await transport.close()
    assert isinstance(outcome, Failure), outcome
    assert "not permitted" not in outcome.error
    return outcome


async def test_a_certificate_that_nobody_vouches_for_is_said_to_be_untrusted(valid: Path) -> None:
    async with HostileServer(answering(OK), tls=serving(valid)) as server:
        outcome = await failed(f"https://{NAME}:{server.port}/")
    assert (outcome.code, outcome.interrupted, server.requests) == ("tls", False, [])
    assert outcome.error.startswith(f"no TLS connection to {NAME}:{server.port}: its certificate is not trusted: self-")
    assert outcome.error.endswith("; SSL_CERT_FILE can name the file of its authority")


@pytest.mark.parametrize(
    ("host", "words"), [("other.test", "not valid for 'other.test'"), ("127.0.0.1", "not valid for '127.0.0.1'")]
)
async def test_a_certificate_of_another_host_is_said_to_be_one(valid: Path, host: str, words: str) -> None:
    async with HostileServer(answering(OK), tls=serving(valid)) as server:
        outcome = await failed(f"https://{host}:{server.port}/", trusted=valid)
    assert outcome.code == "tls"
    assert f"no TLS connection to {host}:{server.port}: its certificate is for another name: " in outcome.error
    assert words in outcome.error


@pytest.mark.parametrize(
    ("begin", "end", "words"),
    [
        ("20200101000000Z", "20200102000000Z", "its certificate has expired"),
        (
            "20980101000000Z",
            "20990102000000Z",
            "its certificate is not valid yet; or the clock of this machine is wrong",
        ),
    ],
)
async def test_a_certificate_is_said_to_be_out_of_its_time(
    certified: Callable[[str, str], Path], begin: str, end: str, words: str
) -> None:
    certificate = certified(begin, end)
    async with HostileServer(answering(OK), tls=serving(certificate)) as server:
        outcome = await failed(f"https://{NAME}:{server.port}/", trusted=certificate)
    assert outcome.error == f"no TLS connection to {NAME}:{server.port}: {words}"


async def speaks_http(connection: Connection) -> None:
    await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


async def speaks_ssh(connection: Connection) -> None:
    await connection.send(b"SSH-2.0-OpenSSH_9.6\r\n")


@pytest.mark.parametrize("behave", [speaks_http, speaks_ssh])
async def test_https_to_a_port_without_tls_is_said_to_be_that(behave: Behaviour) -> None:
    async with HostileServer(behave) as server:
        outcome = await failed(f"https://127.0.0.1:{server.port}/")
    assert outcome.code == "tls"
    assert f"127.0.0.1:{server.port}: it does not speak TLS (" in outcome.error
    assert "does its URL begin with http://?" in outcome.error


async def test_a_server_that_ends_the_handshake_is_said_to_do_so() -> None:
    async def hangs_up(connection: Connection) -> None:
        connection.reset()

    async with HostileServer(hangs_up) as server:
        outcome = await failed(f"https://127.0.0.1:{server.port}/")
    assert outcome.interrupted
    assert outcome.error.endswith("it ended the connection in the middle of the handshake")


async def test_http_to_a_port_with_tls_is_said_to_be_perhaps_that(valid: Path) -> None:
    async with HostileServer(answering(OK), tls=serving(valid)) as server:
        outcome = await failed(f"http://127.0.0.1:{server.port}/")
    assert (outcome.code, outcome.interrupted) == ("connection_lost", True)
    assert outcome.error.endswith("(as a server does that expects https)")


async def test_an_answer_of_tls_to_plain_http_is_told_from_a_broken_one() -> None:
    async def alerts(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"\x15\x03\x03\x00\x02\x02\x46")

    async with HostileServer(alerts) as server:
        outcome = await failed(f"http://127.0.0.1:{server.port}/")
        assert outcome.error == f"127.0.0.1:{server.port} speaks TLS: its URL begins with https://"
        server.behave = speaks_ssh
        outcome = await failed(f"http://127.0.0.1:{server.port}/")
    assert "unusable response" in outcome.error


async def test_a_server_that_asks_for_a_certificate_of_ours_is_no_matter_of_permissions(valid: Path) -> None:
    async with HostileServer(answering(OK), tls=serving(valid, asks_for=valid)) as server:
        outcome = await failed(f"https://{NAME}:{server.port}/", trusted=valid)
    assert outcome.code in ("tls", "connection_lost"), (
        "whether its alert or its reset comes first is a matter of chance"
    )


def test_an_alert_behind_the_handshake_is_told_in_its_own_words() -> None:
    alert = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required (_ssl.c:2580)")
    outer = ConnectionError("lost")
    outer.__cause__ = alert
    for error in (alert, outer):
        outcome = failure_of(error, "h:443", sent=True, secure=True)
        assert outcome.code == "tls"
        assert "tlsv13 alert certificate required" in outcome.error


async def test_the_dead_letter_and_the_log_say_why(valid: Path) -> None:
    async with HostileServer(answering(OK), tls=serving(valid)) as server:
        service = await Service.open(destinations="local")
        transport = HttpTransport(DestinationPolicy("local"))
        service.answer(
            await transport.send(DeliveryRequest(f"https://localhost:{server.port}/", "POST", (), b"", 5000))
        )
        await transport.close()
        message_id = await service.publish(f"https://localhost:{server.port}/", Retries="0")
        await service.run()
        [letter] = (await service.get("/v2/dlq"))["messages"]
        entries = (await service.get(f"/v2/logs?messageId={message_id}"))["logs"]
        await service.close()
    assert "its certificate is not trusted: self-signed certificate" in letter["error"]
    assert {entry["error"] for entry in entries if "error" in entry} == {letter["error"]}
