"""Persists what the registry said, for when it is down: names, manifests, sizes of blobs.

An answer is given only to whoever got it: to a mount of the same registry with the same
credentials, about the same repository. That makes it as good a proof of access as it was when the
registry gave it, until the registry denies access. Credentials are told apart by a salted, slow
hash (`auth.Bearer`), and are not in the file. They may differ from one repository to the next, and
change; while it cannot be told what they are, nothing is given. Whose answers are meant is worked
out once for each request to the registry (`AnswerStore.asker`).

Answers about names grow old, and are asked for with a maximum age. What a digest names does not.
The file is bounded: the oldest answers go first. A thread writes them a moment later, many in one
transaction, for a listing of a thousand tags is a thousand answers.

A damaged file is replaced, even if the damage shows only in use. If the disk takes nothing, the
latest answers are given from memory, up to a limit; and what it does not let be deleted is no
longer given.

What this process writes to the registry changes what the registry would say (`change`). An answer
that was on its way meanwhile may be older, and is not kept.

Locks: `_database_lock` serialises use of the database; `_pending_lock` guards what is yet to be
written and `_changes`, which is read without it too, `Proofs._lock` all of its fields, and both are
leaves. Local statements run under the first, nothing under the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cachetools import FIFOCache, LRUCache

from epochfs.cache.database import Database
from epochfs.client.auth import Bearer
from epochfs.errors import DeadlineExceeded, Denied

log = logging.getLogger(__name__)

LIMIT = 256 * 1024**2
"""Maximum size of the file, in bytes."""

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

_MOST_EARLIER = 500
"""How many earlier credentials of a repository count: three weeks of an hourly rotation."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the registry was asked; `kind` keeps names of different sorts apart."""

    kind: str
    repository: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks about a repository: the `scope` of the answers tells credentials apart, and the
    `principal` those who bear them; `changes` how often this process had changed the repository.
    """

    scope: str
    principal: str
    repository: str
    changes: float = field(default=0, compare=False)


Identify = Callable[[bytes, str], Bearer]
"""Tells, for a salt and a repository ("": the registry as a whole), who reads that repository now.
Raises CredentialsUnavailable or DeadlineExceeded where it cannot tell."""


class AnswerStore:
    """The answers of one registry to those who ask, in the SQLite file `path`; in memory without.

    What the disk does not take is told to `report`; `make_room` is `Database`'s. Methods that take
    an asker do nothing without one.
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
        self._pending = _pending()
        self._changes: Counter[str] = Counter()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._unknown = ""
        self._retry_at = 0.0
        self._undeleted: set[tuple[str, str]] = set()
        self._salt = secrets.token_bytes(_SALT_BYTES)
        self._database = Database(
            path, _SCHEMA, "what the registry said", make_room, report, self._salted
        )
        self._thread = threading.Thread(target=self._write_on, name="answers", daemon=True)
        self._thread.start()

    def _salted(self, database: sqlite3.Connection) -> None:
        """Take the salt of a file, which is made at its first use."""
        found = database.execute("SELECT value FROM salt").fetchone()
        if found is None:
            with database:
                database.execute("INSERT OR IGNORE INTO salt VALUES (1, ?)", (self._salt,))
            found = database.execute("SELECT value FROM salt").fetchone()
        self._salt = bytes(found[0])

    def asker(self, repository: str) -> Asker | None:
        """Return who asks about a repository now, or None while that cannot be told.

        An answer may be kept only if this is the same before the question and after it.
        """
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
        return Asker(scope, bearer.principal, repository, self._changes.get(repository, 0))

    def put(
        self, asker: Asker | None, question: Question, value: bytes, *, proves_access: bool = True
    ) -> None:
        """Keep an answer, soon, unless it is older than a change of what it is about.

        If more comes than can be written, the oldest are dropped. It proves the asker's access to
        the repository, unless it is a refusal.
        """
        if asker is None:
            return
        if proves_access:
            self._proofs.add(asker)
        with self._pending_lock, contextlib.suppress(ValueError):  # larger than all may be
            if asker.changes >= self._changes.get(asker.repository, 0):
                self._pending.pop((asker.scope, question), None)
                self._pending[asker.scope, question] = (self._clock(), value)
        self._wake.set()

    def change(self, now: Mapping[Question, bytes], gone: Iterable[Question]) -> None:
        """Keep what a change by this process made the answers to some questions, and forget those
        to others.

        That something was written proves no access to read it.
        """
        gone = list(gone)
        with self._pending_lock:
            self._changes.update({question.repository for question in (*now, *gone)})
        for question in gone:
            self.forget(self._changing(question), question)
        for question, value in now.items():
            self.put(self._changing(question), question, value, proves_access=False)

    def _changing(self, question: Question) -> Asker | None:
        """Return whose answer changes; other changes at that moment make it no older."""
        asker = self.asker(question.repository)
        return None if asker is None else replace(asker, changes=math.inf)

    def get(
        self, asker: Asker | None, question: Question, max_age: float | None = None
    ) -> bytes | None:
        """Return an answer that was given at most `max_age` seconds ago, or None."""
        if asker is None:
            return None
        scopes = self._proofs.scopes(asker)
        with self._database_lock:
            self._write_pending()
            with self._pending_lock:
                pending = {scope: self._pending.get((scope, question)) for scope in scopes}
            # What the disk has of a scope was given before what is pending.
            kept = self._kept([scope for scope in scopes if pending[scope] is None], question)
        found = [one for one in (*pending.values(), kept) if one is not None]
        given, value = max(found, key=lambda one: one[0], default=(0.0, None))
        return value if max_age is None or given >= self._clock() - max_age else None

    def _kept(self, scopes: Sequence[str], question: Question) -> tuple[float, bytes] | None:
        """Return the last answer on disk, and when it was given. The database's lock is held."""
        allowed = [one for one in scopes if (one, question.repository) not in self._undeleted]
        query = (
            f"SELECT given, value FROM answer WHERE scope IN ({','.join('?' * len(allowed))}) "
            "AND repository=? AND kind=? AND name=? ORDER BY given DESC LIMIT 1"
        )
        values = (*allowed, question.repository, question.kind, question.name)
        row = self._database.run(lambda database: database.execute(query, values).fetchone(), None)
        return None if row is None else (float(row[0]), bytes(row[1]))

    def forget(self, asker: Asker | None, question: Question) -> None:
        """Delete the answers to a question, unless this process has changed them since."""
        if asker is not None and asker.changes >= self._changes.get(asker.repository, 0):
            self._forget(asker, question)

    def forget_repository(self, asker: Asker | None) -> None:
        """Delete all answers about the repository, to which the registry now denies access."""
        if asker is not None:
            self._forget(asker, None)
            self._proofs.remove(asker)

    def _forget(self, asker: Asker, question: Question | None) -> None:
        """Delete the answers to a question, or all about the asker's repository."""
        scopes = self._proofs.scopes(asker, also_refused=True)
        with self._database_lock:
            self._write_pending()
            with self._pending_lock:
                for scope, one in tuple(self._pending):
                    is_meant = one.repository == asker.repository and question in (None, one)
                    if is_meant and scope in scopes:
                        del self._pending[scope, one]
            for scope in scopes:
                self._delete_kept(scope, asker.repository, question)

    def close(self) -> None:
        """Write what is pending, and close the file."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        with self._database_lock:
            self._retry_at = 0.0
            self._write_pending()
            self._database.close()  # a listing in the background may still ask, and gets nothing

    def _delete_kept(self, scope: str, repository: str, question: Question | None = None) -> bool:
        """Delete answers on disk; where that fails, none about the repository are given."""
        statement, values = "DELETE FROM answer WHERE scope=? AND repository=?", [scope, repository]
        if question is not None:
            statement += " AND kind=? AND name=?"
            values += [question.kind, question.name]

        def delete(database: sqlite3.Connection) -> bool:
            with database:
                database.execute(statement, values)
            return True

        is_deleted = not self._database.is_open or self._database.run(delete, otherwise=False)
        if not is_deleted:
            self._undeleted.add((scope, repository))
        return is_deleted

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

        What the disk does not take stays pending, and is given from there.
        """
        if not self._database.is_open or time.monotonic() < self._retry_at:
            return
        with self._pending_lock:
            pending, self._pending = self._pending, _pending()
        rows = [
            (scope, one.kind, one.repository, one.name, given, value)
            for (scope, one), (given, value) in pending.items()
        ]
        if not rows:
            return

        def write(database: sqlite3.Connection) -> bool:
            with database:
                database.executemany(
                    "INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?, ?, ?)", rows
                )
            self._shrink(database)
            return True

        for one in tuple(self._undeleted):
            if self._delete_kept(*one):
                self._undeleted.remove(one)
        if not self._database.run(write, otherwise=False):
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            with self._pending_lock:
                newer, self._pending = self._pending, pending
                self._pending.update(newer)

    def _shrink(self, database: sqlite3.Connection) -> None:
        """Delete the oldest answers, a tenth at a time, until the file is within its limit."""
        sizes = ("page_count", "freelist_count", "page_size")
        deleted = 1
        while deleted:
            pages, free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in sizes)
            if (pages - free) * size <= self._limit:  # free pages are used again
                return
            with database:
                deleted = database.execute(
                    "DELETE FROM answer WHERE rowid IN (SELECT rowid FROM answer ORDER BY given "
                    "LIMIT (SELECT 1 + count(*) / 10 FROM answer))"
                ).rowcount


