"""The errors that refusals become, and who is to blame for each (`causes`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from epochfs.client.auth import describe_schemes, parse_challenges
from epochfs.client.causes import Cause
from epochfs.client.transport.faults import TRANSIENT_STATUSES, error_entries
from epochfs.client.transport.responses import Reply
from epochfs.client.transport.retries import retry_after
from epochfs.errors import (
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


@dataclass(frozen=True, slots=True)
class Asker:
    """As whom a registry was asked: `account` is for people.

    `anonymous` is who has shown nothing so far, `static` a token as it was given. A `mirror` is
    shown nothing that was given. `clean` takes what is secret out of a server's words.
    """

    account: str
    anonymous: bool
    static: bool
    mirror: bool
    clean: Callable[[str], str]


def refusal(reply: Reply, asker: Asker, *, here: bool = True) -> EpochfsError:
    """Return the error for an answer that is not the one hoped for (design, section 6).

    A code that ends in _UNKNOWN means not found whatever the status is. `here` says that it is the
    registry's, or of what stands in front of it, so that it can be told what to do about it.
    """
    shown = describe(reply, asker.clean)
    if here and (found := _blamed(reply, asker)):
        kind, sentence = found
        return explained(kind(f"{shown}: {sentence}"))
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
        return TooLarge(f"{shown}: the registry takes no document so large")
    if reply.status in TRANSIENT_STATUSES:
        return Unavailable(shown)
    return ProtocolViolation(f"{shown}: not an answer to expect")


def describe(reply: Reply, clean: Callable[[str], str]) -> str:
    """Return what was asked and answered, with the server's reasons or else its page's title."""
    words = "; ".join(f"{code}: {message}" for code, message in error_entries(reply.body))
    words = words or web_page(reply.body)
    return f"{reply.what}: {reply.status}{f' ({printable(clean(words))})' if words else ''}"


def web_page(body: bytes) -> str:
    """Return that a body is a web page, and its title; "" if it is none."""
    if not _HTML.match(body):
        return ""
    title = _TITLE.search(body)
    named = f", '{' '.join(title[1].decode('latin-1').split())}'" if title else ""
    return f"a web page{named}"


def later(reply: Reply) -> str:
    """Return when an answer asks to be asked again, by its Retry-After."""
    seconds = retry_after(reply.headers.get("Retry-After", ""))
    return f"in {seconds:.0f} s" if seconds else "in a while"


def _blamed(reply: Reply, asker: Asker) -> tuple[type[EpochfsError], str] | None:
    """Return what kind of error an answer is and who is to blame, if that can be told."""
    if reply.status in (401, 403) and asker.mirror and not reply.authorization:
        return Denied, Cause.MIRROR_REFUSES.told()
    if reply.status == 401 or (reply.status == 403 and _token_error(reply)):
        return Denied, _unauthorized(reply, asker)
    if reply.status == 403:
        anonymous = asker.anonymous and not reply.authorization
        cause = Cause.ANONYMOUS_REFUSED if anonymous else Cause.ACCOUNT_REFUSED
        return Denied, cause.told(account=asker.account)
    facts = {"length": len(reply.authorization)}
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
    """Return what a challenge says to be wrong with a token (RFC 6750, section 3.1), or ""."""
    challenges = parse_challenges(reply.headers.get("WWW-Authenticate", ""))
    return next((one.parameters.get("error", "") for one in challenges), "")


def _unauthorized(reply: Reply, asker: Asker) -> str:
    """Return what a 401 means, by what was sent and what is asked for."""
    header = reply.headers.get("WWW-Authenticate", "")
    offered = {challenge.scheme: challenge.parameters for challenge in parse_challenges(header)}
    sent = reply.authorization.partition(" ")[0].lower()
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
