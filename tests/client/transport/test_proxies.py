"""Proxies: which hosts are reached by one, how, and who is to blame when that fails."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from support.listeners import Listener, pump
from support.scripted import ScriptedServer, Seen, Step, at_most, reply
from support.transports import ANYONE, SLACK, TIMEOUT, get

from epochfs.client.transport import Transport
from epochfs.config import Proxies, TransportOptions
from epochfs.errors import DeadlineExceeded, TlsFailure, Unavailable, UsageError
from epochfs.session.environment import proxies

REGISTRY = "http://registry.example"
SECURE = "https://registry.example"


# Which proxy


@pytest.mark.parametrize(
    ("exempt", "direct"),
    [
        ("", []),
        ("*", ["reg.example.org:443", "10.1.2.3:80", "[fd00::1]:443"]),
        ("example.org", ["example.org:443", "reg.example.org:443", "a.b.example.org:80"]),
        (".example.org", ["example.org:443", "reg.example.org:443"]),
        ("*.example.org", ["example.org:443", "reg.example.org:443"]),
        ("EXAMPLE.org", ["reg.example.org:443"]),
        ("example.org:443", ["example.org:443", "reg.example.org:443"]),
        ("10.0.0.0/8", ["10.1.2.3:80"]),
        ("10.1.2.3", ["10.1.2.3:80"]),
        ("10.1.2.3:80", ["10.1.2.3:80"]),
        ("fd00::/8", ["[fd00::1]:443"]),
        ("[fd00::1]", ["[fd00::1]:443"]),
        ("[fd00::1]:443", ["[fd00::1]:443"]),
        ("nothing.else 10.1.2.3", ["10.1.2.3:80"]),
    ],
)
def test_no_proxy_names_hosts_domains_and_networks(exempt: str, direct: list[str]) -> None:
    proxies = Proxies("http://p:1", "http://q:2", tuple(exempt.split()))
    for place in direct:
        host, _, port = place.rpartition(":")
        assert proxies.of("https", host.strip("[]"), int(port)) == ""
    for place in ("notexample.org:443", "example.org.evil:443", "11.1.2.3:80", "[fe00::1]:443"):
        host, _, port = place.rpartition(":")
        expected = "" if exempt == "*" else "http://q:2"
        assert proxies.of("https", host.strip("[]"), int(port)) == expected


def test_a_port_of_no_proxy_is_that_port_alone() -> None:
    proxies = Proxies("http://p:1", "", ("example.org:443", "10.1.2.3:80"))
    assert proxies.of("http", "example.org", 80) == "http://p:1"
    assert proxies.of("http", "10.1.2.3", 443) == "http://p:1"


def test_each_scheme_has_its_proxy_and_loopback_has_none() -> None:
    proxies = Proxies("p:1", "http://user:pw@q:2/")
    assert proxies.of("http", "h", 80) == "http://p:1"
    assert proxies.of("https", "h", 443) == "http://user:pw@q:2/"
    for host in ("localhost", "a.localhost", "127.0.0.1", "127.9.9.9", "::1"):
        assert proxies.of("http", host, 80) == ""
    assert "pw" not in repr(TransportOptions(proxies=proxies))


@pytest.mark.parametrize(
    "proxy", ["socks5://p:1", "https://p:1", "http://", "http://:80", "http://p:x", "http://[p"]
)
def test_a_proxy_that_cannot_be_used_is_told_where_it_would_be(proxy: str) -> None:
    for scheme, given in (("http", Proxies(proxy, "")), ("https", Proxies("", proxy))):
        settings = TransportOptions(proxies=given)
        with pytest.raises(UsageError, match=f"{scheme.upper()}_PROXY"):
            Transport(f"{scheme}://registry.example", ANYONE, settings)
        Transport(f"{scheme}://127.0.0.1", ANYONE, settings).close()


def test_no_password_of_a_proxy_that_cannot_be_used_is_shown() -> None:
    settings = TransportOptions(proxies=Proxies("socks5://user:geheim@p:1"))
    with pytest.raises(UsageError) as raised:
        Transport(REGISTRY, ANYONE, settings)
    assert "geheim" not in str(raised.value)


def test_the_environment_names_proxies_in_either_case(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxies() == Proxies()
    monkeypatch.setenv("http_proxy", "http://lower:1")
    monkeypatch.setenv("no_proxy", "a.example, .b.example 10.0.0.0/8,")
    expected = ("a.example", ".b.example", "10.0.0.0/8")
    assert proxies() == Proxies("http://lower:1", "", expected)
    monkeypatch.setenv("HTTP_PROXY", "http://upper:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://secure:1")
    assert proxies() == Proxies("http://upper:1", "http://secure:1", expected)


# By one


class Tunnels(Listener):
    """A proxy that connects whatever is asked for to one server, and keeps what it was asked."""

    def __init__(self, upstream: str, answer: bytes = b"HTTP/1.1 200 Connected\r\n\r\n") -> None:
        self._upstream = upstream
        self._answer = answer
        self.heads: list[str] = []

    def _serve(self, connection: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        self.heads.append(head.decode())
        if not self._answer:
            return  # and leave the connection open, and silent
        connection.sendall(self._answer)
        if b" 200 " not in self._answer:
            connection.close()
            return
        host, _, port = self._upstream.partition(":")
        upstream = socket.create_connection((host, int(port)))
        threading.Thread(target=pump, args=(connection, upstream), daemon=True).start()
        pump(upstream, connection)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def to(opened: ExitStack, url: str, **settings: object) -> Transport:
    """Return a transport to a registry."""
    given = {"timeout": 5.0, "retries": 0, **settings}
    transport = Transport(url, ANYONE, TransportOptions(**given))  # type: ignore[arg-type]
    opened.callback(transport.close)
    return transport


def served(opened: ExitStack, script: object, tls: ssl.SSLContext | None = None) -> ScriptedServer:
    return opened.enter_context(ScriptedServer(script, tls))  # type: ignore[arg-type]


def certified(directory: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """Return a server's settings with a certificate for `name`, and the authority's."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    authority.cert_pem.write_to_path(directory / "ca.pem")
    return context, directory / "ca.pem"


