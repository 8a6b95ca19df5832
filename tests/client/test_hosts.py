"""`hosts.toml`: which file is a registry's, and what it says, in containerd's own words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epochfs.client.hosts import ALL_CAPABILITIES, Capability, HostConfig, RegistryHosts, find
from epochfs.config import RegistryUrl, TransportOptions
from epochfs.errors import UsageError

PULL = frozenset({Capability.PULL})
URL = "https://registry.example.com:5000"
NAMESPACE = "registry.example.com:5000"


def hosts(directory: Path, text: str = "", url: str = URL, name: str = NAMESPACE) -> RegistryHosts:
    """Write a `hosts.toml` for a registry, and return what is found for it."""
    (directory / name).mkdir(exist_ok=True)
    (directory / name / "hosts.toml").write_text(text)
    return find(directory, RegistryUrl.parse(url))


# --- which directory --------------------------------------------------------------------------


def chosen_from(directory: Path, url: str, *names: str) -> list[str]:
    """Return those of the named directories that a registry's mirrors come from: one or none."""
    for number, name in enumerate(names):
        (directory / name).mkdir()
        (directory / name / "hosts.toml").write_text(f'[host."https://number{number}"]')
    mirrors = find(directory, RegistryUrl.parse(url)).mirrors
    return [names[int(mirror.base.removeprefix("https://number"))] for mirror in mirrors]


@pytest.mark.parametrize(
    ("url", "names", "chosen"),
    [
        ("https://r.example:5000", ["r.example_5000_", "r.example:5000", "_default"], 0),
        ("https://r.example:5000", ["r.example", "r.example:5000", "_default"], 1),
        ("https://r.example:5000", ["r.example", "r.example_443_", "_default"], 2),
        ("https://R.Example", ["_default", "r.example"], 1),
        ("http://127.0.0.1:5000", ["127.0.0.1", "127.0.0.1_5000_"], 1),
        ("http://[::1]:5000", ["[::1]", "[::1]:5000"], 1),
        ("http://[::1]", ["_default", "[::1]"], 1),
        ("https://registry-1.docker.io", ["_default", "docker.io"], 1),
        ("https://docker.io", ["_default", "docker.io"], 1),
        ("https://registry-1.docker.io", ["docker.io", "registry-1.docker.io"], 1),
    ],
)
def test_the_first_directory_that_exists_is_the_registrys(
    tmp_path: Path, url: str, names: list[str], chosen: int
) -> None:
    assert chosen_from(tmp_path, url, *names) == [names[chosen]]


def test_a_registry_without_a_directory_is_alone(tmp_path: Path) -> None:
    alone = RegistryHosts(NAMESPACE, HostConfig(URL))
    assert find(tmp_path, RegistryUrl.parse(URL)) == alone
    assert find(None, RegistryUrl.parse(URL)) == alone
    assert find(tmp_path / "none", RegistryUrl.parse(URL)) == alone


def test_an_empty_directory_hides_the_default(tmp_path: Path) -> None:
    (tmp_path / NAMESPACE).mkdir()
    assert chosen_from(tmp_path, URL, "_default") == []


# --- what is in the file ----------------------------------------------------------------------


def test_mirrors_are_kept_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = hosts(
        tmp_path,
        """
        server = "https://upstream.example"
        [host."https://z.example"]
          capabilities = ["pull"]
        [host."https://a.example".header]
          x-team = ["one", "two"]
        [host."http://m.example:8080/cache"]
          capabilities = ["Pull", "resolve", "push"]
        """,
    )
    assert found == RegistryHosts(
        NAMESPACE,
        HostConfig("https://upstream.example"),
        (
            HostConfig("https://z.example", capabilities=PULL),
            HostConfig("https://a.example", headers=(("x-team", "one, two"),)),
            HostConfig("http://m.example:8080", "/cache/v2"),
        ),
        elsewhere=True,
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("mirror.example", HostConfig("https://mirror.example")),
        ("Mirror.Example:5000", HostConfig("https://mirror.example:5000")),
        ("http://mirror.example", HostConfig("http://mirror.example")),
        ("https://mirror.example/", HostConfig("https://mirror.example")),
        ("https://mirror.example/v2", HostConfig("https://mirror.example")),
        ("https://mirror.example/v2/", HostConfig("https://mirror.example")),
        ("https://mirror.example/a//b/../c", HostConfig("https://mirror.example", "/a/c/v2")),
        ("https://mirror.example/v2/a", HostConfig("https://mirror.example", "/v2/a/v2")),
        ("https://[::1]:5000/x", HostConfig("https://[::1]:5000", "/x/v2")),
        ("https://docker.io", HostConfig("https://registry-1.docker.io")),
    ],
)
def test_a_host_is_a_url_or_less(tmp_path: Path, written: str, expected: HostConfig) -> None:
    assert hosts(tmp_path, f'[host."{written}"]').mirrors == (expected,)
    assert hosts(tmp_path, f'server = "{written}"').origin == expected


