"""Faults that are not one answer's: tokens, names, outages, disks, signals, crowds and kills.

Through real mounts of a real docker-registry, with the blobs of `faultlab`. The cache that is full
is a tmpfs of 8 MiB, for a blob of 12 MiB.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import DockerRegistry, free_port, serve_docker_registry
from support import faults, killcycles, killwrites
from support.builders import image, random_bytes
from support.diskcache import small_disk
from support.faultlab import (
    APP,
    BLOBS,
    EACCES,
    EIO,
    ETIMEDOUT,
    KIB,
    LARGE,
    NAME,
    OK,
    SLACK,
    SMALL,
    TIMEOUT,
    blob_at,
    forget_pages,
    furnished,
    proxying,
    read_some,
)
from support.faultproxy import BLOB, MANIFEST, TOKEN, Fault, FaultProxy, grant, untouched
from support.integrity import defects, push, read
from support.mounts import Mounts
from support.scripted import at_most, settled, until

from epochfs.blobs.fetch_plan import CHUNK
from epochfs.oci.names import Digest

HEALING_SECONDS = 10
"""How long a registry that was down may be taken for down after it is back."""

ANY_ERROR = "EIO|EACCES|ETIMEDOUT|cannot be cached|is lost|is down"
HUGE = random_bytes(12 * CHUNK, 42)


registry = pytest.fixture(scope="module")(furnished)
proxy = pytest.fixture(proxying)


@pytest.fixture
def guarded(registry: DockerRegistry) -> Iterator[FaultProxy]:
    """A proxy that wants a token for everything."""
    with FaultProxy(registry.host, guarded=True) as proxy:
        yield proxy


@dataclass(frozen=True)
class TokenRow:
    """What happens to tokens while a blob is read, and how that must end."""

    title: str
    blobs: Fault
    tokens: Fault
    expected: int
    most_tokens: int = 4


TOKEN_ROWS = (
    TokenRow("expired at the start", untouched, grant, OK, 1),
    TokenRow("expired on resume", faults.first(1, faults.expire_after(512 * KIB)), grant, OK, 2),
    TokenRow("every token refused", faults.unauthorized, grant, EACCES),
    TokenRow("token endpoint: 500", untouched, faults.status(500), EIO, 20),
    TokenRow("token endpoint: bad JSON", untouched, faults.say(b'{"token": '), EIO),
    TokenRow("token endpoint: no token", untouched, faults.say(b"{}"), EIO),
    TokenRow("token endpoint: empty token", untouched, faults.say(b'{"token": ""}'), EACCES),
)


@pytest.mark.expects_log(ANY_ERROR)
@pytest.mark.parametrize("row", TOKEN_ROWS, ids=lambda row: row.title)
@pytest.mark.parametrize("state", ["cold", "partial", "warm"])
def test_a_token_that_expired_is_renewed_once_and_never_in_a_loop(
    row: TokenRow, state: str, guarded: FaultProxy, mounts: Mounts, tmp_path: Path
) -> None:
    mount = mounts(guarded.url, "--timeout", str(TIMEOUT))
    path = blob_at(mount, LARGE)
    _bring_into(state, path)
    guarded.set(TOKEN, row.tokens)
    guarded.set(BLOB, row.blobs)
    guarded.expire_tokens()
    outcome = read(path, len(LARGE))

    assert outcome.code == (OK if state == "warm" else row.expected)
    assert outcome.slowest < TIMEOUT + SLACK
    assert outcome.data == LARGE[: len(outcome.data)]
    assert len(guarded.requests(TOKEN)) <= (0 if state == "warm" else row.most_tokens)
    assert len(guarded.requests(BLOB)) <= (0 if state == "warm" else 12)

    guarded.mend()
    until(lambda: read(path, len(LARGE)).data == LARGE, HEALING_SECONDS)
    mount.unmount()
    assert list(defects(tmp_path / "cache", BLOBS)) == []


def _bring_into(state: str, path: Path) -> None:
    """Have nothing of LARGE, two chunks or all of it in the cache, and none of it in the kernel."""
    path.stat()
    if state == "partial":
        read_some(path)
    if state == "warm":
        assert read(path, len(LARGE)).data == LARGE
        forget_pages(path)


@pytest.mark.parametrize("state", ["cold", "partial", "warm"])
def test_a_redirect_to_another_host_is_followed_without_the_token(
    state: str, proxy: FaultProxy, guarded: FaultProxy, mounts: Mounts
) -> None:
    path = blob_at(mounts(guarded.url), LARGE)
    _bring_into(state, path)
    guarded.set(BLOB, faults.redirect_to(proxy.url))
    assert read(path, len(LARGE)).data == LARGE
    assert bool(proxy.seen) == (state != "warm")
    assert all("authorization" in request.headers for request in guarded.seen)
    assert not any("authorization" in request.headers for request in proxy.seen)


@dataclass(frozen=True)
class ManifestRow:
    """A fault of the answer to a manifest's request, and how reading that manifest must end."""

    title: str
    fault: Fault
    expected: int


