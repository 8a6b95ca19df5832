"""Every error epochfs raises on purpose.

::

    EpochfsError
    ├── UsageError              an option or argument is wrong; nothing was tried
    ├── InvalidName             text that is no repository, tag, digest or path of the tree
    │   └── NameTooLong         a name that is longer than any in the tree can be
    ├── NotFound                the registry does not know it (404, *_UNKNOWN)
    │   └── UnconfirmedNotFound a 404 without an error of the specification: perhaps not its word
    ├── Denied                  401 after authenticating, or 403
    │   └── CredentialsUnavailable  ours cannot be had: a file, a helper; the registry was not asked
    ├── Unsupported             the registry does not offer the endpoint (405, 501, UNSUPPORTED)
    ├── Unavailable             refused, reset, unresolvable, or 5xx after the retries
    │   └── TlsFailure          no trust between the registry and us; the message names the cure
    ├── DeadlineExceeded        the operation's time limit passed
    ├── ProtocolViolation       an answer the specification does not allow
    │   └── ContentMismatch     bytes that do not have the promised digest or size
    ├── TooLarge                a document over the size limit
    ├── Vanished                an object disappeared under an open handle
    │   └── NeverThere          not one byte of it came: it may never have been there
    ├── ReadOnly                a write to the mount
    ├── CacheFailure            the local cache cannot be read or written
    └── MountFailure            the mount point, FUSE, or the daemon failed

This module knows nothing of errno: `operations` holds the one table from here to there.
A message is one line, says what failed and on what, and never holds a credential.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TypeVar

_E = TypeVar("_E", bound="EpochfsError")

_SCHEME = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_USER_INFORMATION = re.compile(r"(?<=//)[^\s\"'<>]*@")


class EpochfsError(Exception):
    """Base of everything epochfs raises on purpose.

    If it is `explained`, the message says who is to blame and what to do (`causes`).
    """

    explained = False


class UsageError(EpochfsError):
    """An option or argument is wrong."""


class InvalidName(EpochfsError, ValueError):
    """Text that is not a well-formed repository, tag, digest or path."""


class NameTooLong(InvalidName):
    """A name that is longer than any in the tree can be (`names.NAME_MAX`)."""


class NotFound(EpochfsError):
    """The registry does not know the object."""


class UnconfirmedNotFound(NotFound):
    """A 404 that carries no error code of the specification.

    An ingress or a proxy gives such for whatever it cannot route, so it is no proof that something
    is gone that the registry had (OCI Distribution specification 1.1, "Error Codes").
    """


class Denied(EpochfsError):
    """The registry refuses access with the present credentials."""


class CredentialsUnavailable(Denied):
    """The credentials to ask with cannot be had, which is no answer of the registry's."""

    explained = True


class Unsupported(EpochfsError):
    """The registry does not offer this endpoint."""


class Unavailable(EpochfsError):
    """The registry cannot be reached, or keeps failing."""


class TlsFailure(Unavailable):
    """The registry's certificate, or ours, is not accepted."""

    explained = True


class DeadlineExceeded(EpochfsError):
    """The operation's time limit passed."""


class ProtocolViolation(EpochfsError):
    """The registry's answer is not one the specification allows."""


class ContentMismatch(ProtocolViolation):
    """Bytes arrived that do not have the promised digest or size."""


class TooLarge(EpochfsError):
    """A document is larger than the configured limit."""


class Vanished(EpochfsError):
    """An object disappeared while a handle to it was open."""


class NeverThere(Vanished):
    """A blob that the registry does not know, and of which no byte ever came."""


class ReadOnly(EpochfsError):
    """The mount cannot be written to."""


class CacheFailure(EpochfsError):
    """The local cache cannot be read or written."""


class MountFailure(EpochfsError):
    """The mount could not be made, answered or removed."""


def fresh(error: EpochfsError) -> EpochfsError:
    """Return a copy to raise: one exception raised in many threads would mix their tracebacks."""
    copy = type(error)(*error.args)
    copy.explained = error.explained
    copy.__cause__ = error
    return copy


def explained(error: _E) -> _E:
    """Return an error whose message says all there is to say."""
    error.explained = True
    return error


def printable(text: object, limit: int = 200) -> str:
    """Return hostile text as one safe log fragment: escaped, ASCII, at most `limit` characters."""
    escaped = str(text)[: limit + 1].encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


def printable_url(url: object) -> str:
    """Return a URL, well-formed or not, as a safe fragment without what may be secret in it.

    That is its user information, its query and its fragment (RFC 3986, section 3). A password may
    hold what ends the one and begins the others, so where a sign of it comes late, all goes.
    """
    text = unicodedata.normalize("NFKC", str(url))  # some other characters become an @ in parsers
    shown = re.split("[?#]", text, maxsplit=1)[0]
    match = _SCHEME.match(shown)
    scheme = match[0] if match else ""
    if "@" in text[len(shown) :]:
        return printable(f"{scheme}***")
    if "@" in shown:
        return printable(f"{scheme}***@{shown.rpartition('@')[2]}")
    return printable(shown)


def without_user_information(text: str) -> str:
    """Return a server's own words without the user information of the URLs in them."""
    return _USER_INFORMATION.sub("***@", text)