def test_override_path_means_that_the_path_is_where_the_api_begins(tmp_path: Path) -> None:
    text = '[host."https://m.example/v2/project"]\noverride_path = true'
    assert hosts(tmp_path, text).mirrors == (HostConfig("https://m.example", "/v2/project"),)
    text = '[host."https://m.example"]\noverride_path = true'
    assert hosts(tmp_path, text).mirrors == (HostConfig("https://m.example", ""),)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    here = tmp_path / NAMESPACE
    text = """
        [host.one]
          ca = "ca.pem"
          client = "client.pem"
        [host.two]
          ca = ["ca.pem", "/etc/ca.pem"]
          client = [["client.cert", "client.key"], ["both.pem", ""], "/etc/both.pem"]
          skip_verify = true
          dial_timeout = "1m0.5s"
    """
    one, two = hosts(tmp_path, text).mirrors
    assert one.ca_certs == (here / "ca.pem",)
    assert one.client_certs == ((here / "client.pem", None),)
    assert one.skip_verify is None
    assert two.ca_certs == (here / "ca.pem", Path("/etc/ca.pem"))
    assert two.client_certs == (
        (here / "client.cert", here / "client.key"),
        (here / "both.pem", None),
        (Path("/etc/both.pem"), None),
    )
    assert two.skip_verify is True
    assert two.connect_timeout == 60.5


def test_without_capabilities_a_mirror_may_do_all_and_push_alone_is_nothing(tmp_path: Path) -> None:
    text = '[host.a]\n[host.b]\ncapabilities = []\n[host.c]\ncapabilities = ["push"]'
    found = [mirror.capabilities for mirror in hosts(tmp_path, text).mirrors]
    assert found == [ALL_CAPABILITIES, ALL_CAPABILITIES, frozenset()]


def test_what_stands_above_the_tables_is_about_the_registry_itself(tmp_path: Path) -> None:
    found = hosts(tmp_path, 'skip_verify = true\nheader = {x-a = "1"}\ncapabilities = ["pull"]')
    assert found.origin == HostConfig(URL, skip_verify=True, headers=(("x-a", "1"),))


def test_an_entry_for_the_registry_itself_is_no_mirror(tmp_path: Path) -> None:
    found = hosts(tmp_path, f'[host."{URL}"]\nskip_verify = true')
    assert found == RegistryHosts(NAMESPACE, HostConfig(URL, skip_verify=True))


@pytest.mark.parametrize("address", ["https://r.example", "https://r.example:443", "R.Example"])
@pytest.mark.parametrize("server", ["", 'server = "https://r.example"', 'server = "r.example:443"'])
def test_what_an_entry_for_the_registry_itself_leaves_open_stands_at_the_top(
    tmp_path: Path, address: str, server: str
) -> None:
    here = tmp_path / "r.example"
    text = f"""
        {server}
        ca = "top.pem"
        client = "top.cert"
        skip_verify = true
        dial_timeout = "1s"
        header = {{x-a = "top", X-B = "top"}}
        [host."{address}"]
    """
    found = hosts(tmp_path, text, "https://r.example", "r.example")
    assert (found.mirrors, found.elsewhere) == ((), False)
    top = found.origin
    assert top.base.removesuffix(":443") == "https://r.example"
    assert top.ca_certs == (here / "top.pem",)
    assert top.client_certs == ((here / "top.cert", None),)
    assert (top.skip_verify, top.connect_timeout) == (True, 1.0)
    assert top.headers == (("x-a", "top"), ("X-B", "top"))
    text += """
        ca = "own.pem"
        client = "own.cert"
        skip_verify = false
        dial_timeout = "2s"
        header = {x-b = "own"}
    """
    own = hosts(tmp_path, text, "https://r.example", "r.example").origin
    assert own.ca_certs == (here / "top.pem", here / "own.pem")
    assert own.client_certs == ((here / "own.cert", None),)
    assert (own.skip_verify, own.connect_timeout) == (False, 2.0)
    assert own.headers == (("x-a", "top"), ("x-b", "own"))


