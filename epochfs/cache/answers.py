"""Persists what the registry said, for when it is down: names, manifests, sizes of blobs.

An answer is given only to whoever got it: to a mount of the same registry with the same
credentials, about the same repository. That makes it as good a proof of access as it was when the
registry gave it, and it stays one until the registry denies it. Credentials are told apart by a
salted, slow hash (`auth.Bearer`), and are not in the file. They may differ from one repository to
the next, and change; where it cannot be found out what they are, nothing is given. Where they are
rotated, a process keeps what it has itself proved (`proofs`).

Answers about names grow old, and are asked for with a limit of age. What a digest names does not.
The file is bounded: those given longest ago go first. Writing is put off for a moment and done in
one transaction by a thread, for a listing of a thousand tags is a thousand answers.

A damaged file is replaced, even if that shows only in use: the answers are then given anew. Where
the disk does not take them, the last ones are given from memory, as many as are kept there; and
what it does not let be forgotten is not given.

Locks: `_database_lock` serialises use of the database; `_pending_lock` guards what is yet
to be written, and is the leaf. Local statements run under the first, nothing under the second.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from epochfs.cache.database import Database
from epochfs.cache.directory import is_shortage
from epochfs.cache.proofs import Asker, Proofs
from epochfs.client.auth import Bearer
from epochfs.errors import CacheFailure, DeadlineExceeded, Denied

log = logging.getLogger(__name__)

LIMIT = 256 * 1024**2
"""How large the file may become, in bytes."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answer (
    scope TEXT, kind TEXT, repository TEXT, name TEXT, given REAL, value BLOB,
    PRIMARY KEY (scope, repository, kind, name)
);
CREATE INDEX IF NOT EXISTS answer_by_age ON answer (given);
CREATE TABLE IF NOT EXISTS salt (id INTEGER PRIMARY KEY CHECK (id = 1), value BLOB);
"""

_SALT_BYTES = 16
_PENDING_BYTES = 32 * 1024**2
_ROW_BYTES = 256
_PAUSE_SECONDS = 0.2
_RETRY_SECONDS = 10.0
"""How long nothing is written to a disk that took nothing."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the registry was asked; `kind` keeps names of different sorts apart."""

    kind: str
    repository: str = ""
    name: str = ""


Identify = Callable[[bytes, str], Bearer]
"""Tells, for a salt and a repository ("": the registry as a whole), who reads that repository now.
Raises CredentialsUnavailable or DeadlineExceeded where it cannot be said."""


