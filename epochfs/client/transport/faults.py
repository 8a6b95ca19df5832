"""Other libraries' exceptions made ours, and what a failure's status or body says.

No exception of requests, urllib3, http.client or ssl leaves the package: many are OSErrors, which
above would pass for errors of the local machine. Their texts are not used either, as they quote
whole URLs; what the operating system said is.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    NameResolutionError,
    NewConnectionError,
)

from epochfs.client.transport.tls import WRONG_HOST_CODES
from epochfs.client.transport.watchdog import Watch, WatchEnded
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
    printable,
)

TRANSIENT_STATUSES = frozenset({408, 429, *range(500, 600)} - {501})
"""Answers that another attempt may improve on."""


_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})\b")
"""How http.client tells that a proxy has refused."""


class WrongHost(Exception):
    """A server's certificate verifies, but is for other hosts; which, if known.

    Does not leave the package.
    """

    def __init__(self, names: list[str] | None) -> None:
        super().__init__("the certificate is for other hosts")
        self.names = names


_CONVERTED = (
    WatchEnded,
    WrongHost,
    requests.RequestException,
    HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)

_SKIP = "or trust it unseen with --tls-skip-verify"
_GIVE_CA = f"give the certificate of its authority with --ca-cert, {_SKIP}"
_CERTIFICATE_CURES = {
    9: "check this machine's clock, or have the server's certificate replaced",
    10: "have the server's certificate renewed, or check this machine's clock",
    18: f"if it is the right one, give it with --ca-cert, {_SKIP}",
    23: "it is revoked: have the server's certificate replaced",
}
"""What helps, by OpenSSL's code of what is wrong; with most others the authority is unknown."""


class Unreached(Unavailable):
    """No connection came about, so nothing was sent. Does not leave the package."""


class Broken(Unavailable):
    """The connection broke before the answer was complete. Does not leave the package."""


@contextmanager
def converted(what: str, watch: Watch) -> Iterator[None]:
    """Convert exceptions that must not leave; `what` is the request, as an error may show it."""
    try:
        yield
    except EpochfsError:
        raise
    except _CONVERTED as error:
        raise _convert(error, what, watch) from error


def _convert(error: Exception, what: str, watch: Watch) -> EpochfsError:
    causes = list(_causes(error))
    if watch.aborted:
        return Unavailable(f"{what}: the connection was closed from this side")
    if watch.expired:
        return DeadlineExceeded(f"{what}: no answer within {watch.timeout:g} s")
    for cause in causes:
        if isinstance(cause, WrongHost):
            return TlsFailure(f"{what}: {_wrong_host(cause.names)}")
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = printable(cause.verify_message)
            cure = _CERTIFICATE_CURES.get(cause.verify_code, _GIVE_CA)
            return TlsFailure(f"{what}: the certificate does not verify ({reason}): {cure}")
        if isinstance(cause, OSError) and (said := _TUNNEL.match(str(cause))):
            return Unavailable(f"{what}: {_proxy_refusal(int(said[1]))}")
        if isinstance(cause, NewConnectionError | NameResolutionError | ConnectTimeoutError):
            return Unreached(f"{what}: {_reason(causes)}")
        if isinstance(cause, TimeoutError):
            return DeadlineExceeded(f"{what}: no answer within the time limit")
        if isinstance(cause, ssl.SSLError) and not _cut_off(cause):
            return TlsFailure(f"{what}: {_tls_failure(cause.reason or '')}")
    if _malformed(causes):
        return ProtocolViolation(f"{what}: the answer is not HTTP")
    return Broken(f"{what}: {_reason(causes)}")


def is_wrong_host(error: Exception) -> bool:
    """Whether a certificate was refused for the hosts it is for, and for nothing else."""
    return any(
        isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in WRONG_HOST_CODES
        for cause in _causes(error)
    )


