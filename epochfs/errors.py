"""Every error epochfs raises on purpose.

A message is one line, says what failed and on what, and never holds a credential. `fuse.errnos` has
the one table from here to errno.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TypeVar

_E = TypeVar("_E", bound="EpochfsError")

_SCHEME = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_USER_INFORMATION = re.compile(r"(?<=//)[^\s\"'<>]*@")


class EpochfsError(Exception):
    """Base of all these; if it is `explained`, the message says what to do (`causes`)."""

    explained = False


class UsageError(EpochfsError):
    """An option or argument is wrong; nothing was tried."""


class InvalidName(EpochfsError, ValueError):
    """Text that is not a well-formed repository, tag, digest or path."""


class NameTooLong(InvalidName):
    """A name longer than any in the tree can be (`names.NAME_MAX`)."""


class NotFound(EpochfsError):
    """The registry does not know the object (404, *_UNKNOWN)."""


class UnconfirmedNotFound(NotFound):
    """A 404 that carries no error code of the specification.

    An ingress or a proxy sends one for whatever it cannot route, so it does not prove that the
    registry lost something (OCI Distribution specification 1.1, "Error Codes").
    """


class Denied(EpochfsError):
    """The registry refuses access: 403, or 401 to the present credentials."""


class CredentialsUnavailable(Denied):
    """A file or helper does not yield the credentials; the registry was not asked."""

    explained = True


class Unsupported(EpochfsError):
    """The registry does not offer this endpoint (405, 501, UNSUPPORTED)."""


class Unavailable(EpochfsError):
    """The registry cannot be reached, or keeps failing: refused, reset, unresolvable, or 5xx.

    `asked_for` is how many seconds the registry asks to wait before another attempt. `is_final` if
    there was no other, as the registry named the reason for which the caller wants none.
    """

    asked_for = 0.0
    is_final = False


class TlsFailure(Unavailable):
    """The registry's certificate, or ours, is not accepted; the message names the cure."""

    explained = True


class DeadlineExceeded(EpochfsError):
    """The operation's time limit passed."""


class ProtocolViolation(EpochfsError):
    """The registry's answer is not one the specification allows."""


class ContentMismatch(ProtocolViolation):
    """Bytes arrived that do not have the promised digest or size."""


class TooLarge(EpochfsError):
    """A document is larger than its limit."""


class Vanished(EpochfsError):
    """An object disappeared while a handle to it was open."""


class NeverThere(Vanished):
    """The registry does not know a blob, and sent no byte of it: it may never have been there."""


class ReadOnly(EpochfsError):
    """A write to the mount, which is read-only."""


class NotPermitted(EpochfsError):
    """The tree, or the registry, has no way to do this (EPERM)."""


class Exists(EpochfsError):
    """There is something of that name."""


class NotEmpty(EpochfsError):
    """A directory that is to be removed has something in it."""


class Busy(EpochfsError):
    """What was written waits for something that the registry does not have."""


class CrossDevice(EpochfsError):
    """What is to be renamed can only be copied, and then removed."""


class CacheFailure(EpochfsError):
    """The local cache cannot be read or written."""


class NoRoom(CacheFailure):
    """The cache's disk has no room for what is written to the mount."""


class MountFailure(EpochfsError):
    """The mount point, FUSE or the daemon failed."""


def fresh(error: EpochfsError) -> EpochfsError:
    """Return a copy to raise, as one exception raised in many threads mixes their tracebacks."""
    copy = type(error)(*error.args)
    copy.explained = error.explained
    copy.__cause__ = error
    return copy


def explained(error: _E) -> _E:
    """Mark an error as `explained`, and return it."""
    error.explained = True
    return error


def printable(text: object, limit: int = 200) -> str:
    """Return hostile text as one safe log fragment: escaped, ASCII, at most `limit` characters."""
    escaped = str(text)[: limit + 1].encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


def printable_url(url: object) -> str:
    """Return a URL, well-formed or not, as a safe log fragment without the secrets in it.

    Left out are its user information, query and fragment (RFC 3986, section 3). A password may hold
    the `?` or `#` that begins these, so where an @ comes after one, all but the scheme is left out.
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
    """Return text from a server without the user information of the URLs in it."""
    return _USER_INFORMATION.sub("***@", text)
