"""Where a server may send us: parsing, redirects, next pages."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epochfs.client.transport import Url, next_page
from epochfs.errors import ProtocolViolation, printable_url

HERE = Url.parse("https://reg.example/v2/_catalog?n=2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h", "http://h/"),
        ("HTTP://H:80/X", "http://h/X"),
        ("https://h:5000/a?b=c#d", "https://h:5000/a?b=c"),
        ("https://h?b", "https://h/?b"),
        ("http://[::1]:5000/", "http://[::1]:5000/"),
        ("https://h/a%2Fb?x=%7e&y=a+b", "https://h/a%2Fb?x=%7e&y=a+b"),
        ("https://h/a b|\xe9", "https://h/a%20b%7C%E9"),
    ],
)
def test_urls_are_parsed_and_put_together_again(text: str, expected: str) -> None:
    assert str(Url.parse(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h:5000/x",
        "/v2/",
        "file:///etc/passwd",
        "ftp://h/",
        "http:///x",
        "http://user:pw@h/",
        "http://h@evil/",
        "http://h\\@evil/",
        "http://h:port/",
        "http://h:99999/",
        "http://h\r\nX: y/",
        "http://h/\x00",
        "http://[x",
        "http://ĥ/",
    ],
)
def test_other_urls_are_refused(text: str) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        Url.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/v2/x?a=b", "https://reg.example/v2/x?a=b"),
        ("x", "https://reg.example/v2/x"),
        ("//cdn.example/x", "https://cdn.example/x"),
        ("https://cdn.example/x?sig=1", "https://cdn.example/x?sig=1"),
    ],
)
def test_locations_are_followed(location: str, expected: str) -> None:
    assert str(HERE.follow(location)) == expected


@pytest.mark.parametrize(
    "location", ["http://reg.example/x", "file:///x", "javascript:1", "/a\tb", "https://[x/"]
)
def test_doubtful_locations_are_refused(location: str) -> None:
    with pytest.raises(ProtocolViolation):
        HERE.follow(location)


SECRET = "geheim"

SECRETIVE = (
    f"ftp://h/x?signature={SECRET}",
    f"ftp://h/x#{SECRET}",
    f"http://me:{SECRET}@h/x",
    f"http://{SECRET}@h/x",
    f"//me:{SECRET}@h",
    f"http://me:pass/{SECRET}@h/x",
    f"http://me:pass?{SECRET}@h/x",
    f"http://me:pass#{SECRET}@h/x",
    f"http://me:a@{SECRET}@h/x",
    f"http://me:{SECRET}@h:99999/x",
    f"http:\\\\me:{SECRET}@h/x",
    f"http://me:{SECRET}\\@h/x",
    f"http://me:{SECRET}\uff20h/x",
    f"http://me:{SECRET}\n@h/x",
    f"me:{SECRET}@h/x",
    f"http://h/x?signature={SECRET}&by=me@example.org",
    f"http://{'a' * 300}:{SECRET}@h/x",
)


@pytest.mark.parametrize("text", SECRETIVE)
def test_a_url_is_shown_without_what_may_be_secret_in_it(text: str) -> None:
    shown = printable_url(text)
    assert SECRET not in shown
    assert shown.isprintable()
    assert shown.isascii()
    with contextlib.suppress(ProtocolViolation):
        assert SECRET not in Url.parse(text).origin.site
    for read in (Url.parse, HERE.follow, lambda link: next_page(f"<{link}>; rel=next", HERE)):
        try:
            read(text)
        except ProtocolViolation as error:
            assert SECRET not in str(error)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h:5000/v2/a", "https://h:5000/v2/a"),
        ("https://h:5000/v2/a?n=1", "https://h:5000/v2/a"),
        ("ftp://me:secret@h:21/a", "ftp://***@h:21/a"),
        ("me:secret@h", "***@h"),
        ("/token", "/token"),
        ("", ""),
    ],
)
def test_what_is_no_secret_in_a_url_is_shown(text: str, shown: str) -> None:
    assert printable_url(text) == shown


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("", None),
        ('</v2/_catalog?last=b&n=2>; rel="next"', "/v2/_catalog?last=b&n=2"),
        ("</v2/x>; rel=next", "/v2/x"),
        ("</v2/x>;REL=NEXT", "/v2/x"),
        ('</v2/x>; title="a, b; c"; rel="next"', "/v2/x"),
        ('</v2/a>; rel="first", </v2/b,c>; rel="prev next"', "/v2/b,c"),
        ('<https://reg.example/v2/x>; rel="next"', "/v2/x"),
        ('<https://reg.example:443/v2/x>; rel="next"', "/v2/x"),
        ("<?last=b>; rel=next", "/v2/_catalog?last=b"),
        ('</v2/x>; rel="prev"; rel="next"', None),
        ("</v2/x>", None),
        ('</evil>; rel="help"', None),
    ],
)
def test_the_next_page(link: str, expected: str | None) -> None:
    page = next_page(link, HERE)
    assert (page.target if page else None) == expected


@pytest.mark.parametrize(
    "site",
    [
        "https://evil.example",
        "http://reg.example",
        "HTTP://inner_name:5000",
        "https://reg.example:444",
        "https://reg.example:99999",
        "//evil.example",
        "https://me:secret@evil.example",
        "https://reg.example@evil.example",
        "http://[::1",
        "http://",
        "unix://socket",
        "//",
        "file://",
    ],
)
def test_the_next_page_is_here_whatever_site_is_named(site: str) -> None:
    page = next_page(f'<{site}/v2/x?last=a%2Fb&n=2>; rel="next"', HERE)
    assert page == HERE.at("/v2/x?last=a%2Fb&n=2")


@pytest.mark.parametrize(
    "link",
    [
        '<https://evil.example/api/x>; rel="next"',
        '<https://evil.example>; rel="next"',
        '<https://evil.example?last=x>; rel="next"',
        '<https://evil.example//v2/x>; rel="next"',
        '<https://evil.example///evil.example/v2/x>; rel="next"',
        '<https://evil.example/v2/../api/x>; rel="next"',
        '<https://evil.example/v2/%2e%2e/api/x>; rel="next"',
        '<https://evil.example/v2/\tx>; rel="next"',
        '</api/x>; rel="next"',
        '</v2>; rel="next"',
        '</v2/../api/x>; rel="next"',
        '</v2/%2E./api/x>; rel="next"',
        '<file:/v2/x>; rel="next"',
        '<javascript:alert(1)>; rel="next"',
        "</v2/x",
        'rel="next"',
        '</v2/x>; rel="next',
    ],
)
def test_a_doubtful_next_page_is_refused(link: str) -> None:
    with pytest.raises(ProtocolViolation) as raised:
        next_page(link, HERE)
    assert "evil" not in str(raised.value)


@given(st.text(alphabet='</v2>; rel="next",\\=', max_size=200))
def test_no_link_breaks_the_parser(link: str) -> None:
    try:
        page = next_page(link, HERE)
    except ProtocolViolation:
        return
    assert page is None or page.origin == HERE.origin


@pytest.mark.parametrize("part", [";", '; a="\\', "<>", ";a=", "; a ", ",", " "])
def test_a_long_hostile_link_is_refused_in_no_time(part: str) -> None:
    started = time.thread_time()
    with contextlib.suppress(ProtocolViolation):
        next_page("</v2/x>" + part * (60_000 // len(part)) + "!", HERE)
    assert time.thread_time() - started < 1
