"""Listings of names, page by page: all of them, none that is no text, and never without an end."""

from __future__ import annotations

import pytest
from support.answers import errors, listing
from support.clients import Connect, connecting
from support.lies import Destinations
from support.scripted import Seen, Step, at_most, reply

from epochfs.config import TransportOptions
from epochfs.errors import (
    DeadlineExceeded,
    Denied,
    ProtocolViolation,
    Unavailable,
    Unsupported,
)

connect = pytest.fixture(connecting)


def test_all_pages_are_listed(connect: Connect) -> None:
    def script(seen: Seen) -> list[Step]:
        if "last=b" in seen.target:
            return listing("tags", ["c"])
        return listing("tags", ["a", "b"], Link='</v2/x/tags/list?last=b&n=2>; rel="next"')

    server, client = connect(script)
    assert client.list_tags("x") == ["a", "b", "c"]
    assert server.seen[1].target == "/v2/x/tags/list?last=b&n=2"


@pytest.mark.parametrize("body", [b'{"tags": null}', b'{"name": "x"}', b'{"tags": []}'])
def test_no_tags_are_an_empty_list(connect: Connect, body: bytes) -> None:
    _, client = connect(lambda _: [reply(200, body)])
    assert client.list_tags("x") == []


def test_names_are_returned_as_they_are(connect: Connect) -> None:
    names = ["..", "/x", "", "a\nb", "\ud800", "a" * 5000]
    _, client = connect(lambda _: listing("repositories", names))
    assert client.catalog() == names


@pytest.mark.expects_log("left out 2 names")
def test_what_is_no_text_is_left_out_with_one_warning(connect: Connect) -> None:
    _, client = connect(lambda _: listing("repositories", ["a", 7, None, "b"]))
    assert client.catalog() == ["a", "b"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"7",
        b"<html>",
        b'{"tags": 7}',
        b'{"tags": {"a": "b"}}',
        b'{"tags": [], "tags": ["x"]}',
        b'{"tags": NaN}',
        b"\xef\xbb\xbf{}",
        b'{"tags": [' + b"[" * 100_000,
        b'{"tags": ' + b"7" * 10_000 + b"}",
    ],
    ids=range(11),
)
def test_a_listing_that_is_none_is_a_violation(connect: Connect, body: bytes) -> None:
    _, client = connect(lambda _: [reply(200, body)])
    with pytest.raises(ProtocolViolation):
        client.list_tags("x")


@pytest.mark.parametrize(
    "link",
    [
        '</v2/x/tags/list?n=1000>; rel="next"',
        '<http://elsewhere.example/v2/x/tags/list?n=1000>; rel="next"',
        '<http://127.0.0.1:9/api/x>; rel="next"',
        '<file:///etc/passwd>; rel="next"',
        '</api/x>; rel="next"',
        "<",
    ],
)
def test_a_doubtful_next_page_is_not_asked_for(connect: Connect, link: str) -> None:
    server, client = connect(lambda _: listing("tags", ["a"], Link=link))
    with pytest.raises(ProtocolViolation):
        client.list_tags("x")
    assert len(server.seen) == 1


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
@pytest.mark.parametrize("host", ["{host}", "inner:5000", "169.254.169.254", "me:secret@inner"])
def test_the_next_page_is_asked_of_the_registry_whatever_host_is_named(
    connect: Connect, scheme: str, host: str
) -> None:
    """As registries behind a proxy do, which ends TLS and has another name."""
    path = "/v2/_catalog?last=a"

    def script(seen: Seen) -> list[Step]:
        if seen.target == path:
            return listing("repositories", ["b"])
        site = f"{scheme}://{host.format(host=seen.headers['host'])}"
        return listing("repositories", ["a"], Link=f'<{site}{path}>; rel="next"')

    server, client = connect(script)
    with Destinations() as reached:
        assert client.catalog() == ["a", "b"]
    assert {f"{name}:{port}" for name, port in reached} == {server.host}