def test_plain_http_is_asked_of_the_proxy_by_its_whole_url(opened: ExitStack) -> None:
    proxy = served(opened, lambda _: [reply(200, b"ok")])
    proxies = Proxies(f"http://user:p%40ss@{proxy.host}")
    transport = to(opened, REGISTRY, proxies=proxies)
    for _ in range(2):
        assert get(transport, "/v2/a%2Fb?n=1").body == b"ok"
    assert [seen.target for seen in proxy.seen] == [f"{REGISTRY}/v2/a%2Fb?n=1"] * 2
    assert proxy.seen[0].headers["host"] == "registry.example"
    assert proxy.seen[0].headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"
    assert proxy.connections == 1


def test_https_goes_through_a_tunnel_and_the_proxy_sees_nothing_of_it(
    opened: ExitStack, tmp_path: Path
) -> None:
    context, authority = certified(tmp_path, "registry.example")
    registry = served(opened, lambda _: [reply(200, b"ok")], context)
    proxy = opened.enter_context(Tunnels(registry.host))
    transport = to(
        opened,
        SECURE,
        proxies=Proxies("", f"http://user:pw@{proxy.host}"),
        ca_certs=(authority,),
    )
    for _ in range(2):
        assert get(transport).body == b"ok"
    assert len(proxy.heads) == registry.connections == 1
    assert proxy.heads[0].startswith("CONNECT registry.example:443 ")
    assert "Proxy-Authorization: Basic dXNlcjpwdw==" in proxy.heads[0]
    assert [seen.target for seen in registry.seen] == ["/v2/x"] * 2
    assert all("proxy-authorization" not in seen.headers for seen in registry.seen)