def _wrong_host(names: list[str] | None) -> str:
    if names == []:
        return (
            "the certificate has no subjectAltName, and its common name does not count: "
            f"have it issued with the name in the URL, {_SKIP}"
        )
    shown = printable(", ".join(names or ["other hosts"]))
    return f"the certificate is for {shown}: use such a name in the URL, {_SKIP}"


def _tls_failure(reason: str) -> str:
    """Return what a failed handshake means, and the cure; `reason` is OpenSSL's word for it."""
    if "CERTIFICATE_REQUIRED" in reason or reason == "SSLV3_ALERT_HANDSHAKE_FAILURE":
        cure = "the server may want a client certificate: give --client-cert and --client-key"
    elif "_ALERT_" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        cure = "the server does not accept the client certificate: check --client-cert"
    else:
        cure = "does the server speak https at all? epochfs does not fall back to http"
    return f"TLS failed ({printable(reason or 'no details')}): {cure}"


def _proxy_refusal(status: int) -> str:
    """Return what it means that a proxy does not let a request through."""
    if status == 407:
        return "407: the proxy asks for credentials: give them in its URL (http://user:password@…)"
    return f"{status}: the proxy does not connect us"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those it wraps, which urllib3 and requests keep in many places."""
    seen: set[int] = set()
    todo = [error]
    while todo and len(seen) < 50:
        cause = todo.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        inner = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        todo += [wrapped for wrapped in inner if isinstance(wrapped, BaseException)]


def _reason(causes: list[BaseException]) -> str:
    """Return what the operating system said of a failure."""
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return f"the host name does not resolve ({cause.strerror})"
        if isinstance(cause, OSError) and isinstance(cause.strerror, str):
            return cause.strerror
        if isinstance(cause, TimeoutError):
            return "no connection within the time limit"
    return "the connection broke"


def _cut_off(error: ssl.SSLError) -> bool:
    """Whether a TLS error is no more than a closed connection."""
    return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)


def _malformed(causes: list[BaseException]) -> bool:
    """Whether bytes came that are not HTTP, rather than too few of them."""
    if any(isinstance(c, ConnectionError | IncompleteRead) for c in causes):
        return False
    if any(isinstance(c, http.client.IncompleteRead) for c in causes):
        return False
    return any(isinstance(c, http.client.HTTPException | ValueError) for c in causes)


def refusal(what: str, status: int, body: bytes, text: str) -> EpochfsError:
    """Return the error for an answer that is not the one hoped for.

    `body` is the answer's, from which the specification's error codes are taken; `text` what of
    it may be shown. A code that ends in _UNKNOWN means not found whatever the status is.
    """
    shown = f"{what}: {status}{f' ({text})' if text else ''}"
    codes = [code for code, _ in error_entries(body)]
    if status == 401:
        return Denied(f"{shown}: credentials are missing or not accepted")
    if status == 403:
        return Denied(f"{shown}: access is refused")
    if any(code.endswith("_UNKNOWN") for code in codes) or (status == 404 and any(codes)):
        return NotFound(shown)
    if status == 404:
        return UnconfirmedNotFound(shown)
    if status in (405, 501) or "UNSUPPORTED" in codes:
        return Unsupported(f"{shown}: the registry does not offer this")
    if status == 413:
        return TooLarge(f"{shown}: the registry takes no document so large")
    if status == 407:
        return Unavailable(f"{what}: {_proxy_refusal(status)}")
    if status in TRANSIENT_STATUSES:
        return Unavailable(shown)
    return ProtocolViolation(f"{shown}: not an answer to expect")


def error_entries(body: bytes) -> list[tuple[str, str]]:
    """Return the codes and messages of an error body (distribution specification, "Errors")."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return []
    errors = document.get("errors") if isinstance(document, dict) else None
    entries = errors if isinstance(errors, list) else []
    return [
        (str(entry.get("code") or ""), str(entry.get("message") or ""))
        for entry in entries[:10]
        if isinstance(entry, dict)
    ]