MANIFEST_ROWS = (
    ManifestRow("reset before headers, three times", faults.first(3, faults.reset), OK),
    ManifestRow(
        "clean close short of Content-Length, once", faults.first(1, faults.close_after(100)), OK
    ),
    ManifestRow("clean close short of Content-Length, always", faults.close_after(100), EIO),
    ManifestRow("chunked body ended early but cleanly", faults.chunked_until(100), EIO),
    ManifestRow("other bytes", faults.say(b'{"schemaVersion": 2}'), EIO),
    ManifestRow("429 with Retry-After 86400", faults.retry_after("86400"), EIO),
    ManifestRow("5xx burst shorter than the retries", faults.first(3, faults.status(503)), OK),
    ManifestRow("5xx burst longer than the retries", faults.status(500), EIO),
    ManifestRow("accept, then silence", faults.silence, ETIMEDOUT),
    ManifestRow("one byte a second", faults.trickle, ETIMEDOUT),
    ManifestRow("redirect loop", faults.redirect_loop, EIO),
    ManifestRow("every token refused", faults.unauthorized, EACCES),
)


@pytest.mark.expects_log(ANY_ERROR)
@pytest.mark.parametrize("row", MANIFEST_ROWS, ids=lambda row: row.title)
def test_a_manifest_is_right_or_an_errno_and_once_known_met_by_no_fault(
    row: ManifestRow, proxy: FaultProxy, mounts: Mounts
) -> None:
    mount = mounts(proxy.url, "--timeout", str(TIMEOUT))
    path = mount.path / NAME / "manifests" / str(APP.digest) / "manifest.json"
    proxy.set(MANIFEST, row.fault)
    outcome = read(path, len(APP.raw))
    assert (outcome.code, outcome.data) == (row.expected, b"" if row.expected else APP.raw)
    assert outcome.slowest < TIMEOUT + SLACK
    proxy.mend()
    assert read(path, len(APP.raw)).data == APP.raw
    proxy.set(MANIFEST, row.fault)
    forget_pages(path)
    assert read(path, len(APP.raw)).data == APP.raw
    assert proxy.seen == []


@pytest.mark.expects_log(ANY_ERROR)
def test_a_registry_that_was_gone_and_is_back_is_read_from_without_a_remount(
    mounts: Mounts, tmp_path: Path
) -> None:
    directory, port = tmp_path / "registry", free_port()
    directory.mkdir()
    with serve_docker_registry(directory, port) as registry:
        push(registry.url, NAME, "latest", APP)
        mount = mounts(registry.url, "--timeout", str(TIMEOUT), "--metadata-ttl", "0")
        small, large = blob_at(mount, SMALL), blob_at(mount, LARGE)
        assert small.read_bytes() == SMALL
        read_some(large)
    forget_pages(small)
    assert small.read_bytes() == SMALL
    read_some(large)
    outcome = read(large, len(LARGE))
    assert outcome.code == EIO
    assert outcome.slowest < TIMEOUT + SLACK
    with serve_docker_registry(directory, port), at_most(10):
        until(lambda: read(large, len(LARGE)).data == LARGE, 10)
        assert [tag.name for tag in (mount.path / NAME / "tags").iterdir()] == ["latest"]


@pytest.mark.expects_log("cannot keep everything")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_cache_whose_disk_is_full_gives_right_bytes(
    registry: DockerRegistry, mounts: Mounts, tmp_path: Path
) -> None:
    huge = image(HUGE)
    push(registry.url, "faults/huge", "latest", huge)
    with small_disk(tmp_path / "disk", "size=8M") as disk:
        mount = mounts(registry.url, "--timeout", "5", cache=disk / "cache")
        path = mount.path / "faults/huge/blobs" / str(Digest.of(HUGE))
        for _ in range(2):
            outcome = read(path, len(HUGE))
            assert (outcome.code, outcome.data) == (OK, HUGE)
            outcome = read(blob_at(mount, SMALL), len(SMALL))
            assert (outcome.code, outcome.data) == (OK, SMALL)
        mount.unmount()
        blobs = {**BLOBS, Digest.of(HUGE).encoded: HUGE}
        assert list(defects(disk / "cache", blobs)) == []


