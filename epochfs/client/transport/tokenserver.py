"""A token server's answers, and who is to blame where one is no token (`causes`)."""

from __future__ import annotations

import json
from collections.abc import Callable

from epochfs.client.causes import Cause
from epochfs.client.transport.refusals import describe, later
from epochfs.client.transport.responses import Reply
from epochfs.client.transport.urls import Url
from epochfs.errors import (
    DeadlineExceeded,
    Denied,
    EpochfsError,
    ProtocolViolation,
    Unavailable,
    Unsupported,
    explained,
    printable_url,
)

_REASONS = ("error", "error_description", "details", "message")
"""Where token servers say why: OAuth 2 (RFC 6749, section 5.2), the Distribution project's."""


class TokenServer:
    """One token server, as errors show it; `account` names whom a token is asked for."""

    def __init__(self, url: Url, account: str, clean: Callable[[str], str]) -> None:
        self._realm = printable_url(url)
        self._site = url.site
        self._account = account
        self._clean = clean

    def transient(self, reply: Reply) -> EpochfsError:
        """Return the error for an answer that another attempt may improve on."""
        if reply.status == 429:
            return self._blamed(Unavailable, reply, Cause.TOKEN_SERVER_LIMITS)
        return self._blamed(Unavailable, reply, Cause.TOKEN_SERVER_FAILS)

    def failed(self, error: EpochfsError) -> EpochfsError:
        """Return the error for a token server that gave no answer, or none that can be read."""
        if error.explained:
            return error
        if isinstance(error, Unavailable | DeadlineExceeded):
            sentence = Cause.TOKEN_SERVER_DOWN.told(realm=self._realm)
            return explained(type(error)(f"{error}: {sentence}"))
        sentence = Cause.TOKEN_SERVER_UNINTELLIGIBLE.told(realm=self._realm)
        return explained(ProtocolViolation(f"{error}: {sentence}"))

    def token_in(self, reply: Reply, *, posted: bool) -> bytes:
        """Return the body of a 200; raises as `auth.Fetch` does."""
        if reply.status in (401, 403) and reply.url.site != self._site:
            raise self._blamed(ProtocolViolation, reply, Cause.TOKEN_SERVER_REDIRECTS)
        if reply.status in (401, 403) or (posted and reply.status == 400):
            # 400 is OAuth's own way of refusing credentials (RFC 6749, section 5.2).
            raise self._blamed(Denied, reply, Cause.TOKEN_SERVER_REFUSES_LOGIN)
        if reply.status in (404, 405):
            raise self._blamed(Unsupported, reply, Cause.TOKEN_SERVER_UNINTELLIGIBLE)
        if reply.status != 200:
            raise self._blamed(ProtocolViolation, reply, Cause.TOKEN_SERVER_REFUSES_REQUEST)
        return reply.body

    def _blamed(self, kind: type[EpochfsError], reply: Reply, cause: Cause) -> EpochfsError:
        sentence = cause.told(
            realm=self._realm,
            account=self._account,
            later=later(reply),
            site=reply.url.site,
            said=self._clean(_reason(reply.body)) or "it does not say why",
        )
        return explained(kind(f"{describe(reply, self._clean)}: {sentence}"))


def _reason(body: bytes) -> str:
    """Return why a token server refuses, if it says so in one of the usual fields."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    fields = document if isinstance(document, dict) else {}
    return ": ".join(
        text for name in _REASONS if isinstance(text := fields.get(name), str) and text
    )