def test_a_listing_that_was_redirected_goes_on_at_the_registry(connect: Connect) -> None:
    link = '</v2/x/tags/list?last=a>; rel="next"'

    def home(seen: Seen) -> list[Step]:
        away.append("last" in seen.target)
        return [reply(307, Location=f"{other.url}{seen.target}")]

    away: list[bool] = []
    other, _ = connect(
        lambda seen: (
            listing("tags", ["b"]) if "last" in seen.target else listing("tags", ["a"], Link=link)
        )
    )
    _, client = connect(home)
    assert client.list_tags("x") == ["a", "b"]
    assert away == [False, True]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply(404), ProtocolViolation),
        (reply(404, errors("NAME_UNKNOWN")), ProtocolViolation),
        (reply(405), ProtocolViolation),
        (reply(400), ProtocolViolation),
        (reply(200, b"<html>"), ProtocolViolation),
        (reply(403), Denied),
        (reply(503), Unavailable),
    ],
)
def test_a_listing_whose_next_page_is_refused_is_neither_short_nor_absent(
    connect: Connect, answer: bytes, error: type[Exception]
) -> None:
    def script(seen: Seen) -> list[Step]:
        if "last" in seen.target:
            return [answer]
        link = f'<{seen.path}?last=a>; rel="next"'
        return [reply(200, b'{"repositories": ["a"], "tags": ["a"]}', Link=link)]

    _, client = connect(script, options=TransportOptions(timeout=5.0, retries=0))
    for ask in (client.catalog, lambda: client.list_tags("x")):
        with pytest.raises(error) as raised:
            ask()
        assert type(raised.value) is error


def test_pages_that_never_end_meet_the_time_limit(connect: Connect) -> None:
    def script(seen: Seen) -> list[Step]:
        return listing("tags", ["a"], Link=f'<{seen.path}?last={len(server.seen)}>; rel="next"')

    server, client = connect(script, options=TransportOptions(timeout=0.5))
    with at_most(4), pytest.raises(DeadlineExceeded):
        client.list_tags("x")


def test_pages_are_counted(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epochfs.client.host._MOST_PAGES", 3)

    def script(seen: Seen) -> list[Step]:
        return listing("tags", ["a"], Link=f'<{seen.path}?last={len(server.seen)}>; rel="next"')

    server, client = connect(script)
    with pytest.raises(ProtocolViolation):
        client.list_tags("x")
    assert len(server.seen) == 3


def test_names_are_counted(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epochfs.client.host._MOST_NAMES", 3)
    _, client = connect(lambda _: listing("tags", ["a"] * 4))
    with pytest.raises(ProtocolViolation):
        client.list_tags("x")


@pytest.mark.parametrize("item", [[], {}, 1, None])
def test_what_is_no_name_is_counted_too_and_not_even_parsed(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, item: object
) -> None:
    monkeypatch.setattr("epochfs.client.host._MOST_NAMES", 3)
    monkeypatch.setattr("epochfs.client.host.load_json", pytest.fail)
    _, client = connect(lambda _: listing("tags", [item] * 5))
    with pytest.raises(ProtocolViolation, match="over 3 names"):
        client.list_tags("x")


def test_a_page_over_its_limit_is_a_violation(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.client.host._PAGE_LIMIT", 100)
    _, client = connect(lambda _: listing("tags", ["a"] * 100))
    with pytest.raises(ProtocolViolation):
        client.list_tags("x")


def test_a_registry_that_allows_fewer_names_a_page_chooses_itself(connect: Connect) -> None:
    server, client = connect(
        lambda seen: [reply(400)] if "?" in seen.target else listing("repositories", ["a"])
    )
    assert client.catalog() == ["a"]
    assert len(server.seen) == 2


def test_no_catalog_is_unsupported(connect: Connect) -> None:
    _, client = connect(lambda _: [reply(404)])
    with pytest.raises(Unsupported):
        client.catalog()
