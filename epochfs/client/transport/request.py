"""Requests: their URLs, their headers, and the bodies of uploads.

Every URL that a server names (redirects, `Link` headers, upload locations) is parsed here,
strictly, and put together again from its parts, so that what is checked and what is connected to
cannot differ.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO, NamedTuple, Self
from urllib.parse import parse_qs, quote, unquote, urljoin

from epochfs.client.transport.watchdog import Watch
from epochfs.config import DEFAULT_PORTS
from epochfs.errors import ProtocolViolation, UsageError, printable, printable_url

_ABSOLUTE = re.compile(
    r"(https?)://(\[[0-9a-f:.]+\]|[0-9a-z._~-]+)(?::([0-9]{1,5}))?([/?].*)?\Z", re.IGNORECASE
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_URL_CHARACTERS = "/?:@!$&'()*+,;=-._~%[]"

_PARAMETER = r'\s*;\s*([^;,"=\s]+)(?:\s*=\s*("(?:[^"\\]|\\.)*"|[^;,"\s]*))?'
_LINK = re.compile(rf"[\s,]*<([^<>]*)>((?:{_PARAMETER})*)\s*(?=,|\Z)")
_LINK_PARAMETER = re.compile(_PARAMETER)

_SITE = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//[^/?#]*", re.IGNORECASE)
"""Scheme and authority of a URL (RFC 3986, section 3), well-formed or not."""

_NO_HEADERS: Mapping[str, str] = {}


class Origin(NamedTuple):
    """What credentials are bound to (RFC 6454): scheme, host and port.

    `hostname` has no brackets if IPv6; `site` is what the origin's URLs begin with.
    """

    scheme: str
    hostname: str
    port: int
    site: str

    @classmethod
    def of(cls, scheme: str, host: str, port: int) -> Self:
        """Return the origin of a `host`, which has brackets if IPv6."""
        shown = "" if port == DEFAULT_PORTS[scheme] else f":{port}"
        return cls(scheme, host.strip("[]"), port, f"{scheme}://{host}{shown}")


@dataclass(frozen=True, slots=True)
class Url:
    """An absolute http(s) URL; `target` is its path and query, which may hold a signature."""

    origin: Origin
    target: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """Parse a URL that a server named; raises ProtocolViolation for all but plain http(s)."""
        match = None if _CONTROL.search(text) else _ABSOLUTE.match(text.partition("#")[0])
        if match is None or int(match[3] or 0) > 65535:
            shown = printable_url(text)
            raise ProtocolViolation(f"the server names a URL that is refused: '{shown}'")
        scheme, host = match[1].lower(), match[2].lower()
        port = int(match[3]) if match[3] else DEFAULT_PORTS[scheme]
        target = match[4] or "/"
        target = target if target.startswith("/") else f"/{target}"
        return cls(Origin.of(scheme, host, port), quote(_octets(target), safe=_URL_CHARACTERS))

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def at(self, target: str) -> Url:
        """Return the URL of another path and query on the same server."""
        return Url(self.origin, target)

    def with_parameter(self, name: str, value: str) -> Url:
        """Return the URL with one more query parameter."""
        joint = "&" if "?" in self.target else "?"
        return self.at(f"{self.target}{joint}{name}={quote(value, safe='')}")

    def has_parameter(self, name: str) -> bool:
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
        if self.origin.scheme == "https" and url.origin.scheme == "http":
            sites = f"{self.origin.site} redirects from https to http, at {url.origin.site}"
            raise ProtocolViolation(sites)
        return url

    def __str__(self) -> str:
        return f"{self.origin.site}{self.target}"


def next_page(link: str, current: Url, root: str = "/v2") -> Url | None:
    """Return the URL of a listing's next page, from its Link header (RFC 8288), or None.

    It is on the server of `current`, whatever scheme and host the header has: behind a proxy that
    ends TLS, or has another name, registries name what only they can reach. Raises
    ProtocolViolation for a page outside the API's `root`, and for a header that cannot be read:
    part of a listing must not pass for the whole.
    """
    position = 0
    while link[position:].strip(" \t,"):
        match = _LINK.match(link, position)
        if match is None:
            raise ProtocolViolation(f"{current.origin.site} sent a malformed Link header")
        position = match.end()
        if "next" in _relations(match[2]):
            url = _brought_home(match[1].strip(), current)
            inside = url.target.startswith(f"{root}/") and ".." not in unquote(url.path).split("/")
            if url.origin != current.origin or not inside:
                site = current.origin.site
                raise ProtocolViolation(f"{site} names a next page outside its {root}/")
            return url
    return None


def _brought_home(reference: str, current: Url) -> Url:
    """Return where a URL, relative or absolute, leads from here, ignoring its scheme and host."""
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


class UploadBody:
    """A blob to upload, whole or in parts; sending a piece is progress for the time limit."""

    def __init__(self, body: BinaryIO | bytes, size: int) -> None:
        """Take the next `size` bytes of `body`, which stays the caller's to close."""
        self._body = io.BytesIO(body) if isinstance(body, bytes) else body
        self.size = size
        self.rewindable = self._body.seekable()
        self._origin = self._body.tell() if self.rewindable else 0
        self._position = 0
        self._start, self._stop = 0, size
        self.watch: Watch | None = None

    def select(self, start: int, length: int) -> bool:
        """Make the next request's body the bytes from `start`, `length` or as many as there are.

        Returns False if the body is elsewhere and cannot seek.
        """
        self._start, self._stop = start, min(start + length, self.size)
        return self.restart()

    def restart(self) -> bool:
        """Go back to the start of the selected part; return False if the body cannot."""
        if self._position != self._start and self.rewindable:
            self._body.seek(self._origin + self._start)
            self._position = self._start
        return self._position == self._start

    def __len__(self) -> int:
        """The size of the next request's body."""
        return self._stop - self._start

    def read(self, n: int = -1) -> bytes:
        """Return up to `n` bytes of the part; raises UsageError if the body is too short."""
        if self.watch is not None:
            self.watch.renew()
        left = self._stop - self._position
        wanted = left if n < 0 else min(n, left)
        if wanted == 0:
            return b""
        try:
            data = self._body.read(wanted)
        except OSError as error:
            raise UsageError(f"the body to upload cannot be read: {error.strerror}") from error
        if not data:
            raise UsageError(f"the body to upload ends after {self._position} of {self.size} bytes")
        self._position += len(data)
        return data


