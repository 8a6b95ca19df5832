"""What a registry asks for: the WWW-Authenticate header, and the token server it names.

Sources: RFC 9110, section 11; the Distribution project's token authentication specification.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from epochfs.errors import ProtocolViolation, printable_url

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


def checked_realm(realm: str, registry_scheme: str) -> str:
    """Return the token server's URL if credentials may go there; else raise ProtocolViolation."""
    shown = printable_url(realm)
    try:
        parts = urlsplit(realm)
        host = parts.hostname
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise ProtocolViolation(f"the registry's token server is no http(s) URL: '{shown}'")
    if parts.username is not None or parts.password is not None:
        raise ProtocolViolation("the registry's token server has credentials in its URL")
    if registry_scheme == "https" and parts.scheme != "https":
        raise ProtocolViolation(f"an https registry names a token server on http: '{shown}'")
    if _is_link_local(host):
        raise ProtocolViolation(f"the registry's token server is link-local: '{shown}'")
    return realm


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
