"""Files that hold a secret alone: a password, or a bearer token.

A password is bytes in an encoding that nobody has agreed on (RFC 7617, section 2.1): what is not
UTF-8 is kept as Python keeps such bytes in text, and sent as it was.
"""

from __future__ import annotations

import re
from pathlib import Path

from epochfs.errors import CredentialsUnavailable, printable

MAX_PASSWORD_BYTES = 64 * 1024

UNDECODED = "surrogateescape"
"""How bytes that are not UTF-8 are kept in text."""

HEADER_SAFE = re.compile(r"[!-~]{1,65536}\Z")
"""What a token must look like to be sent in a header."""


def read_password(file: Path) -> str:
    """Return a file's text less one newline at its end.

    Raises CredentialsUnavailable, without the text, for a file that cannot be read or is empty.
    """
    shown = f"password file '{printable(file)}'"
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_PASSWORD_BYTES + 1)
    except OSError as error:
        raise CredentialsUnavailable(f"cannot read the {shown}: {error.strerror}") from None
    if len(raw) > MAX_PASSWORD_BYTES:
        raise CredentialsUnavailable(f"the {shown} is over {MAX_PASSWORD_BYTES} bytes")
    password = raw.decode("utf-8", UNDECODED).removesuffix("\n").removesuffix("\r")
    if not password:
        raise CredentialsUnavailable(f"the {shown} is empty")
    return password


def read_token(file: Path) -> str:
    """Return a file's text without the space around it; raises as `read_password`."""
    shown = f"token file {printable(file)}"
    try:
        token = file.read_text("ascii").strip()
    except OSError as error:
        raise CredentialsUnavailable(f"cannot read the {shown}: {error.strerror}") from None
    except UnicodeError:
        raise CredentialsUnavailable(f"cannot read the {shown}: it is not ASCII text") from None
    if not token:
        raise CredentialsUnavailable(f"the {shown} is empty")
    return token
