"""Converts foreign exceptions, and reads error bodies.

No exception of requests, urllib3, http.client or ssl leaves the package: many are OSErrors, which
would pass for errors of the local machine. Their texts quote whole URLs, so only what the operating
system said is shown.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import requests
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
)

from epochfs.client.causes import Cause
from epochfs.client.transport.tls import WRONG_HOST_CODES
from epochfs.client.transport.watchdog import Watch, WatchEnded
from epochfs.errors import (
    DeadlineExceeded,
    EpochfsError,
    ProtocolViolation,
    TlsFailure,
    Unavailable,
    explained,
    printable,
)

TRANSIENT_STATUSES = frozenset({408, 429, *range(500, 600)} - {501})
"""Statuses that another attempt may get past."""

_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})\b")
"""How http.client reports that a proxy refused."""

_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""Errors of TLS that are no more than a closed connection."""


class WrongHost(Exception):
    """A certificate that verifies, but for other hosts: `names`, if known. Stays in here."""

    def __init__(self, names: list[str] | None) -> None:
        super().__init__("the certificate is for other hosts")
        self.names = names


CONVERTED = (
    WatchEnded,
    WrongHost,
    requests.RequestException,
    HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)
"""What must not leave the package."""

_CERTIFICATE_CAUSES = {
    9: Cause.NOT_YET_VALID,
    10: Cause.EXPIRED,
    18: Cause.SELF_SIGNED,
    20: Cause.CHAIN_INCOMPLETE,
    21: Cause.CHAIN_INCOMPLETE,
    23: Cause.REVOKED,
}
"""By OpenSSL's code of what is wrong; with most others the authority is unknown."""

_ABOUT_OURS = (
    "ALERT_HANDSHAKE_FAILURE",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_CERTIFICATE",
    "ALERT_NO_CERTIFICATE",
    "ALERT_UNKNOWN_CA",
    "ALERT_ACCESS_DENIED",
    "CERTIFICATE_REQUIRED",
)
"""What servers say, in OpenSSL's words, about the certificate that they were or were not sent."""


class Unreached(Unavailable):
    """No connection was made, so nothing was sent. Stays within the package."""


class Broken(Unavailable):
    """The connection broke before the answer was complete. Stays within the package."""


def convert(
    error: Exception, what: object, watch: Watch, *, identified: bool = False
) -> EpochfsError:
    """Return the error that one of `CONVERTED` means, for `what` as an error may show it.

    `identified` says that a client certificate was sent.
    """
    causes = list(_causes(error))
    if watch.aborted:
        return Unavailable(f"{what}: the connection was closed from this side")
    if watch.expired:
        return DeadlineExceeded(f"{what}: no answer within {watch.timeout:g} s")
    for cause in causes:
        if isinstance(cause, WrongHost):
            names = ", ".join(cause.names or ["other hosts"])
            cure = Cause.NO_NAMES if cause.names == [] else Cause.WRONG_HOST
            return TlsFailure(f"{what}: {cure.told(names=names)}")
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = printable(cause.verify_message)
            cure = _CERTIFICATE_CAUSES.get(cause.verify_code, Cause.AUTHORITY_UNKNOWN)
            return TlsFailure(f"{what}: the certificate does not verify ({reason}): {cure.told()}")
        if isinstance(cause, OSError) and (said := _TUNNEL.match(str(cause))):
            refusal = Cause.PROXY_WANTS_LOGIN if said[1] == "407" else Cause.PROXY_REFUSES
            return explained(Unavailable(f"{what}: {said[1]}: {refusal.told()}"))
        if isinstance(cause, NewConnectionError | NameResolutionError | ConnectTimeoutError):
            return Unreached(f"{what}: {_reason(causes)}")
        if isinstance(cause, TimeoutError):
            return DeadlineExceeded(f"{what}: no answer within the time limit")
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, _CUT_OFF):
            return TlsFailure(f"{what}: {_tls_failure(cause.reason or '', identified)}")
    cut_off = any(isinstance(c, ConnectionError | http.client.IncompleteRead) for c in causes)
    if not cut_off and any(isinstance(c, http.client.HTTPException | ValueError) for c in causes):
        return ProtocolViolation(f"{what}: the answer is not HTTP")
    return Broken(f"{what}: {_reason(causes)}")


def is_wrong_host(error: Exception) -> bool:
    """Whether a certificate was refused only because it is for other hosts."""
    return any(
        isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in WRONG_HOST_CODES
        for cause in _causes(error)
    )


def _tls_failure(reason: str, identified: bool) -> str:
    """Return what a failed handshake means; `reason` is OpenSSL's word for it.

    Servers say many things where a client certificate is missing; Go's, that it is a bad one.
    """
    cause = Cause.NO_TLS
    if "PROTOCOL_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
        cause = Cause.TLS_VERSION
    elif any(word in reason for word in _ABOUT_OURS):
        refused = identified and "CERTIFICATE_REQUIRED" not in reason
        cause = Cause.CLIENT_CERTIFICATE_REFUSED if refused else Cause.CLIENT_CERTIFICATE_MISSING
    elif "_ALERT_" in reason:
        cause = Cause.TLS_REFUSED
    return f"TLS failed ({printable(reason or 'no details')}): {cause.told()}"


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
    """Return what the operating system said about a failure."""
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return f"the host name does not resolve ({cause.strerror})"
        if isinstance(cause, OSError) and isinstance(cause.strerror, str):
            return cause.strerror
        if isinstance(cause, TimeoutError):
            return "no connection within the time limit"
    return "the connection broke"


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that an error body is, an empty one if it is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def error_entries(body: bytes) -> list[tuple[str, str]]:
    """Return the codes and messages of an error body (distribution specification, "Errors")."""
    errors = json_object(body).get("errors")
    entries = errors if isinstance(errors, list) else []
    return [
        (str(entry.get("code") or ""), str(entry.get("message") or ""))
        for entry in entries[:10]
        if isinstance(entry, dict)
    ]