class AnswerStore:
    """The answers of one registry to one bearer of credentials, in the SQLite file `path`.

    In memory without one. What the disk does not take is told to `report`; `make_room` is
    `Database`'s.
    """

    def __init__(
        self,
        path: Path | None,
        registry: str,
        identify: Identify,
        *,
        limit: int = LIMIT,
        clock: Callable[[], float] = time.time,
        report: Callable[[object], None] = lambda problem: log.info("%s", problem),
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """Raises CacheFailure where there can be no such file, unless the disk is at fault."""
        self._registry = registry
        self._identify = identify
        self._proofs = Proofs()
        self._limit = limit
        self._clock = clock
        self._database_lock = threading.Lock()
        self._pending_lock = threading.Lock()
        self._pending: dict[tuple[str, Question], tuple[float, bytes]] = {}
        self._pending_bytes = 0
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._unknown = ""
        self._report = report
        self._retry_at = 0.0
        self._unforgotten: set[tuple[str, str]] = set()
        self._salt = secrets.token_bytes(_SALT_BYTES)
        self._database = self._opened(path, make_room)
        self._thread = threading.Thread(target=self._write_on, name="answers", daemon=True)
        self._thread.start()

    def _opened(self, path: Path | None, make_room: Callable[[], bool]) -> Database | None:
        if path is None:
            return None
        try:
            return Database(path, _SCHEMA, "what the registry said", self._salted, make_room)
        except (OSError, sqlite3.Error) as error:
            problem = f"cannot keep what the registry says in {path}: {error}"
            if not is_shortage(error):
                raise CacheFailure(problem) from error
            self._report(problem)
            return None

    def put(self, question: Question, value: bytes, *, proves_access: bool = True) -> None:
        """Keep an answer, soon. Where more comes than can be written, the oldest are not kept.

        It proves access to its repository with the present credentials, unless it is a refusal.
        """
        asker = self._asker(question.repository)
        if asker is None:
            return
        if proves_access:
            self._proofs.add(asker)
        with self._pending_lock:
            if (asker.scope, question) in self._pending:
                self._drop((asker.scope, question))
            self._pending[asker.scope, question] = (self._clock(), value)
            self._pending_bytes += len(value) + _ROW_BYTES
            while self._pending_bytes > _PENDING_BYTES:
                self._drop(next(iter(self._pending)))
        self._wake.set()

    def get(self, question: Question, max_age: float | None = None) -> bytes | None:
        """Return an answer that was given at most `max_age` seconds ago, or None."""
        asker = self._asker(question.repository)
        if asker is None:
            return None
        scopes = self._proofs.scopes(asker)
        since = 0.0 if max_age is None else self._clock() - max_age
        with self._database_lock:
            self._write_pending()
            with self._pending_lock:
                pending = {scope: self._pending.get((scope, question)) for scope in scopes}
            # What the disk has of a scope was given before what it has yet to take.
            kept = self._kept([scope for scope in scopes if pending[scope] is None], question)
        found = [one for one in (*pending.values(), kept) if one is not None]
        given, value = max(found, key=lambda one: one[0], default=(0.0, None))
        return value if given >= since else None

    def _kept(self, scopes: Sequence[str], question: Question) -> tuple[float, bytes] | None:
        """Return the last answer that is on disk, and when. The database's lock is held."""
        given_out = [one for one in scopes if (one, question.repository) not in self._unforgotten]
        if self._database is None or not given_out:
            return None
        marks = ",".join("?" * len(given_out))
        try:
            row = self._database.run(
                lambda database: database.execute(
                    f"SELECT given, value FROM answer WHERE scope IN ({marks}) "
                    "AND repository=? AND kind=? AND name=? ORDER BY given DESC LIMIT 1",
                    (*given_out, question.repository, question.kind, question.name),
                ).fetchone()
            )
        except (OSError, sqlite3.Error) as error:
            self._report(f"what the registry said cannot be read: {error}")
            return None
        return None if row is None else (float(row[0]), bytes(row[1]))

    def forget(self, question: Question) -> None:
        """Give this answer no more."""
        self._delete(question.repository, question)

    def forget_repository(self, repository: str) -> None:
        """Give no more answers about a repository, to which the registry now denies access."""
        self._delete(repository)
        if asker := self._asker(repository):
            self._proofs.remove(asker)

    def close(self) -> None:
        """Write what is pending, and close the file."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        with self._database_lock:
            self._retry_at = 0.0
            self._write_pending()
            if self._database is not None:
                self._database.close()
            self._database = None  # a listing in the background may still ask: nothing is given

    def _salted(self, database: sqlite3.Connection) -> None:
        """Take the salt of a file, which is made at its first use."""
        found = database.execute("SELECT value FROM salt").fetchone()
        if found is None:
            with database:
                database.execute("INSERT OR IGNORE INTO salt VALUES (1, ?)", (self._salt,))
            found = database.execute("SELECT value FROM salt").fetchone()
        self._salt = bytes(found[0])

    def scope(self, repository: str) -> str | None:
        """Return whose answers about a repository are ours, or None if that cannot be said.

        An answer is to be kept only if this is the same before it was asked for and after.
        """
        asker = self._asker(repository)
        return None if asker is None else asker.scope

    def _asker(self, repository: str) -> Asker | None:
        try:
            bearer = self._identify(self._salt, repository)
        except (Denied, DeadlineExceeded) as error:
            if self._unknown != str(error):
                self._unknown = str(error)
                log.warning("what the registry said is neither kept nor served: %s", error)
            return None
        self._unknown = ""
        identity = f"{self._registry}\n{bearer.fingerprint}".encode()
        scope = hashlib.sha256(self._salt + identity).hexdigest()
        return Asker(scope, bearer.principal, repository)

    def _delete(self, repository: str, question: Question | None = None) -> None:
        """Give no more answers about a repository, or to one question about it."""
        asker = self._asker(repository)
        if asker is None:
            return
        scopes = self._proofs.scopes(asker, also_refused=True)
        with self._database_lock:
            self._write_pending()
            with self._pending_lock:
                for key in [key for key in self._pending if key[0] in scopes]:
                    if key[1] == question or (question is None and key[1].repository == repository):
                        self._drop(key)
            for scope in scopes:
                self._delete_kept(scope, repository, question)

    def _drop(self, key: tuple[str, Question]) -> None:
        """Do not write an answer. The lock of what is pending is held."""
        _, value = self._pending.pop(key)
        self._pending_bytes -= len(value) + _ROW_BYTES

    def _delete_kept(self, scope: str, repository: str, question: Question | None = None) -> bool:
        """Delete answers that are on disk; where that fails, none of the repository's are given."""
        which = "" if question is None else " AND kind=? AND name=?"
        names = () if question is None else (question.kind, question.name)

        def delete(database: sqlite3.Connection) -> None:
            with database:
                database.execute(
                    f"DELETE FROM answer WHERE scope=? AND repository=?{which}",
                    (scope, repository, *names),
                )

        if self._database is None:
            return True
        try:
            self._database.run(delete)
        except (OSError, sqlite3.Error) as error:
            self._unforgotten.add((scope, repository))
            self._report(f"what the registry said cannot be forgotten: {error}")
            return False
        return True

    def _write_on(self) -> None:
        """Write what is pending, in batches, until the store is closed."""
        while not self._closing.is_set():
            self._wake.wait()
            self._wake.clear()
            self._closing.wait(_PAUSE_SECONDS)
            with self._database_lock:
                self._write_pending()

    def _write_pending(self) -> None:
        """Write what is pending, unless the disk failed a moment ago. The database's lock is held.

        What it does not take stays pending, and is given from there.
        """
        if self._database is None or time.monotonic() < self._retry_at:
            return
        with self._pending_lock:
            pending, self._pending, self._pending_bytes = self._pending, {}, 0
        rows = [
            (scope, one.kind, one.repository, one.name, given, value)
            for (scope, one), (given, value) in pending.items()
        ]
        if not rows:
            return

        def write(database: sqlite3.Connection) -> None:
            with database:
                database.executemany(
                    "INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?, ?, ?)", rows
                )
            self._shrink(database)

        for one in tuple(self._unforgotten):
            if self._delete_kept(*one):
                self._unforgotten.remove(one)
        try:
            self._database.run(write)
        except (OSError, sqlite3.Error) as error:
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            self._report(f"{len(rows)} answers of the registry: {error}")
            with self._pending_lock:
                self._pending = pending | self._pending
                sizes = (len(value) for _, value in self._pending.values())
                self._pending_bytes = sum(size + _ROW_BYTES for size in sizes)

    def _shrink(self, database: sqlite3.Connection) -> None:
        """Remove the oldest answers, a tenth at a time, until the file is within its limit."""
        while _used(database) > self._limit:
            with database:
                gone = database.execute(
                    "DELETE FROM answer WHERE rowid IN (SELECT rowid FROM answer ORDER BY given "
                    "LIMIT (SELECT 1 + count(*) / 10 FROM answer))"
                )
            if not gone.rowcount:
                return


def _used(database: sqlite3.Connection) -> int:
    """Return how many bytes of the file hold something; free pages are used again."""
    sizes = ("page_count", "freelist_count", "page_size")
    pages, free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in sizes)
    return int((pages - free) * size)