@dataclass(frozen=True, slots=True)
class Request:
    """A request to be made. `scope` names the access it needs, such as `library/nginx:pull`; of
    several kinds, each has a line.

    `repeatable` allows another attempt after the server may have acted on the first. `confined`
    says that the body is for this server only, wherever it redirects to. `hashed` says that the
    caller verifies the body by a digest, whatever its Content-Encoding. After an error with
    `final_code` there is no other attempt.
    """

    method: str
    url: Url
    scope: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS)
    body: bytes | UploadBody | None = field(default=None, repr=False)
    repeatable: bool = True
    confined: bool = False
    hashed: bool = False
    final_code: str = ""

    def restart(self) -> bool:
        """Go back to the start of the body; return False if it cannot be sent from there."""
        return not isinstance(self.body, UploadBody) or self.body.restart()

    def without_range(self) -> Request:
        """Return the same request for all of a blob."""
        headers = {name: value for name, value in self.headers.items() if name != "Range"}
        return replace(self, headers=headers)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it goes to `url`; its text is what an error or the log may show of it.

    `proxy` is the URL of the one it takes, `authorization` what is sent with it, both "" for none.
    """

    request: Request
    url: Url
    proxy: str = ""
    authorization: str = field(default="", repr=False)

    def __str__(self) -> str:
        """Without query, and without path elsewhere; with the proxy, which may be what failed."""
        method, asked, here = self.request.method, self.request.url.origin, self.url.origin
        way = f" (by the proxy {printable_url(self.proxy)})" if self.proxy else ""
        if here == asked:
            return f"{method} {here.site}{printable(self.url.path)}{way}"
        return f"{method} {here.site} (redirected from {asked.site}){way}"