@pytest.mark.expects_log("cannot keep everything")
@pytest.mark.expects_log(ANY_ERROR)
@pytest.mark.parametrize("state", ["cold", "partial", "warm"])
def test_a_cache_removed_while_it_is_read_from_does_no_harm(
    state: str, proxy: FaultProxy, mounts: Mounts, tmp_path: Path
) -> None:
    mount = mounts(proxy.url)
    path = blob_at(mount, LARGE)
    _bring_into(state, path)
    proxy.set(BLOB, faults.paced(0.005))
    with path.open("rb", buffering=0) as file:
        begun = file.read(CHUNK)
        until(lambda: _removed(tmp_path / "cache"))
        rest = b"".join(iter(lambda: file.read(CHUNK), b""))
    assert begun + rest == LARGE
    proxy.mend()
    for blob in (LARGE, SMALL):
        forget_pages(blob_at(mount, blob))
        assert blob_at(mount, blob).read_bytes() == blob
    mount.unmount()
    assert list(defects(tmp_path / "cache", BLOBS)) == []


def _removed(directory: Path) -> bool:
    """Remove a directory in which the mount may just be writing; return whether it is gone."""
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


@pytest.mark.expects_log(ANY_ERROR)
@pytest.mark.parametrize(
    ("number", "state"), [(signal.SIGINT, "cold"), (signal.SIGTERM, "partial")]
)
def test_a_signal_ends_a_mount_with_32_stalled_readers_within_5_seconds(
    number: signal.Signals, state: str, proxy: FaultProxy, mounts: Mounts
) -> None:
    mount = mounts(proxy.url)
    path = blob_at(mount, LARGE)
    _bring_into(state, path)
    proxy.set(BLOB, faults.silence)
    ready = threading.Barrier(33)

    def stall(reader: int) -> bool:
        try:
            with path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                ready.wait()
                os.pread(file.fileno(), KIB, CHUNK + 16 * KIB * reader)
        except OSError:
            return True
        return False

    with ThreadPoolExecutor(32) as pool:
        stalled = [pool.submit(stall, reader) for reader in range(32)]
        ready.wait()
        until(lambda: bool(proxy.seen))
        time.sleep(0.3)
        assert not any(reader.done() for reader in stalled)
        with at_most(5):
            mount.process.send_signal(number)
            assert mount.process.wait(10) == 0
        assert not os.path.ismount(mount.path)
        assert all(reader.result() for reader in stalled)


@pytest.mark.parametrize("state", ["cold", "partial", "warm"])
def test_64_readers_of_a_blob_fetch_it_once(state: str, proxy: FaultProxy, mounts: Mounts) -> None:
    path = blob_at(mounts(proxy.url), LARGE)
    _bring_into(state, path)
    settled(lambda: proxy.sent)  # what was under way when the last reader left
    proxy.set(BLOB, faults.paced(0.002))
    with ThreadPoolExecutor(64) as pool:
        outcomes = list(pool.map(lambda _: read(path, len(LARGE)).data == LARGE, range(64)))
    assert outcomes == [True] * 64
    missing = {"cold": len(LARGE), "partial": len(LARGE) - 2 * CHUNK, "warm": 0}[state]
    assert missing <= proxy.sent <= 1.05 * missing


def test_mounts_killed_at_random_moments_leave_nothing_wrong(
    docker_registry: DockerRegistry, tmp_path: Path
) -> None:
    tally = killcycles.run(docker_registry.host, tmp_path, 4, seed=9)
    assert tally.kills == 4
    assert tally.blobs_to_the_end == len(killcycles.BLOBS)
    assert tally.clean, str(tally)


def test_mounts_killed_while_they_are_written_to_have_sent_what_they_acknowledged(
    docker_registry: DockerRegistry, tmp_path: Path
) -> None:
    tally = killwrites.run(docker_registry.host, tmp_path, 3, seed=3)
    assert tally.kills == 3
    assert tally.blobs
    assert tally.clean, str(tally)
