"""A sender of requests: to where redirects lead, with the login shown at one origin only."""

from __future__ import annotations

import logging

from requests import PreparedRequest
from requests.structures import CaseInsensitiveDict

from epochfs import __version__
from epochfs.client.transport.connections import Adapter, watch_in_use
from epochfs.client.transport.faults import converted
from epochfs.client.transport.request import Request, described
from epochfs.client.transport.responses import Answer, TransportStats
from epochfs.client.transport.streams import UploadBody
from epochfs.client.transport.tls import TlsPolicy
from epochfs.client.transport.urls import Origin, Url
from epochfs.client.transport.watchdog import Watch
from epochfs.config import TransportOptions
from epochfs.errors import ProtocolViolation, Unavailable

log = logging.getLogger(__name__)

_MAX_REDIRECTS = 5


class Sender:
    """Sends requests by one adapter. Safe under threads.

    The headers of the options are shown to the origin of `base` only.
    """

    def __init__(
        self,
        base: Url,
        options: TransportOptions,
        tls: TlsPolicy,
        adapter: Adapter,
        stats: TransportStats,
    ) -> None:
        self._base = base
        self._options = options
        self._tls = tls
        self._adapter = adapter
        self._stats = stats

    def follow(self, request: Request, home: Origin, authorization: str, watch: Watch) -> Answer:
        """Send a request to where redirects lead; `authorization` is shown at `home` only."""
        url = request.url
        for _ in range(_MAX_REDIRECTS + 1):
            if not request.restart():
                raise Unavailable(f"{described(request, url)}: the body cannot be sent again")
            answer = self._send(request, url, authorization if url.origin == home else "", watch)
            if not answer.location:
                return answer
            answer.read_error()
            url = url.follow(answer.location)
            if request.confined and url.origin != home:
                raise ProtocolViolation(f"{answer.what}: redirects credentials to {url.site}")
        raise ProtocolViolation(f"{described(request, request.url)}: over 5 redirects")

    def _send(self, request: Request, url: Url, authorization: str, watch: Watch) -> Answer:
        """Send one request to one server and return its answer, whatever that is."""
        headers: CaseInsensitiveDict[str] = CaseInsensitiveDict(
            {"User-Agent": f"epochfs/{__version__}", "Accept-Encoding": "identity"}
        )
        headers.update(request.headers)
        if url.origin == self._base.origin:
            headers.update(self._options.headers)
        if authorization:
            headers["Authorization"] = authorization
        body = request.body
        if body is not None:
            headers["Content-Length"] = str(len(body))
        if isinstance(body, UploadBody):
            body.watch = watch
        prepared = PreparedRequest()
        prepared.method, prepared.url, prepared.headers = request.method, str(url), headers
        prepared.body = body  # type: ignore[assignment] # all the adapter needs of it is `read`
        proxy = self._adapter.proxy_for(url)
        proxies = {"all": proxy} if proxy else {}
        what = described(request, url, proxy)
        self._stats.count(requests=1)
        token = watch_in_use.set(watch)
        try:
            timeout = (self._options.connect_timeout, self._options.timeout)
            with converted(what, watch, identified=self._tls.identifies(url.hostname)):
                raw = self._adapter.send(
                    prepared, stream=True, timeout=timeout, proxies=proxies
                ).raw
        finally:
            watch_in_use.reset(token)
        log.debug("%s: %d", what, raw.status)
        return Answer(raw, what, request.method, url, authorization, watch, self._stats)
