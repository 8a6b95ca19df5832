"""Challenges: the WWW-Authenticate header, and the token server that it names.

Sources: RFC 9110, section 11; the Distribution project's token authentication specification.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from epochfs.client.causes import Cause
from epochfs.errors import ProtocolViolation, explained, printable_url

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?=[\s,]|\Z)(?!\s*=)")
_PARAMETER = re.compile(rf'[\s,]*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_TOKEN68 = re.compile(r"\s*[A-Za-z0-9._~+/-]+=*\s*(?=,|\Z)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a WWW-Authenticate header; `scheme` and parameter names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """Parse a WWW-Authenticate header of any number of challenges (RFC 9110, section 11.6.1).

    Unquoted values may hold any character but space, comma and quote, as registries do send
    them. What follows the first malformed part is left out.
    """
    challenges = []
    position = 0
    while match := _SCHEME.match(header, position):
        scheme, parameters = match[1].lower(), dict[str, str]()
        position = match.end()
        if match := _TOKEN68.match(header, position):
            position = match.end()
        while match := _PARAMETER.match(header, position):
            value = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
            parameters.setdefault(match[1].lower(), value)
            position = match.end()
        challenges.append(Challenge(scheme, parameters))
    return challenges


def describe_schemes(header: str) -> str:
    """Return the schemes that a WWW-Authenticate header offers, for people; "" for none."""
    names = dict.fromkeys(one.scheme.capitalize() for one in parse_challenges(header))
    return " and ".join(names)


def checked_realm(realm: str, registry_scheme: str) -> str:
    """Return the token server's URL if credentials may go there; else raise ProtocolViolation."""
    if why := _doubt(realm, registry_scheme):
        raise explained(ProtocolViolation(Cause.TOKEN_SERVER_DOUBTFUL.told(why=why)))
    return realm


def _doubt(realm: str, registry_scheme: str) -> str:
    """Return why no credentials may go to a token server, or ""."""
    shown = printable_url(realm)
    try:
        parts = urlsplit(realm)
        host = parts.hostname
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        return f"'{shown}' is no http(s) URL"
    if parts.username is not None or parts.password is not None:
        return f"'{shown}' has some in its URL"
    if registry_scheme == "https" and parts.scheme != "https":
        return f"'{shown}' is on http, and the registry on https"
    return f"'{shown}' is link-local" if _is_link_local(host) else ""


def _is_link_local(host: str) -> bool:
    """Whether a host is the literal address of a link-local one, in any spelling of IPv4."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_link_local or (mapped is not None and mapped.is_link_local)
