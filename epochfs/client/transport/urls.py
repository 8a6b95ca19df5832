"""The URLs that a server may send us to: redirects, `Link` headers, upload locations.

Every URL that a server names is parsed here, strictly, and put together again from its parts, so
that what was checked and what is connected to cannot differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urljoin

from epochfs.errors import ProtocolViolation, printable_url

_ABSOLUTE = re.compile(
    r"(https?)://(\[[0-9a-f:.]+\]|[0-9a-z._~-]+)(?::([0-9]{1,5}))?([/?].*)?\Z", re.IGNORECASE
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_URL_CHARACTERS = "/?:@!$&'()*+,;=-._~%[]"
_DEFAULT_PORTS = {"http": 80, "https": 443}

_PARAMETER = r'\s*;\s*([^;,"=\s]+)(?:\s*=\s*("(?:[^"\\]|\\.)*"|[^;,"\s]*))?'
_LINK = re.compile(rf"[\s,]*<([^<>]*)>((?:{_PARAMETER})*)\s*(?=,|\Z)")
_LINK_PARAMETER = re.compile(_PARAMETER)

_SITE = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//[^/?#]*", re.IGNORECASE)
"""Scheme and authority of a URL (RFC 3986, section 3), well-formed or not."""

Origin = tuple[str, str, int]
"""Scheme, host and port: what credentials are bound to (RFC 6454)."""


@dataclass(frozen=True, slots=True)
class Url:
    """An absolute http(s) URL. `host` has its brackets if IPv6; `target` is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """Parse a URL a server named; raises ProtocolViolation for all but plain http(s)."""
        match = None if _CONTROL.search(text) else _ABSOLUTE.match(text.partition("#")[0])
        if match is None or int(match[3] or 0) > 65535:
            shown = printable_url(text)
            raise ProtocolViolation(f"the server names a URL that is refused: '{shown}'")
        scheme, host = match[1].lower(), match[2].lower()
        port = int(match[3]) if match[3] else _DEFAULT_PORTS[scheme]
        target = match[4] or "/"
        target = target if target.startswith("/") else f"/{target}"
        return cls(scheme, host, port, quote(_octets(target), safe=_URL_CHARACTERS))

    @property
    def origin(self) -> Origin:
        """Scheme, host and port."""
        return self.scheme, self.host, self.port

    @property
    def hostname(self) -> str:
        """The host without brackets."""
        return self.host.strip("[]")

    @property
    def site(self) -> str:
        """The URL without path and query, which may hold a signature."""
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"

    @property
    def path(self) -> str:
        """The path without the query."""
        return self.target.partition("?")[0]

    def at(self, target: str) -> Url:
        """Return the URL of another path and query on the same server."""
        return Url(self.scheme, self.host, self.port, target)

    def with_parameter(self, name: str, value: str) -> Url:
        """Return the URL with one more query parameter."""
        joint = "&" if "?" in self.target else "?"
        return self.at(f"{self.target}{joint}{name}={quote(value, safe='')}")

    def has_parameter(self, name: str) -> bool:
        """Whether there is a query parameter of that name."""
        return name in parse_qs(self.target.partition("?")[2], keep_blank_values=True)

    def follow(self, location: str) -> Url:
        """Return where a Location header, relative or absolute, leads from here.

        Raises ProtocolViolation for a step from https down to http and for any other scheme.
        """
        shown = printable_url(location)
        if _CONTROL.search(location):  # `urljoin` would drop some of them silently
            raise ProtocolViolation(f"a Location with control characters: '{shown}'")
        try:
            url = Url.parse(urljoin(str(self), location.strip()))
        except ValueError:
            raise ProtocolViolation(f"a malformed Location: '{shown}'") from None
        if self.scheme == "https" and url.scheme == "http":
            raise ProtocolViolation(f"{self.site} redirects from https to http, at {url.site}")
        return url

    def __str__(self) -> str:
        return f"{self.site}{self.target}"


def next_page(link: str, current: Url, root: str = "/v2") -> Url | None:
    """Return the URL of a listing's next page, from its Link header (RFC 8288), or None.

    It is on the server of `current`, whatever scheme and host the header has: behind a proxy that
    ends TLS, or that has another name, registries name what only they can reach. Raises
    ProtocolViolation for a header that cannot be read, as part of a listing must not pass for all
    of it, and for a page that is not under the API's `root`.
    """
    position = 0
    while link[position:].strip(" \t,"):
        match = _LINK.match(link, position)
        if match is None:
            raise ProtocolViolation(f"{current.site} sent a malformed Link header")
        position = match.end()
        if "next" in _relations(match[2]):
            url = _brought_home(match[1].strip(), current)
            inside = url.target.startswith(f"{root}/") and ".." not in unquote(url.path).split("/")
            if url.origin != current.origin or not inside:
                raise ProtocolViolation(f"{current.site} names a next page outside its {root}/")
            return url
    return None


def _brought_home(reference: str, current: Url) -> Url:
    """Return where a URL, relative or absolute, leads from here, but for its scheme and host."""
    site = _SITE.match(reference)
    if site is None:
        return current.follow(reference)
    target = reference[site.end() :]
    return current.follow(target if target.startswith("/") else f"/{target}")


def _relations(parameters: str) -> list[str]:
    """Return a link's relation types: those of its first `rel` (RFC 8288, section 3.3)."""
    for name, value in _LINK_PARAMETER.findall(parameters):
        if name.lower() == "rel":
            return str(value).strip('"').lower().split()
    return []


def _octets(text: str) -> bytes:
    """Return the bytes of a header's text, which http.client decodes as ISO 8859-1."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
