"""A request as a value, and as an error may show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from epochfs.client.transport.streams import UploadBody
from epochfs.client.transport.urls import Url
from epochfs.errors import printable, printable_url

_NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Request:
    """A request to be made. `scope` names the access it needs, such as `library/nginx:pull`.

    `repeatable` allows another attempt after the server may have acted on the first. `confined`
    says that the body is for this server alone, wherever it redirects to. `hashed` says that the
    caller holds the answer's body against a digest, whatever its Content-Encoding.
    """

    method: str
    url: Url
    scope: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS)
    body: bytes | UploadBody | None = None
    repeatable: bool = True
    confined: bool = False
    hashed: bool = False

    def restart(self) -> bool:
        """Go back to the start of the body; return False if it cannot be sent from there."""
        return not isinstance(self.body, UploadBody) or self.body.restart()


def described(request: Request, url: Url, proxy: str = "") -> str:
    """Return a request as an error or the log may show it: no query, and no path elsewhere.

    It names the `proxy` it goes by, which then is the first that may have failed.
    """
    way = f" (by the proxy {printable_url(proxy)})" if proxy else ""
    if url.origin == request.url.origin:
        return f"{request.method} {url.site}{printable(url.path)}{way}"
    return f"{request.method} {url.site} (redirected from {request.url.site}){way}"


def is_of_a_registry(url: Url) -> bool:
    """Whether a redirect has led to another registry: to storage those of blobs lead."""
    return url.path.startswith("/v2/") and "/blobs/" not in url.path