def test_the_certificate_is_the_registrys_own_through_a_tunnel_too(
    opened: ExitStack, tmp_path: Path
) -> None:
    context, authority = certified(tmp_path, "another.example")
    registry = served(opened, lambda _: [reply(200, b"ok")], context)
    proxy = opened.enter_context(Tunnels(registry.host))
    proxies = Proxies("", f"http://{proxy.host}")
    with pytest.raises(TlsFailure, match="certificate"):
        get(to(opened, SECURE, proxies=proxies, ca_certs=(authority,)))
    with pytest.raises(TlsFailure, match="certificate"):
        get(to(opened, "https://another.example", proxies=proxies))
    assert registry.seen == []


def test_this_machine_and_what_is_exempt_are_reached_without(opened: ExitStack) -> None:
    proxy = served(opened, lambda _: [reply(500)])
    registry = served(opened, lambda _: [reply(200, b"ok")])
    proxies = Proxies(f"http://{proxy.host}", f"http://{proxy.host}", ("registry.example",))
    assert get(to(opened, registry.url, proxies=proxies)).body == b"ok"
    with pytest.raises(Unavailable, match="does not resolve"):
        get(to(opened, "http://registry.example.invalid", proxies=Proxies()))
    with pytest.raises(Unavailable, match="does not resolve"):
        get(to(opened, "http://sub.registry.example", proxies=proxies))
    assert proxy.seen == []


def test_where_the_registry_redirects_to_has_a_proxy_of_its_own(opened: ExitStack) -> None:
    here = served(opened, lambda _: [reply(200, b"from here")])

    def by_proxy(seen: Seen) -> list[Step]:
        if seen.target.startswith("http://storage.example/"):
            return [reply(307, Location=f"{here.url}/x")]
        return [reply(307, Location="http://storage.example/blob")]

    proxy = served(opened, by_proxy)
    transport = to(opened, REGISTRY, proxies=Proxies(f"http://{proxy.host}"))
    assert get(transport).body == b"from here"
    assert [seen.path for seen in proxy.seen] == [f"{REGISTRY}/v2/x", "http://storage.example/blob"]
    assert [seen.target for seen in here.seen] == ["/x"]


# When it fails


@pytest.mark.parametrize("registry", [REGISTRY, SECURE])
def test_a_proxy_that_is_not_there_is_named_without_its_password(
    opened: ExitStack, registry: str
) -> None:
    proxies = Proxies("http://user:geheim@127.0.0.1:1", "http://user:geheim@127.0.0.1:1")
    expected = r"by the proxy http://\*\*\*@127.0.0.1:1\): .*refused"
    with at_most(2), pytest.raises(Unavailable, match=expected) as raised:
        get(to(opened, registry, proxies=proxies))
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize(("status", "said"), [(407, "asks for credentials"), (403, "the proxy")])
def test_a_proxy_that_refuses_is_told_from_the_registry(
    opened: ExitStack, status: int, said: str
) -> None:
    tunnels = opened.enter_context(Tunnels("", reply(status, b"no")))
    proxies = Proxies("", f"http://{tunnels.host}")
    expected = f"by the proxy http://{tunnels.host}.: {status}: .*{said}"
    with pytest.raises(Unavailable, match=expected):
        get(to(opened, SECURE, proxies=proxies, retries=3))
    assert len(tunnels.heads) == 1


def test_a_proxy_that_asks_for_credentials_is_told_from_a_registry_that_does(
    opened: ExitStack,
) -> None:
    proxy = served(opened, lambda _: [reply(407, Proxy_Authenticate="Basic realm=x")])
    transport = to(opened, REGISTRY, proxies=Proxies(f"http://{proxy.host}"))
    error = transport.refusal(get(transport))
    assert type(error) is Unavailable
    assert "the proxy asks for credentials" in str(error)


@pytest.mark.parametrize("registry", [REGISTRY, SECURE])
def test_a_silent_proxy_meets_the_time_limit(opened: ExitStack, registry: str) -> None:
    tunnels = opened.enter_context(Tunnels("", b""))
    proxies = Proxies(f"http://{tunnels.host}", f"http://{tunnels.host}")
    transport = to(opened, registry, proxies=proxies, timeout=TIMEOUT)
    with at_most(TIMEOUT + SLACK), pytest.raises(DeadlineExceeded):
        get(transport)
