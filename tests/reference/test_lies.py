"""A registry that lies: each lie ends in its errno, or is left out; nothing else happens."""

from __future__ import annotations

import hashlib
import logging
import ssl
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import bodylies, nameslies, weblies
from support.lies import APP, HONEST, Destinations, Lie, Seeing, answer
from support.mounts import require_fuse
from support.scripted import ScriptedServer
from support.stacks import stack

from epochfs.config import Credentials

LIES: tuple[Lie, ...] = (*nameslies.LIES, *bodylies.LIES, *weblies.LIES)

CANARY = Credentials(username="canary", password="hunter2-canary")


def test_there_are_300_and_no_two_are_the_same() -> None:
    assert len({str(lie) for lie in LIES}) == len(LIES)
    assert len(LIES) >= 300, Counter(lie.kind for lie in LIES)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory in memory: a thousand caches on a disk take a minute."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture
def _logins_hashed_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tells one login from another is slow on purpose, and this is about none of them."""
    monkeypatch.setattr(
        hashlib, "scrypt", lambda text, salt, **_: hashlib.sha256(salt + text).digest()
    )


@pytest.mark.usefixtures("_logins_hashed_fast")
@pytest.mark.expects_log("left out|E[A-Z]+: |another digest")
@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_lie_comes_to_what_it_should(
    lie: Lie, directory: Path, caplog: pytest.LogCaptureFixture, self_signed: ssl.SSLContext
) -> None:
    require_fuse()
    caplog.set_level(logging.DEBUG, "epochfs")
    with (
        ScriptedServer(
            lambda seen: answer(lie.answers, seen), self_signed if lie.tls else None
        ) as server,
        Destinations() as reached,
        stack(server.url, directory, timeout=lie.timeout, credentials=CANARY) as layers,
    ):
        mount = Seeing(layers.filesystem)
        assert mount.see(lie.see) == lie.expected
        assert mount.see(f"readlink {HONEST}") == f"../manifests/{APP.digest}"
        _check_requests(lie, server)
        stats = layers.client.stats
        if lie.kind == "endless error body":
            assert stats.bytes_received <= stats.requests * 65536
        host, _, port = server.host.partition(":")
    assert {(where, int(at)) for where, at in reached} <= {(host, int(port))}
    _check_log(lie, caplog.records)
    _check_cache(directory)


def _check_requests(lie: Lie, server: ScriptedServer) -> None:
    """Nobody was shown a password who should not see it, and no URL made of what is refused."""
    if lie.kind == "realm":
        assert [seen for seen in server.seen if "authorization" in seen.headers] == []
    if lie.kind == "digest in a path":
        assert [seen for seen in server.seen if seen.path.startswith("/v2/app/")] == []
    assert [seen for seen in server.seen if ".." in seen.target] == []


def _check_log(lie: Lie, records: list[logging.LogRecord]) -> None:
    """Whatever was sent, the log has lines of plain text, no secret, and no traceback."""
    lines = [record.getMessage() for record in records if record.name.startswith("epochfs")]
    assert [line for line in lines if not (line.isascii() and line.isprintable())] == []
    assert [line for line in lines if "hunter2" in line or "secret" in line] == []
    assert [line for line in lines if len(line) > 2000] == []
    assert [record for record in records if record.exc_info] == []
    if lie.kind == "name left out":
        assert sum("left out" in line for line in lines) == 1


def _check_cache(directory: Path) -> None:
    """Only what has its digest was kept, and no room was taken for what never came."""
    for path in directory.glob("v1/blobs/*/*"):
        assert hashlib.new(path.parent.name, path.read_bytes()).hexdigest() == path.name
    kept = sum(path.stat().st_blocks * 512 for path in directory.rglob("*"))
    assert kept < 64 * 2**20