@pytest.mark.parametrize(
    ("url", "server", "elsewhere"),
    [
        ("https://r.example", "r.example:443", False),
        ("https://r.example", "https://r.example/cache", False),
        ("http://r.example:5000", "https://r.example:5000", False),
        ("https://r.example:5000", "http://r.example:5000", True),
        ("https://r.example", "r.example:5000", True),
        ("https://r.example", "other.example", True),
        ("https://docker.io", "https://registry-1.docker.io", False),
        ("https://registry-1.docker.io", "https://mirror.example", True),
    ],
)
def test_another_server_than_the_urls_is_known_as_such(
    tmp_path: Path, url: str, server: str, elsewhere: bool
) -> None:
    found = hosts(tmp_path, f'server = "{server}"', url, "_default")
    assert found.elsewhere is elsewhere


def test_docker_hub_is_one_registry_under_its_several_names(tmp_path: Path) -> None:
    text = 'server = "https://docker.io"\n[host."https://registry-1.docker.io"]'
    found = hosts(tmp_path, text, "https://docker.io", "docker.io")
    assert found == RegistryHosts("docker.io", HostConfig("https://registry-1.docker.io"))
    assert found.origin.options(TransportOptions(), found.namespace).namespace == ""


def test_certificates_alone_are_found_as_docker_keeps_them(tmp_path: Path) -> None:
    here = tmp_path / NAMESPACE
    here.mkdir()
    for name in ("b.crt", "a.crt", "client.cert", "client.key", "alone.cert", "readme"):
        (here / name).touch()
    (here / "directory.crt").mkdir()
    assert find(tmp_path, RegistryUrl.parse(URL)).origin == HostConfig(
        URL,
        ca_certs=(here / "a.crt", here / "b.crt"),
        client_certs=((here / "alone.cert", None), (here / "client.cert", here / "client.key")),
    )


def test_headers_do_not_show(tmp_path: Path) -> None:
    assert "secret" not in repr(hosts(tmp_path, '[host.a.header]\nAuthorization = "secret"'))


