"""Proxies that the environment names: which requests go through them, and what is said of those that cannot be used."""

from __future__ import annotations

import socket

import pytest

from qtasks import QTasks
from qtasks.error_codes import ErrorCode
from qtasks.errors import BrokerUnreachable, ConfigurationError
from qtasks.qstash import Reply
from qtasks.qstash.conversation import proxies
from qtasks.qstash.conversation.proxies import is_excluded, is_this_machine, proxy_for
from tests.unit.qstash.conftest import Cancel, ScriptedService


@pytest.fixture(autouse=True)
def no_socksio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "find_spec", lambda _: None)


VARIABLES = ["ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY"]


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://x", "http://", "socks://h:1"])
def test_no_proxy_is_set_up_for_a_service_on_this_machine(
    cancel: Cancel, service: ScriptedService, monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str
) -> None:
    monkeypatch.setenv(variable, proxy)
    cancel(service.url)
    assert service.last().target == "/v2/messages/m"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "app.localhost",
        "localhost.",
        "127.0.0.1",
        "127.9.8.7",
        "127.1",
        "::1",
        "0.0.0.0",
        "::",
    ],
)
def test_every_name_of_this_machine_is_known(host: str) -> None:
    assert is_this_machine(host)
    assert is_this_machine("::ffff:127.0.0.1")


@pytest.mark.parametrize("host", ["localhost.example.com", "example.com", "10.0.0.1", "128.0.0.1", "1.example", "::2"])
def test_other_machines_are_not_this_one(host: str) -> None:
    assert not is_this_machine(host)


@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"])
def test_a_socks_proxy_without_its_package_names_the_variable_and_the_fix(
    cancel: Cancel, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "socks5://me:secret@proxy.test:1080")
    with pytest.raises(ConfigurationError) as caught:
        cancel("https://qstash.test")
    assert caught.value.code == ErrorCode.PACKAGE_MISSING
    assert caught.value.message == (
        f"{variable} names the SOCKS proxy socks5://proxy.test:1080, "
        "and httpx's package for such proxies is not installed"
    )
    assert caught.value.fix == 'pip install "httpx[socks]", or reach the service directly: NO_PROXY=qstash.test'
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("proxy", ["socks://me:secret@proxy.test:1", "socks4://h", "http://", "ftp://h", "http://[x:1"])
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(
    cancel: Cancel, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY names the proxy") as caught:
        cancel("https://qstash.test")
    assert "NO_PROXY=qstash.test" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_call_of_a_task_says_it_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy.test:1080")
    with QTasks(url="http://broker.test", token="t", base_url="http://app.test") as tasks:

        @tasks.task
        def work() -> None: ...

        with pytest.raises(ConfigurationError, match="ALL_PROXY names the SOCKS proxy"):
            work.delay()


def test_a_proxy_gets_the_name_and_the_password_in_its_url(
    cancel: Cancel, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", service.url.replace("://", "://me:p%40ss@"))
    cancel("http://qstash.test")
    assert service.last().target == "http://qstash.test/v2/messages/m"
    assert service.last().header("Proxy-Authorization") == "Basic bWU6cEBzcw=="


def test_a_proxy_may_be_named_without_a_scheme(
    cancel: Cancel, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", service.url.removeprefix("http://"))
    cancel("http://qstash.test")
    assert service.last().target == "http://qstash.test/v2/messages/m"


def test_the_proxy_is_named_where_it_does_not_answer(cancel: Cancel, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{port}")
    with pytest.raises(BrokerUnreachable) as caught:
        cancel("https://qstash.test")
    assert caught.value.details == {"through": f"the proxy http://127.0.0.1:{port} (from HTTPS_PROXY)"}
    assert "secret" not in str(caught.value)


def test_a_proxy_that_asks_for_a_password_is_understood(
    cancel: Cancel, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", service.url)
    service.answers.append(Reply(407, (), b""))
    with pytest.raises(Exception, match="a proxy asks for a name and a password"):
        cancel("http://qstash.test")


def test_each_scheme_has_its_proxy_and_all_proxy_serves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://all:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://secure:1")
    found = {url: proxy_for(url) for url in ("http://a.test/x", "https://a.test/x")}
    assert {url: str(proxy) for url, proxy in found.items()} == {
        "http://a.test/x": "http://all:1",
        "https://a.test/x": "http://secure:1",
    }


@pytest.mark.parametrize(
    ("host", "port", "no_proxy"),
    [
        ("a.test", 443, "*"),
        ("a.test", 443, "b.test, a.test"),
        ("a.test", 443, "b.test a.test"),
        ("A.test", 443, "a.TEST"),
        ("a.test", 443, ".a.test"),
        ("b.a.test", 443, "a.test"),
        ("b.a.test", 443, ".a.test"),
        ("b.a.test", 443, "*.a.test"),
        ("a.test", 443, "a.test:443"),
        ("a.test", 443, "https://a.test"),
        ("10.1.2.3", 80, "10.0.0.0/8"),
        ("10.1.2.3", 80, "10.1.2.3"),
        ("10.1.2.3", 80, "10.1.2.3:80"),
        ("fd00::1", 80, "fd00::/8"),
        ("fd00::1", 80, "[fd00::1]"),
        ("fd00::1", 80, "[fd00::1]:80"),
        ("fd00::1", 80, "FD00:0:0::1"),
    ],
)
def test_no_proxy_takes_out(host: str, port: int, no_proxy: str) -> None:
    assert is_excluded(host, port, no_proxy)


@pytest.mark.parametrize(
    ("host", "port", "no_proxy"),
    [
        ("a.test", 443, ""),
        ("a.test", 443, ",, ;"),
        ("ba.test", 443, "a.test"),
        ("a.test", 443, "b.a.test"),
        ("a.test", 443, "a.test:80"),
        ("11.1.2.3", 80, "10.0.0.0/8"),
        ("10.1.2.3", 80, "10.1.2"),
        ("10.1.2.3", 80, "10.1.2.3:81"),
        ("fd00::1", 80, "[fd00::2]:80"),
        ("a.test", 443, "."),
    ],
)
def test_no_proxy_leaves_in(host: str, port: int, no_proxy: str) -> None:
    assert not is_excluded(host, port, no_proxy)


def test_a_host_that_no_proxy_names_is_reached_directly(
    cancel: Cancel, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", service.url)
    monkeypatch.setenv("no_proxy", "qstash.test:80")
    with pytest.raises(BrokerUnreachable):  # there is no such host
        cancel("http://qstash.test")
    cancel("http://qstash.test:81")
    assert service.last().target == "http://qstash.test:81/v2/messages/m"
