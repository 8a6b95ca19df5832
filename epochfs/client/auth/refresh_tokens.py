"""Refresh tokens that are replaced as they are used (RFC 6749, section 6).

Keycloak, Entra and others answer each use of a refresh token with a new one and revoke the old. The
new one is used from then on by all of this process, and is written nowhere: the files it comes from
are docker's and podman's own. So a login that such a server gave is good for one process at a time.

Locks: `RefreshTokens._lock` guards the table, and nothing is called under it. The lock of a `Chain`
is held while its token is on its way, for no two requests may show the same one; others wait for
it no longer than they have time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from epochfs.errors import DeadlineExceeded


@dataclass(slots=True)
class Chain:
    """What a refresh token has become: `token` is the one to show now."""

    token: str = field(repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock)


class RefreshTokens:
    """What refresh tokens have become, by the token server that replaced them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chains: dict[tuple[str, str], Chain] = {}

    @contextmanager
    def held(self, realm: str, token: str, deadline: float) -> Iterator[Chain]:
        """Give what a token of a file has become, to one thread at a time.

        Whoever has it sets its `token` to what replaces it. `deadline` is on the monotonic clock;
        raises DeadlineExceeded.
        """
        with self._lock:
            chain = self._chains.setdefault((realm, token), Chain(token))
        if not chain.lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise DeadlineExceeded("no token within the time limit")
        try:
            yield chain
        finally:
            chain.lock.release()


OF_THIS_PROCESS = RefreshTokens()