@pytest.mark.expects_log(r"hosts\.toml': server_name is unknown")
@pytest.mark.expects_log(r"hosts\.toml: host m\.example': host is unknown")
@pytest.mark.expects_log(r"hosts\.toml: host m\.example': header Range is not for a file to set")
def test_unknown_keys_are_ignored_with_a_warning(tmp_path: Path) -> None:
    text = """
        server_name = "registry"
        [host."m.example".host."nested.example"]
        [host."m.example".header]
          Range = "bytes=0-0"
    """
    assert hosts(tmp_path, text).mirrors == (HostConfig("https://m.example"),)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server = ", "at end of document"),
        ('\n\n[host."x"\n', "at line 3"),
        ("a = 1\na = 2\n", "at line 2"),
        ('server = "x"\x00', "line 1"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "9" * 10_000, "not TOML"),
        ("#" * 1_048_577, "is over 1048576 bytes"),
        ("server = 1", "server must be a URL"),
        ('host = "x"', "host must be tables"),
        ('host = {a = "x"}', "must be a table"),
        ('[host."https://a b"]', "no usable URL"),
        ('[host."https://user:pw@a"]', "no usable URL"),
        ('[host."user:pw@a"]', "no usable URL"),
        ('[host."ftp://a"]', "no usable URL"),
        ('[host."https://a:99999"]', "no usable URL"),
        ('[host."https://a?x"]', "no usable URL"),
        ('[host."https://a/\\u0000"]', "no usable URL"),
        ('[host."https://[:::]"]', "no usable URL"),
        ('[host.""]', "no usable URL"),
        ('capabilities = "pull"', "capabilities must be"),
        ('capabilities = ["write"]', "capabilities must be"),
        ("capabilities = [1]", "capabilities must be"),
        ("ca = 1", "ca must be"),
        ("ca = [[]]", "ca must be"),
        ("client = 1", "client must be"),
        ('client = [["a"]]', "client must be"),
        ('client = [["a", "b", "c"]]', "client must be"),
        ("client = [[]]", "client must be"),
        ('skip_verify = "no"', "skip_verify must be"),
        ("override_path = 1", "override_path must be"),
        ('dial_timeout = "soon"', "dial_timeout must be"),
        ("dial_timeout = 5", "dial_timeout must be"),
        ('dial_timeout = "0s"', "dial_timeout must be"),
        ('proxy = "http://proxy.example"', "proxy is not supported"),
        ('[host.a]\nproxy = "http://proxy.example"', "proxy is not supported"),
        ("header = 1", "header must be"),
        ("header = {a = 1}", "header a cannot be sent"),
        ('header = {"a b" = "x"}', "header a b cannot be sent"),
        ('header = {a = "x\\r\\nHost: y"}', "header a cannot be sent"),
        ('header = {a = "é"}', "header a cannot be sent"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        hosts(tmp_path, text)
    assert str(tmp_path / NAMESPACE / "hosts.toml") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "user:pw" not in str(caught.value)


def test_a_file_that_is_no_text_or_cannot_be_read_is_told(tmp_path: Path) -> None:
    directory = tmp_path / NAMESPACE
    directory.mkdir()
    (directory / "hosts.toml").write_bytes(b"server = '\xff'")
    with pytest.raises(UsageError, match="not TOML"):
        find(tmp_path, RegistryUrl.parse(URL))
    (directory / "hosts.toml").unlink()
    (directory / "hosts.toml").mkdir()
    with pytest.raises(UsageError, match=r"cannot read .*Is a directory"):
        find(tmp_path, RegistryUrl.parse(URL))


VALUES = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.text("ab/:.\x00é", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=2),
    max_leaves=6,
)
KEYS = ["server", "host", "capabilities", "ca", "client", "skip_verify", "header"]


def _toml(value: object) -> str:
    """Write a value as TOML, in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(one):08x}" for one in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    return str(value)


@pytest.mark.expects_log(".")
@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES), st.dictionaries(st.sampled_from(KEYS), VALUES)
)
def test_whatever_the_values_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, top: dict[str, object], entry: dict[str, object]
) -> None:
    directory = tmp_path_factory.mktemp("hosts")
    lines = [f"{key} = {_toml(value)}" for key, value in top.items() if key != "host"]
    lines += ['[host."m.example"]', *(f"{key} = {_toml(value)}" for key, value in entry.items())]
    try:
        found = hosts(directory, "\n".join(lines))
    except UsageError:
        return
    assert len(found.mirrors) == 1


# --- how a host is spoken to ------------------------------------------------------------------


def test_the_command_line_takes_precedence_over_the_file() -> None:
    host = HostConfig(URL, skip_verify=True, ca_certs=(Path("/file"),), connect_timeout=1.0)
    options = host.options(TransportOptions(tls_verify=True, ca_certs=(Path("/given"),)), NAMESPACE)
    assert options.tls_verify is True
    assert options.ca_certs == (Path("/given"), Path("/file"))
    assert options.connect_timeout == 1.0
    assert host.options(TransportOptions(), NAMESPACE).tls_verify is False


def test_a_host_of_another_name_is_told_the_namespace() -> None:
    another = HostConfig("https://m.example")
    assert HostConfig(URL).options(TransportOptions(), NAMESPACE).namespace == ""
    assert another.options(TransportOptions(), NAMESPACE).namespace == NAMESPACE