def _pending() -> FIFOCache[tuple[str, Question], tuple[float, bytes]]:
    """Return what holds answers that are yet to be written, and when they were given."""
    return FIFOCache(_PENDING_BYTES, lambda answer: len(answer[1]) + _ROW_BYTES)


class Proofs:
    """Tracks which credentials have proved this process's access, by bearer and repository.

    Tokens and passwords are rotated under a mount. What the registry answered under earlier
    credentials of the same bearer stays with this process: it has proved its access, and a rotation
    takes none away. That ends when the registry refuses the new credentials. Another process, this
    one after a restart, and another user who logs in have proved nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._proved: dict[tuple[str, str], LRUCache[str, bool]] = {}
        self._accepted: set[str] = set()
        self._refused: set[str] = set()

    def add(self, asker: Asker) -> None:
        """Note that the registry has given an answer about a repository."""
        with self._lock:
            self._refused.discard(asker.scope)
            self._accepted.add(asker.scope)
            who = (asker.principal, asker.repository)
            self._proved.setdefault(who, LRUCache(_MOST_EARLIER))[asker.scope] = True

    def remove(self, asker: Asker) -> None:
        """Note that the registry denies a repository.

        If earlier credentials had access and the present ones never had an answer, it is the
        present ones that are refused, and they no longer benefit from earlier proofs.
        """
        with self._lock:
            proved = self._proved.pop((asker.principal, asker.repository), None)
            if proved and asker.scope not in self._accepted:
                self._refused.add(asker.scope)

    def scopes(self, asker: Asker, *, also_refused: bool = False) -> tuple[str, ...]:
        """Return whose answers about a repository are this process's: the present scope first.

        Refused credentials have only their own, unless `also_refused`.
        """
        with self._lock:
            earlier: Iterable[str] = ()
            if also_refused or asker.scope not in self._refused:
                earlier = self._proved.get((asker.principal, asker.repository), ())
            return (asker.scope, *(one for one in earlier if one != asker.scope))
