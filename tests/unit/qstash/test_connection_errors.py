"""What a person reads when there is no answer: certificates, https to a port for http and the reverse."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qtasks import QTasks
from qtasks.errors import ApiError, BrokerUnreachable, QStashError
from qtasks.qstash import QStash, Reply
from tests.unit.qstash.conftest import TOKEN, Cancel, ScriptedService

CONFIGURATION = """
[ca]
default_ca = own
[own]
database = issued
new_certs_dir = .
default_md = sha256
policy = any
rand_serial = yes
unique_subject = no
[any]
commonName = supplied
"""


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "issued").touch()
        (folder / "ca.cnf").write_text(CONFIGURATION)
        for name in ("own", "other"):
            key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
            self._openssl("req", "-new", *key, "-out", f"{name}.csr", "-subj", f"/CN={name}")
        self.issue("authority", signer="", names="DNS:authority", who="other")

    def issue(
        self, name: str, *, names: str, begin: str = "2020", end: str = "2090", signer: str = "", who: str = "own"
    ) -> None:
        """A certificate; signed by itself without a `signer`."""
        (self.folder / "ext").write_text(f"subjectAltName = {names}\n")
        signed = ("-cert", f"{signer}.pem", "-keyfile", "other.key")
        if not signer:
            signed = ("-selfsign", "-keyfile", f"{who}.key", "-batch")
        files = ("-in", f"{who}.csr", "-out", f"{name}.pem", "-extfile", "ext")
        times = ("-startdate", f"{begin}0101000000Z", "-enddate", f"{end}0101000000Z")
        self._openssl("ca", "-batch", "-config", "ca.cnf", "-notext", *files, *times, *signed)

    def context(self, name: str) -> ssl.SSLContext:
        """The side of a server with a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.pem", self.folder / "own.key")
        return context

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    made = Authority(tmp_path_factory.mktemp("certificates"))
    made.issue("good", names="DNS:localhost,IP:127.0.0.1")
    made.issue("expired", names="DNS:localhost", end="2021")
    made.issue("early", names="DNS:localhost", begin="2089")
    made.issue("elsewhere", names="DNS:broker.example.com")
    made.issue("signed", names="DNS:localhost", signer="authority")
    return made


class _Handler(BaseHTTPRequestHandler):
    def do_DELETE(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[int]:
    """A server that speaks https; its port."""

    class Server(ThreadingHTTPServer):
        def finish_request(self, request: Any, address: Any) -> None:
            with context.wrap_socket(request, server_side=True) as secure:
                super().finish_request(secure, address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("name", "trusted", "why", "fix"),
    [
        ("good", "", "its certificate is signed by itself, and not trusted", "SSL_CERT_FILE"),
        (
            "signed",
            "",
            "its certificate is signed by an authority that is not trusted on this machine",
            "SSL_CERT_FILE",
        ),
        ("expired", "expired", "its certificate has expired", "the service needs a new certificate"),
        ("early", "early", "its certificate is not valid yet", "the clock of this machine"),
        (
            "elsewhere",
            "elsewhere",
            "its certificate is for another host name",
            "a host name that the certificate is for",
        ),
    ],
)
def test_a_certificate_that_is_refused_is_said_to_be_that(
    cancel: Cancel, authority: Authority, monkeypatch: pytest.MonkeyPatch, name: str, trusted: str, why: str, fix: str
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.folder / f"{trusted}.pem"))
    with serving(authority.context(name)) as port, pytest.raises(BrokerUnreachable) as caught:
        cancel(f"https://localhost:{port}")
    assert caught.value.message.startswith(f"No answer from https://localhost:{port}: {why}")
    assert fix in (caught.value.fix or "")
    assert "not permitted" not in str(caught.value)
    assert caught.value.sent is False


def test_a_certificate_of_ssl_cert_file_is_trusted_on_this_machine_too(
    cancel: Cancel, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.folder / "good.pem"))
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with serving(authority.context("good")) as port:
        cancel(f"https://localhost:{port}")
        cancel(f"https://127.0.0.1:{port}")


