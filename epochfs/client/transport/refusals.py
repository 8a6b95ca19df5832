"""The meaning of refusals, the registry's and its token server's, and their causes (`causes`)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from epochfs.client.auth import describe_schemes, parse_challenges
from epochfs.client.causes import Cause
from epochfs.client.transport.faults import TRANSIENT_STATUSES, error_entries, json_object
from epochfs.client.transport.request import Origin, Url
from epochfs.client.transport.responses import Reply
from epochfs.errors import (
    DeadlineExceeded,
    Denied,
    EpochfsError,
    NotFound,
    ProtocolViolation,
    TlsFailure,
    TooLarge,
    Unavailable,
    UnconfirmedNotFound,
    Unsupported,
    explained,
    printable,
    printable_url,
)

_HTML = re.compile(rb"\s*<(?:!doctype html|html|head|body|h1|center)\b", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]*>(.{1,500}?)</title>", re.IGNORECASE | re.DOTALL)

_PAGES = (
    (rb"No required SSL certificate was sent", TlsFailure, Cause.CLIENT_CERTIFICATE_MISSING),
    (rb"The SSL certificate error", TlsFailure, Cause.CLIENT_CERTIFICATE_REFUSED),
    (
        rb"plain HTTP request was sent to HTTPS port|HTTP request to an HTTPS server|"
        rb"plain HTTP to an SSL-enabled server",
        ProtocolViolation,
        Cause.HTTPS_WANTED,
    ),
    (rb"Request Header (?:Or Cookie )?Too Large", ProtocolViolation, Cause.HEADER_TOO_LARGE),
)
"""What web servers in front of a registry say with 400: nginx and its like, Go, Apache."""

_STATUSES: dict[int, tuple[type[EpochfsError], Cause]] = {
    407: (Unavailable, Cause.PROXY_WANTS_LOGIN),
    431: (ProtocolViolation, Cause.HEADER_TOO_LARGE),
    494: (ProtocolViolation, Cause.HEADER_TOO_LARGE),
    495: (TlsFailure, Cause.CLIENT_CERTIFICATE_REFUSED),
    496: (TlsFailure, Cause.CLIENT_CERTIFICATE_MISSING),
    497: (ProtocolViolation, Cause.HTTPS_WANTED),
}
"""RFC 6585, RFC 9110, and nginx's own."""

_REASONS = ("error", "error_description", "details", "message")
"""Where token servers say why: OAuth 2 (RFC 6749, section 5.2), the Distribution project's."""


@dataclass(frozen=True, slots=True)
class Asker:
    """As whom a registry was asked: `account` is for people.

    `anonymous`: nothing has been sent so far. `static`: a token is sent as it was given. A `mirror`
    is sent nothing that was given. `clean` removes secrets from a server's words.
    """

    account: str
    anonymous: bool
    static: bool
    mirror: bool
    clean: Callable[[str], str]


def refusal(reply: Reply, asker: Asker, home: Origin) -> EpochfsError:
    """Return the error for an answer that was not hoped for, from the registry or elsewhere.

    What storage says, where the registry redirected us, is not the registry's word: it neither
    denies nor disowns anything, and is Unavailable. Another registry's NotFound, in the
    specification's words, counts as much as that of the registry that redirects there.
    """
    here = reply.url.origin == home
    shown = describe(reply, asker.clean)
    if here and (found := _blamed(reply, asker)):
        kind, sentence = found
        return explained(kind(f"{shown}: {sentence}"))
    error = _by_status(reply, shown)
    if here or isinstance(error, Unavailable):
        return error
    # Blobs are what registries redirect to storage; with anything else it is to a registry.
    if reply.url.path.startswith("/v2/") and "/blobs/" not in reply.url.path:
        if isinstance(error, Denied):
            return redirected(reply, home)
        if type(error) is NotFound:
            return error
    site = reply.url.origin.site
    return Unavailable(f"{error}; it is the storage at {site} that refuses this")


def redirected(reply: Reply, home: Origin) -> EpochfsError:
    """Return the error for a registry elsewhere that wants a login, which it is not sent."""
    sentence = Cause.REDIRECTED.told(registry=home.site, site=reply.url.origin.site)
    return explained(Unavailable(f"{reply.what}: {reply.status}: {sentence}"))


def _by_status(reply: Reply, shown: str) -> EpochfsError:
    """Return the error for a status, or for an error code of the specification's.

    A code that ends in _UNKNOWN means not found, whatever the status.
    """
    codes = reply.codes
    if reply.status in (401, 403):
        return Denied(f"{shown}: access is refused")
    if any(code.endswith("_UNKNOWN") for code in codes) or (reply.status == 404 and any(codes)):
        return NotFound(shown)
    if reply.status == 404:
        return UnconfirmedNotFound(shown)
    if reply.status in (405, 501) or "UNSUPPORTED" in codes:
        return Unsupported(f"{shown}: the registry does not offer this")
    if reply.status == 413:
        return TooLarge(f"{shown}: the document is too large for the registry")
    if reply.status in TRANSIENT_STATUSES:
        return Unavailable(shown)
    return ProtocolViolation(f"{shown}: unexpected answer")


def describe(reply: Reply, clean: Callable[[str], str]) -> str:
    """Return what was asked and answered, with the server's reasons or else its page's title."""
    words = "; ".join(f"{code}: {message}" for code, message in error_entries(reply.body))
    words = words or web_page(reply.body)
    return f"{reply.what}: {reply.status}{f' ({printable(clean(words))})' if words else ''}"


def web_page(body: bytes) -> str:
    """Return that a body is a web page, with its title; "" if it is not."""
    if not _HTML.match(body):
        return ""
    title = _TITLE.search(body)
    named = f", '{' '.join(title[1].decode('latin-1').split())}'" if title else ""
    return f"a web page{named}"


