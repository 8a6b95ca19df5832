"""Credential helpers: programs that keep credentials, such as `docker-credential-pass`.

The protocol is Docker's: `docker-credential-<name> get` reads a server's name from its stdin and
writes a JSON object with `Username` and `Secret` to its stdout; the user name `<token>` says that
the secret is an identity token. Helpers run without a shell or a terminal, with nothing of ours but
the environment, in a session of their own, and within a time limit.

An answer is kept until the login is refused; then the helper is asked again, but if it gives the
same answer, none, or fails, not before half a minute has passed. A caller without time to wait is
no failure of the helper's. A 403 may mean a refusal or not (Amazon ECR answers an expired login
with it): the helper is asked again at most once in half a minute because of a 403, and its answer
stays unless the new one differs.

Locks: `Helpers._lock` guards the answers and, in `SingleFlight`, which helpers run; none runs under
it. One thread at a time asks a helper; others wait no longer than until their deadline.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from functools import partial

from epochfs.client.auth.login_files import Helper, Login
from epochfs.client.causes import Cause
from epochfs.client.single_flight import SingleFlight
from epochfs.errors import CredentialsUnavailable, DeadlineExceeded, printable

TIME_LIMIT = 10.0
"""Seconds that a helper may take; it may ask a server of its own."""

PAUSE = 30.0
"""Seconds before a helper that did not help is asked again."""

_MOST_BYTES = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_NOT_FOUND = b"credentials not found in native keychain"
_TOKEN_USER = "<token>"

log = logging.getLogger(__name__)


class _Failure(Exception):
    """What went wrong with a helper, without quoting it."""


class StoreFailed(CredentialsUnavailable):
    """A helper for all registries failed: it may have a login for this one or not."""


class _TooLate(_Failure):
    """A helper did not end in time."""


@dataclass(slots=True)
class _Kept:
    """A helper's last answer: a login, none, or a `failure`."""

    login: Login | None
    failure: str
    good_until: float
    refusable_at: float
    doubtable_at: float = 0.0


class Helpers:
    """Asks helpers and keeps their answers; safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Helper, _Kept] = {}
        self._asking = SingleFlight[Helper, _Kept](
            self._lock,
            self._kept.__setitem__,
            lambda helper: f"{_program(helper)} used up the time limit",
            in_turn=True,
        )

    def login(self, helper: Helper, deadline: float) -> Login | None:
        """Return the login that a helper has, or None; `deadline` is monotonic.

        Raises DeadlineExceeded, and for a helper that fails CredentialsUnavailable if it is
        dedicated, else StoreFailed.
        """
        look, work = partial(self._good, helper), partial(self._ask, helper, deadline)
        kept = self._asking.do(helper, look, work, deadline)
        if kept.failure:
            raise (CredentialsUnavailable if helper.dedicated else StoreFailed)(kept.failure)
        return kept.login

    def refuse(self, login: Login) -> None:
        """Ask the helper of a refused login again next time, unless it just was."""
        now = time.monotonic()
        with self._lock:
            for kept in self._kept.values():
                if kept.login == login and kept.refusable_at <= now:
                    kept.good_until = now

    def doubt(self, login: Login, deadline: float) -> None:
        """Ask the helper that gave a login for another, at most once in half a minute.

        Threads that doubt the same login wait for the one that asks, until their deadline.
        """
        with self._lock:
            doubted = [helper for helper, kept in self._kept.items() if kept.login == login]
        for helper in doubted:
            look = partial(self._undoubted, helper, login)
            work = partial(self._ask_in_doubt, helper, deadline)
            with contextlib.suppress(DeadlineExceeded):
                self._asking.do(helper, look, work, deadline)

    def _undoubted(self, helper: Helper, login: Login) -> _Kept | None:
        """Return a helper's last answer, unless that is a login to be doubted now."""
        kept = self._kept[helper]
        is_doubted = kept.login == login and kept.doubtable_at <= time.monotonic()
        return None if is_doubted else kept

    def _ask_in_doubt(self, helper: Helper, deadline: float) -> _Kept:
        doubtable_at = time.monotonic() + PAUSE
        with self._lock:
            kept = changed = self._kept[helper]
        try:
            answer = self._ask(helper, deadline)
            if answer.login not in (None, kept.login):
                changed = answer
        finally:
            # Only now, so that threads that doubt it meanwhile wait.
            changed.doubtable_at = doubtable_at
        return changed

    def _good(self, helper: Helper) -> _Kept | None:
        """Return a helper's last answer, unless it is to be asked again."""
        kept = self._kept.get(helper)
        return kept if kept is not None and time.monotonic() < kept.good_until else None

    def _ask(self, helper: Helper, deadline: float) -> _Kept:
        with self._lock:
            before = self._kept.get(helper)
        left = max(deadline - time.monotonic(), 0)
        login, failure = None, ""
        try:
            said = _run(_path(helper), helper.server, min(left, TIME_LIMIT))
            login = _login(helper, said)
        except _Failure as error:
            if isinstance(error, _TooLate) and left < TIME_LIMIT:
                raise DeadlineExceeded(f"{_program(helper)} {error}") from None
            failure = f"{_program(helper)}, named in '{helper.source}', {error}"
            if before is None or before.failure != failure:
                log.warning("no credentials for %s: %s", printable(helper.server), failure)
        now = time.monotonic()
        again = before is not None and login is not None and before.login == login
        good_until = math.inf if login is not None else now + PAUSE
        return _Kept(login, failure, good_until, now + PAUSE if again else now)


