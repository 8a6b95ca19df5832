"""A user's credentials for a registry, wherever they were kept."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from epochfs.client.auth.secretfiles import UNDECODED
from epochfs.errors import printable


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who asks: `principal` stays the same while a secret is rotated, `fingerprint` does not.

    The fingerprint is a slow, salted hash of all that is shown: it is known again, not found out.
    Both are "" for nobody. Neither holds a secret.
    """

    principal: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials, and in `source` where they come from, as it may be shown.

    An `identity_token` stands for user name and password at a token server, and nowhere else.
    """

    source: str
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """Return the Basic Authorization value (RFC 7617), or "" if there is no password."""
        if not self.password:
            return ""
        pair = f"{self.username}:{self.password}".encode("utf-8", UNDECODED)
        return f"Basic {base64.b64encode(pair).decode('ascii')}"

    def secrets(self) -> set[str]:
        """Return every text that must not be shown."""
        return {self.password, self.identity_token, self.basic().partition(" ")[2]} - {""}

    def __str__(self) -> str:
        """Return who this is, and from where."""
        return f"as {printable(self.username) or 'the owner of a token'}, {self.source}"