def later(reply: Reply) -> str:
    """Return when to try again, by the Retry-After of an answer."""
    seconds = retry_after(reply.headers.get("Retry-After", ""))
    return f"in {seconds:.0f} s" if seconds else "in a while"


def _blamed(reply: Reply, asker: Asker) -> tuple[type[EpochfsError], str] | None:
    """Return the kind of error and who is to blame, if that can be told."""
    if reply.status in (401, 403) and asker.mirror and not reply.what.authorization:
        return Denied, Cause.MIRROR_REFUSES.told()
    if reply.status == 401 or (reply.status == 403 and _token_error(reply)):
        return Denied, _unauthorized(reply, asker)
    if reply.status == 403:
        anonymous = asker.anonymous and not reply.what.authorization
        cause = Cause.ANONYMOUS_REFUSED if anonymous else Cause.ACCOUNT_REFUSED
        return Denied, cause.told(account=asker.account)
    facts = {"length": len(reply.what.authorization)}
    if reply.status in _STATUSES:
        kind, cause = _STATUSES[reply.status]
        return kind, cause.told(**facts)
    if reply.status == 400 and not error_entries(reply.body):
        for pattern, kind, cause in _PAGES:
            if re.search(pattern, reply.body, re.IGNORECASE):
                return kind, cause.told(**facts)
    if reply.status == 429:
        return Unavailable, Cause.LIMITS.told(later=later(reply))
    return (Unavailable, Cause.FAILS.told()) if reply.status in TRANSIENT_STATUSES else None


def _token_error(reply: Reply) -> str:
    """Return what a challenge says is wrong with a token (RFC 6750, section 3.1), or ""."""
    challenges = parse_challenges(reply.headers.get("WWW-Authenticate", ""))
    return next((one.parameters.get("error", "") for one in challenges), "")


def _unauthorized(reply: Reply, asker: Asker) -> str:
    """Return what a 401 means, by what was sent and what is asked for."""
    header = reply.headers.get("WWW-Authenticate", "")
    offered = {challenge.scheme: challenge.parameters for challenge in parse_challenges(header)}
    sent = reply.what.authorization.partition(" ")[0].lower()
    bearer = offered.get("bearer", {})
    said = ": ".join(filter(None, map(bearer.get, ("error", "error_description"))))
    facts = {
        "account": asker.account,
        "realm": printable_url(bearer.get("realm", "")),
        "said": asker.clean(said) or "it does not say why",
        "offered": describe_schemes(header),
    }
    return _cause_of_401(sent, set(offered), bearer.get("error", ""), asker).told(**facts)


def _cause_of_401(sent: str, offered: set[str], error: str, asker: Asker) -> Cause:
    if offered and not offered & {"basic", "bearer"}:
        return Cause.NO_COMMON_SCHEME
    if not sent:
        if not offered:
            return Cause.NO_CHALLENGE
        return Cause.NO_LOGIN if asker.anonymous or "bearer" not in offered else Cause.NO_TOKEN
    if sent != "bearer" or (offered and "bearer" not in offered and not asker.static):
        return Cause.LOGIN_REFUSED
    if asker.static:
        misfit = offered and "bearer" not in offered
        return Cause.PASSWORD_WANTED if misfit else Cause.GIVEN_TOKEN_REFUSED
    if asker.anonymous and error != "invalid_token":
        return Cause.ANONYMOUS_REFUSED
    rows = {"invalid_token": Cause.ISSUED_TOKEN_REFUSED, "insufficient_scope": Cause.RIGHTS_MISSING}
    return rows.get(error, Cause.TOKEN_NOT_ENOUGH)


def retry_after(header: str) -> float:
    """Return the seconds a Retry-After header asks for (RFC 9110, 10.2.3); 0 if it says nothing."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:18])
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError, TypeError):
        return 0.0


class TokenServer:
    """One token server, as errors show it; `account` is whom a token is requested for."""

    def __init__(self, url: Url, account: str, clean: Callable[[str], str]) -> None:
        self._realm = printable_url(url)
        self._origin = url.origin
        self._account = account
        self._clean = clean

    def transient(self, reply: Reply) -> EpochfsError:
        """Return the error for an answer that another attempt may get past."""
        if reply.status == 429:
            return self._blamed(Unavailable, reply, Cause.TOKEN_SERVER_LIMITS)
        return self._blamed(Unavailable, reply, Cause.TOKEN_SERVER_FAILS)

    def failed(self, error: EpochfsError) -> EpochfsError:
        """Return the error for a token server that gave no answer, or an unreadable one."""
        if error.explained:
            return error
        if isinstance(error, Unavailable | DeadlineExceeded):
            sentence = Cause.TOKEN_SERVER_DOWN.told(realm=self._realm)
            return explained(type(error)(f"{error}: {sentence}"))
        sentence = Cause.TOKEN_SERVER_UNINTELLIGIBLE.told(realm=self._realm)
        return explained(ProtocolViolation(f"{error}: {sentence}"))

    def token_in(self, reply: Reply, *, posted: bool) -> bytes:
        """Return the body of a 200; raises as `auth.Fetch` does."""
        if reply.status in (401, 403) and reply.url.origin != self._origin:
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
            site=reply.url.origin.site,
            said=self._clean(_reason(reply.body)) or "it does not say why",
        )
        return explained(kind(f"{describe(reply, self._clean)}: {sentence}"))


def _reason(body: bytes) -> str:
    """Return why a token server refuses, if it says so in one of the usual fields."""
    fields = json_object(body)
    return ": ".join(
        text for name in _REASONS if isinstance(text := fields.get(name), str) and text
    )