def _program(helper: Helper) -> str:
    return f"docker-credential-{printable(helper.name)}"


def _path(helper: Helper) -> str:
    if not _NAME.match(helper.name):
        raise _Failure(Cause.HELPER_MISNAMED.told())
    path = shutil.which(f"docker-credential-{helper.name}")
    if path is None:
        raise _Failure(Cause.HELPER_ABSENT.told())
    return path


def _run(path: str, server: str, seconds: float) -> bytes | None:
    """Return a helper's answer about a server; None if it says that it has no credentials."""
    deadline = time.monotonic() + seconds
    try:
        process = subprocess.Popen(
            [path, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        raise _Failure(Cause.HELPER_UNRUNNABLE.told(reason=error.strerror)) from None
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(server.encode())
        said = _read(process, deadline)
        code = process.wait(max(deadline - time.monotonic(), 0.1))
    except (subprocess.TimeoutExpired, TimeoutError):
        raise _TooLate(Cause.HELPER_SLOW.told(seconds=f"{seconds:.1f}")) from None
    finally:
        _end(process)
    if code == 0:
        return said
    if said.strip() == _NOT_FOUND:
        return None
    raise _Failure(Cause.HELPER_FAILED.told(code=code, path=path))


def _read(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Return what a process writes to its stdout until it closes it; raises TimeoutError."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    said = bytearray()
    while len(said) <= _MOST_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError
        data = os.read(pipe, _MOST_BYTES)
        if not data:
            return bytes(said)
        said += data
    raise _Failure(Cause.HELPER_VERBOSE.told())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe, and kill a helper that still runs together with what it started."""
    assert process.stdout is not None
    process.stdout.close()
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _login(helper: Helper, said: bytes | None) -> Login | None:
    if said is None:
        return None
    try:
        answer = json.loads(said)
        username, secret = answer["Username"], answer["Secret"]
        # A lone surrogate raises ValueError too.
        username.encode(), secret.encode()
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise _Failure(Cause.HELPER_UNINTELLIGIBLE.told()) from None
    if not secret:
        if helper.dedicated:
            raise _Failure(Cause.HELPER_EMPTY.told())
        return None
    source = f"from {_program(helper)}"
    if username == _TOKEN_USER:
        return Login(source, identity_token=secret)
    return Login(source, username, secret)
