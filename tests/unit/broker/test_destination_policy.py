"""The destination policy: what a broker may be made to reach."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtasks.broker.transport.addresses import AddressKind, kind_of
from qtasks.broker.transport.destination import parse
from qtasks.broker.transport.destination_policy import DestinationPolicy, Mode
from qtasks.errors import ConfigurationError
from qtasks.protocol import targets
from qtasks.protocol.headers import WireError

LOCAL = DestinationPolicy("local")
PUBLIC = DestinationPolicy("public")
MODES: tuple[Mode, ...] = ("local", "public")

NUMERIC_SPELLINGS = (
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.0x0.0x0.0x1",
    "0177.0.0.1",
    "017700000001",
    "127。0。0。1",
    "①②⑦.⓪.⓪.①",
    "１２７.0.0.1",
    "127.0.0.1.",
    "0",
    "1.2.3.4.5",
    "256.0.0.1",
    "a.0x1",
)

LOOPBACK = (
    "127.0.0.1",
    "127.255.0.9",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "localhost",
    "LOCALHOST.",
    "localhost.localdomain",
    "ip6-localhost",
    "any.thing.localhost",
)

EMBEDDING = (
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::1]",
    "[2001::7f00:1]",
    "[2a00:1450::5efe:7f00:1]",
    "[2a00:1450::200:5efe:7f00:1]",
)

METADATA = (
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "[fd00:ec2::254]",
    "[fd20:ce::254]",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "metadata.google.internal",
    "METADATA.google.internal.",
)

UNREADABLE = (
    r"http://127.0.0.1\@ok.test/",
    "http://127.0.0.1#@ok.test/",
    "http://127.0.0.1%00.ok.test/",
    "http://[127.0.0.1]/",
    "http://[::1%25lo]/",
    "http://[::1%lo]/",
    "http://a@b@127.0.0.1/",
    "http:///x",
    "http:/127.0.0.1",
    "//127.0.0.1",
    "https:127.0.0.1",
    "ftp://ok.test/",
    "file:///etc/passwd",
    "gopher://ok.test/",
    "unix:///run/docker.sock",
    "data:text/plain,x",
    "http://ok.test:0/",
    "http://ok.test:-1/",
    "http://ok.test:65536/",
    "http://ok.test:٨٠/",
    "http://ok.test:/",
    "http://ok\t.test/",
    "http://ok.test/\r\nX: y",
    "http://ok.test/a b",
    "http://ok..test/",
    "",
)


def refusal(policy: DestinationPolicy, host: str, port: int = 80) -> str:
    """What `policy` says to this host, at publish."""
    return policy.check_url(f"http://{host}:{port}/") or ""


@pytest.mark.parametrize("url", UNREADABLE)
@pytest.mark.parametrize("mode", MODES)
def test_a_url_that_two_parsers_could_read_differently_is_refused(url: str, mode: Mode) -> None:
    assert (DestinationPolicy(mode).check_url(url) or "").startswith("invalid destination url: ")


@pytest.mark.parametrize("host", NUMERIC_SPELLINGS)
@pytest.mark.parametrize("mode", MODES)
def test_an_address_in_an_unusual_spelling_is_refused_rather_than_interpreted(host: str, mode: Mode) -> None:
    assert DestinationPolicy(mode).check_url(f"http://{host}/") is not None


def test_a_url_without_scheme_is_refused_in_the_words_of_the_hosted_service() -> None:
    assert LOCAL.check_url("example.com/x") == (
        "invalid destination url: endpoint has invalid scheme, add http:// or https://"
    )


@pytest.mark.parametrize(
    "url",
    ["hTTp://example.com", "https://example.com:8443/a?b=%2F", "http://93.184.216.34/", "http://xn--bcher-kva.de/"],
)
@pytest.mark.parametrize("mode", MODES)
def test_the_public_internet_is_reachable_from_everywhere(url: str, mode: Mode) -> None:
    assert DestinationPolicy(mode).check_url(url) is None


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_in_every_spelling_is_open_locally_and_closed_in_public(host: str) -> None:
    assert LOCAL.check_url(f"http://{host}:8000/") is None
    assert "resolves to a loopback address" in refusal(PUBLIC, host, 8000)


@pytest.mark.parametrize("host", ["10.0.0.1", "172.16.9.9", "172.31.255.255", "192.168.1.1", "[fd12::1]", "[fc00::1]"])
def test_private_networks_are_open_locally_and_closed_in_public(host: str) -> None:
    assert LOCAL.check_url(f"http://{host}/") is None
    assert "resolves to a private address" in refusal(PUBLIC, host)


@pytest.mark.parametrize("host", ["100.64.0.1", "198.18.0.1", "192.0.2.1", "203.0.113.9", "[2001:db8::1]", "[3fff::1]"])
def test_special_networks_that_may_be_in_use_locally_are_closed_in_public(host: str) -> None:
    assert LOCAL.check_url(f"http://{host}/") is None
    assert PUBLIC.check_url(f"http://{host}/") is not None


@pytest.mark.parametrize(
    "host",
    [
        "169.254.1.1",
        "[fe80::1]",
        "224.0.0.1",
        "[ff02::1]",
        "255.255.255.255",
        "240.0.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "[::]",
        "192.0.0.1",
        "192.88.99.1",
        "[fec0::1]",
        "[5f00::1]",
        "[4000::1]",
        "[2001:2::1]",
        *EMBEDDING,
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_addresses_that_are_nobodys_endpoint_are_closed_everywhere(host: str, mode: Mode) -> None:
    assert "resolves to" in refusal(DestinationPolicy(mode), host)


@pytest.mark.parametrize("host", METADATA)
@pytest.mark.parametrize("mode", MODES)
def test_metadata_services_are_closed_everywhere(host: str, mode: Mode) -> None:
    assert "resolves to a metadata address" in refusal(DestinationPolicy(mode), host)


@pytest.mark.parametrize("host", ["[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::1]", "[::169.254.169.254]"])
@pytest.mark.parametrize("mode", MODES)
def test_metadata_services_are_closed_behind_translated_addresses_too(host: str, mode: Mode) -> None:
    assert "embeds an IPv4 address" in refusal(DestinationPolicy(mode), host)


def test_a_refusal_says_what_was_seen_and_which_option_would_allow_it() -> None:
    assert PUBLIC.check_url("http://127.0.0.1:8000/x") == (
        "invalid destination url: endpoint resolves to a loopback address: 127.0.0.1 "
        "(allow it with --allow-destination 127.0.0.1:8000)"
    )
    assert PUBLIC.check_address("10.0.0.5", "worker.internal", 8000) == (
        "destination blocked: endpoint resolves to a private address "
        "(allow it with --allow-destination worker.internal:8000)"
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "host", [*LOOPBACK, *METADATA, "10.0.0.1", "[fd12::1]", "169.254.1.1", "[::]", "100.64.0.1", "[64:ff9b::1.2.3.4]"]
)
def test_the_option_named_by_a_refusal_does_allow_it(host: str, mode: Mode) -> None:
    url = f"http://{host}:8443/"
    if (text := DestinationPolicy(mode).check_url(url)) is not None:
        rule = text.partition("--allow-destination ")[2].removesuffix(")")
        assert DestinationPolicy(mode, (rule,)).check_url(url) is None


@pytest.mark.parametrize("port", [22, 25, 53, 110, 143, 465, 587, 993, 995, 1023, 3306, 5432, 6379, 9200, 11211, 27017])
def test_in_public_ports_of_other_services_are_closed_unless_named(port: int) -> None:
    assert f"port {port} is not a port of the web" in refusal(PUBLIC, "example.com", port)
    assert PUBLIC.check_address("93.184.216.34", "example.com", port) is not None
    assert LOCAL.check_url(f"http://example.com:{port}/") is None
    assert DestinationPolicy("public", (f"example.com:{port}",)).check_url(f"http://example.com:{port}/") is None


@pytest.mark.parametrize("port", [80, 443, 1024, 3000, 8000, 8443, 65535])
def test_in_public_ports_of_the_web_are_open(port: int) -> None:
    assert PUBLIC.check_url(f"http://example.com:{port}/") is None


@pytest.mark.parametrize(
    ("rule", "address", "host", "port"),
    [
        ("http://worker:8000", "10.0.0.5", "worker", 8000),
        ("http://worker:8000/", "10.0.0.5", "worker", 8000),
        ("https://worker", "10.0.0.5", "worker", 443),
        ("worker:8000", "127.0.0.1", "WORKER.", 8000),
        ("worker", "10.0.0.5", "worker", 80),
        ("Worker", "10.0.0.5", "worker", 443),
        ("*.svc.internal:8080", "10.0.0.5", "a.svc.internal", 8080),
        ("10.1.0.0/16", "10.1.2.3", "10.1.2.3", 8000),
        ("10.1.0.0/16", "10.1.2.3", "worker", 8000),
        ("10.1.2.3", "10.1.2.3", "worker", 8000),
        ("fd12::/16", "fd12::9", "worker", 8000),
        ("[fd12::9]:8000", "fd12::9", "worker", 8000),
        ("169.254.7.0/24", "169.254.7.7", "169.254.7.7", 80),
        ("127.0.0.1:8000", "::ffff:127.0.0.1", "worker", 8000),
    ],
)
def test_a_rule_opens_what_it_names(rule: str, address: str, host: str, port: int) -> None:
    assert PUBLIC.check_address(address, host, port) is not None
    assert DestinationPolicy("public", ("unrelated:1", rule)).check_address(address, host, port) is None


@pytest.mark.parametrize(
    ("rule", "address", "host", "port"),
    [
        ("worker:8000", "10.0.0.5", "worker", 8001),
        ("worker:8000", "10.0.0.5", "other", 8000),
        ("worker", "10.0.0.5", "worker", 8000),
        ("http://worker", "10.0.0.5", "worker", 443),
        ("*.svc.internal:8080", "10.0.0.5", "svc.internal", 8080),
        ("*.svc.internal:8080", "10.0.0.5", "a.b.svc.internal", 8080),
        ("*.svc.internal:8080", "10.0.0.5", "evilsvc.internal", 8080),
        ("10.1.0.0/16", "10.2.0.1", "worker", 80),
        ("10.1.0.0/16", "10.1.0.1", "10.1.0.1", 22),  # a range of addresses says nothing about ports
        ("10.1.2.3:8000", "10.1.2.3", "10.1.2.3", 8001),
        ("worker:80", "169.254.169.254", "worker", 80),  # a trusted name does not open these
        ("worker:80", "169.254.1.1", "worker", 80),
        ("worker:80", "0.0.0.0", "worker", 80),
        ("worker:80", "64:ff9b::a00:1", "worker", 80),
        ("169.254.0.0/16", "169.254.169.254", "169.254.169.254", 80),  # metadata: by the exact address only
        ("0.0.0.0/0", "100.100.100.200", "worker", 80),
        ("::/0", "fd00:ec2::254", "worker", 80),
        ("64:ff9b::/96", "64:ff9b::a00:1", "worker", 80),  # the network is trusted, what hides in it is not
        ("64:ff9b::/96", "64:ff9b::a9fe:a9fe", "worker", 80),
    ],
)
def test_a_rule_opens_nothing_else(rule: str, address: str, host: str, port: int) -> None:
    assert DestinationPolicy("public", (rule,)).check_address(address, host, port) is not None


def test_where_ipv4_is_reached_by_translation_the_addresses_behind_it_are_judged() -> None:
    policy = DestinationPolicy("public", ("64:ff9b::/96",))
    assert policy.check_address("64:ff9b::5db8:d822", "example.com", 443) is None


@pytest.mark.parametrize(
    "rule", ["169.254.169.254", "169.254.169.254/32", "169.254.169.254:80", "http://169.254.169.254"]
)
@pytest.mark.parametrize("mode", MODES)
def test_a_metadata_service_is_opened_by_its_exact_address(rule: str, mode: Mode) -> None:
    assert DestinationPolicy(mode, (rule,)).check_url("http://169.254.169.254/latest") is None


@pytest.mark.parametrize(
    "rule", ["", "worker:http", "worker:0", "http://", "*.", "10.0.0.0/40", "ftp://x", "a b", "127.1"]
)
def test_an_unreadable_rule_is_a_configuration_error_that_shows_it(rule: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        DestinationPolicy("public", (rule,))
    assert repr(rule) in str(caught.value)


@pytest.mark.parametrize("own", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"])
@pytest.mark.parametrize("host", [*LOOPBACK, "0.0.0.0", "[::]"])
@pytest.mark.parametrize("mode", MODES)
def test_the_brokers_own_listener_is_closed_in_every_spelling_of_loopback(host: str, own: str, mode: Mode) -> None:
    policy = DestinationPolicy(mode, ("127.0.0.1:8080", "localhost:8080", "0.0.0.0/0"), frozenset({(own, 8080)}))
    assert "this broker's own address" in refusal(policy, host, 8080)
    assert "own address" not in refusal(policy, host, 8000)


def test_the_brokers_own_listener_on_a_network_address_is_closed() -> None:
    policy = DestinationPolicy("local", own=frozenset({("192.168.1.5", 8080)}))
    assert "own address: 192.168.1.5:8080" in refusal(policy, "192.168.1.5", 8080)
    assert policy.check_url("http://192.168.1.6:8080/") is None
    assert policy.check_url("http://192.168.1.5:8081/") is None


def test_a_listener_on_every_address_is_closed_on_each_that_is_this_machines() -> None:
    policy = DestinationPolicy("public", own=frozenset({("0.0.0.0", 8080)}))
    assert "own address" in (policy.check_address("93.184.216.34", "me.test", 8080, on_this_machine=True) or "")
    assert policy.check_address("93.184.216.34", "me.test", 8080) is None
    assert policy.check_address("93.184.216.34", "me.test", 8081, on_this_machine=True) is None


def test_credentials_in_a_url_are_refused_in_public() -> None:
    assert LOCAL.check_url("http://user:secret@example.com/") is None
    assert "secret" not in (PUBLIC.check_url("http://user:secret@example.com/") or "secret")


@pytest.mark.parametrize("address", ["fe80::1%eth0", "", "not an address", "127.1", "::1%1"])
def test_what_a_resolver_may_hand_over_never_slips_through_unread(address: str) -> None:
    assert PUBLIC.check_address(address, "host.test", 80) is not None


def test_a_url_is_taken_apart_without_being_changed() -> None:
    parts = parse("hTTp://u%40:p@EXAMPLE.com:8080//a%2Fb/../c%c3?x=1&y=%20?")
    assert (parts.scheme, parts.userinfo, parts.authority) == ("http", "u%40:p", "EXAMPLE.com:8080")
    assert (parts.host, parts.port) == ("example.com", 8080)
    assert parts.target == "//a%2Fb/../c%c3?x=1&y=%20?"
    assert "p@" not in repr(parts)


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("http://h", "h", 80, "/"),
        ("https://h", "h", 443, "/"),
        ("https://h?x", "h", 443, "/?x"),
        ("http://h/?", "h", 80, "/?"),
        ("http://[2001:DB8::0:1]:81/x@y:z", "2001:db8::1", 81, "/x@y:z"),
        ("http://h?http://u@other/", "h", 80, "/?http://u@other/"),
    ],
)
def test_what_a_url_leaves_out_is_supplied(url: str, host: str, port: int, target: str) -> None:
    parts = parse(url)
    assert (parts.host, parts.port, parts.target) == (host, port, target)


URL_TEXT = st.text(alphabet="htp:/@[].?#%\\ 0127aA-é\t", max_size=30).map("http://".__add__)


@given(URL_TEXT)
def test_both_parsers_of_destinations_agree_on_host_and_port(url: str) -> None:
    try:
        parts = parse(url)
    except WireError:
        with pytest.raises(WireError):
            targets.host_of(url)
        return
    host, _, port = targets.host_of(url).rpartition(":")
    if host.startswith("["):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    assert (parts.host, parts.port) == (host, int(port))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_public_never_opens_what_the_standard_library_calls_special(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    meant = getattr(address, "ipv4_mapped", None) or address
    special = ("private", "loopback", "link_local", "multicast", "reserved", "unspecified")
    if PUBLIC.check_address(str(address), "host.test", 80) is None:
        assert [name for name in special if getattr(meant, f"is_{name}")] == []


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_judged_as_the_address_it_stands_for(address: ipaddress.IPv4Address) -> None:
    assert kind_of(ipaddress.IPv6Address(f"::ffff:{address}")) is kind_of(address)


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_can_be_smuggled_in_an_ipv6_one(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for prefix in (0x64FF9B << 96, 0x0064FF9B0001 << 80, 0x2A001450 << 96 | 0x5EFE << 32):
        assert kind_of(ipaddress.IPv6Address(prefix | number)) in (AddressKind.EMBEDDING, AddressKind.RESERVED)
    assert kind_of(ipaddress.IPv6Address(0x2002 << 112 | number << 80 | 1)) is AddressKind.EMBEDDING