def test_a_call_of_a_task_says_what_is_wrong_with_the_certificate(authority: Authority) -> None:
    with (
        serving(authority.context("good")) as port,
        QTasks(url=f"https://localhost:{port}", token="t", base_url="http://app.test") as tasks,
    ):

        @tasks.task
        def work() -> None: ...

        with pytest.raises(
            BrokerUnreachable, match=r"work was not queued: .* its certificate is signed by itself"
        ) as caught:
            work.delay()
    assert "SSL_CERT_FILE" in (caught.value.fix or "")


def test_https_to_a_port_for_http_is_named(cancel: Cancel, service: ScriptedService) -> None:
    with pytest.raises(BrokerUnreachable, match="it does not speak https there") as caught:
        cancel(service.url.replace("http://", "https://"))
    assert caught.value.fix == "write http:// in QSTASH_URL, or the port for https"
    assert caught.value.sent is False


def test_http_to_a_port_for_https_that_answers_in_tls_is_named(cancel: Cancel, service: ScriptedService) -> None:
    def alert(handler: Any) -> None:
        handler.wfile.write(b"\x15\x03\x03\x00\x02\x02\x46")
        handler.hang_up()

    service.answers.append(alert)
    with pytest.raises(BrokerUnreachable, match="it does not speak http there") as caught:
        cancel(service.url)
    assert caught.value.fix == "write https:// in QSTASH_URL, or the port for http"
    assert caught.value.sent is False


def test_http_to_a_port_for_https_that_hangs_up_says_that_it_may_be_that(cancel: Cancel, authority: Authority) -> None:
    with serving(authority.context("good")) as port, pytest.raises(BrokerUnreachable) as caught:
        cancel(f"http://127.0.0.1:{port}")
    assert "https://" in (caught.value.fix or "")


@pytest.mark.parametrize(
    "page",
    [
        "<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>",
        "Client sent an HTTP request to an HTTPS server.",
        "You're speaking plain HTTP to an SSL-enabled server port.",
    ],
)
def test_a_refusal_of_http_in_words_is_understood(cancel: Cancel, service: ScriptedService, page: str) -> None:
    service.answers.append(Reply(400, (), page.encode()))
    with pytest.raises(ApiError) as caught:
        cancel(service.url)
    assert caught.value.fix == "write https:// in QSTASH_URL"


@pytest.mark.parametrize("attempts", [1, 3])
def test_the_trace_of_an_error_ends_in_the_client(attempts: int) -> None:
    retry: Any = {"retries": attempts - 1, "backoff": lambda _: 0}
    with QStash(TOKEN, base_url="http://127.0.0.1:9", retry=retry) as client, pytest.raises(QStashError) as caught:
        client.message.publish_json(url="https://example.com", body={})
    shown = "".join(traceback.format_exception(caught.value))
    assert len(shown.splitlines()) < 20
    assert "httpx" not in shown
    assert "During handling" not in shown
    assert "direct cause" not in shown


def test_the_trace_of_an_answer_that_is_no_json_ends_in_the_client(service: ScriptedService) -> None:
    service.answers.append(Reply(200, (), b"<html>"))
    with QStash(TOKEN, base_url=service.url) as client, pytest.raises(ApiError) as caught:
        client.message.get("m")
    assert "During handling" not in "".join(traceback.format_exception(caught.value))


def test_the_trace_of_a_call_that_cannot_be_sent_has_no_second_part() -> None:
    with QTasks(url="http://127.0.0.1:9", token="t", base_url="http://127.0.0.1:8") as tasks:

        @tasks.task
        def work() -> None: ...

        with pytest.raises(BrokerUnreachable) as caught:
            work.delay()
    shown = "".join(traceback.format_exception(caught.value))
    assert "direct cause" not in shown
    assert "During handling" not in shown
    assert len(shown.splitlines()) < 40
