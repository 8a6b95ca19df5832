"""Every fault of a registry or of the way to it, with a cold, a warm and a partial cache.

A proxy that breaks answers stands between a real mount and a real docker-registry. Blobs have
64 KiB to 6 MiB, and what would be met every 50 MiB of a large one is met every 512 KiB here.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import DockerRegistry
from support import faults
from support.faultlab import (
    APP,
    BLOBS,
    EIO,
    EMPTY,
    ETIMEDOUT,
    KIB,
    LARGE,
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
from support.faultproxy import BLOB, Fault, FaultProxy
from support.integrity import defects, read
from support.mounts import Mounts, require_fuse
from support.scripted import until

from epochfs.blobs.fetch_plan import CHUNK


@dataclass(frozen=True)
class Row:
    """A fault, and how reading a blob that is not here must end."""

    title: str
    fault: Fault
    expected: int
    blob: bytes = LARGE
    options: tuple[str, ...] = ()
    timeout: float = TIMEOUT
    at_least: float = 0.0
    """Seconds that it must take."""
    twice: int = 0
    """How many bytes may be sent that were sent before; 0 if it does not matter."""


ROWS = (
    Row("reset before headers, three times", faults.first(3, faults.reset), OK),
    Row(
        "reset mid-body, every 512 KiB",
        faults.reset_every(512 * KIB),
        OK,
        twice=13 * CHUNK,
    ),
    Row("clean close short of Content-Length, resumed", faults.close_after(700 * KIB), OK),
    Row("clean close with nothing sent, always", faults.close_after(0), EIO),
    Row("the same without Range, once", faults.first(1, faults.rangeless_close_after(CHUNK)), OK),
    Row("the same without Range, always", faults.rangeless_close_after(CHUNK), EIO),
    Row("chunked body ended early but cleanly", faults.chunked_until(CHUNK), EIO),
    Row("one byte flipped, once, nothing served", faults.first(1, faults.flipped), OK, blob=SMALL),
    Row(
        "one byte flipped, once, verified before it is served",
        faults.first(1, faults.flipped),
        OK,
        options=("--verify", "full"),
    ),
    Row("one byte flipped, once, already served", faults.first(9, faults.flipped), EIO),
    Row("one byte flipped, always", faults.flipped, EIO),
    Row("206 without Content-Range", faults.content_range(None), EIO),
    Row("206 with another range", faults.content_range(f"bytes 5-9/{len(LARGE)}"), EIO),
    Row("206 with a Content-Range that is none", faults.content_range("bytes 0-"), EIO),
    Row("Range answered 200", faults.no_range, OK),
    Row("Range answered 200 after a 206", faults.later(faults.no_range), OK),
    Row("Range refused with 400", faults.range_refused(400), OK),
    Row("Range refused with 416", faults.range_refused(416), OK),
    Row("Range refused with 501", faults.range_refused(501), OK),
    Row("206 of 100 KiB, however much is asked for", faults.capped(100 * KIB), OK, twice=CHUNK),
    Row("206 of one byte less than is asked for", faults.first(5, faults.capped(CHUNK - 1)), OK),
    Row("416 on an empty blob", faults.status(416), OK, blob=EMPTY),
    Row("Content-Length differs from the descriptor's size", faults.shorter, EIO),
    Row(
        "429 with Retry-After: 2",
        faults.first(1, faults.retry_after("2")),
        OK,
        timeout=5,
        at_least=2.0,
    ),
    Row("429 with Retry-After 86400", faults.retry_after("86400"), EIO),
    Row("429 with Retry-After -1, twice", faults.first(2, faults.retry_after("-1")), OK),
    Row("429 with a date", faults.retry_at_a_date, EIO),
    Row("429 with nothing more, twice", faults.first(2, faults.status(429)), OK),
    Row("5xx burst shorter than the retries", faults.first(3, faults.status(503)), OK),
    Row("5xx burst longer than the retries", faults.status(500), EIO),
    Row("accept, then silence", faults.silence, ETIMEDOUT, timeout=1.5),
    Row(
        "silence mid-body",
        faults.first(1, faults.silence_after(300 * KIB), faults.silence),
        ETIMEDOUT,
        timeout=1.5,
    ),
    Row("one byte a second", faults.trickle, ETIMEDOUT, timeout=1.5),
    Row("redirect loop", faults.redirect_loop, EIO),
)

by_title = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
all_errors = pytest.mark.expects_log("EIO|ETIMEDOUT|another digest")


registry = pytest.fixture(scope="module")(furnished)
proxy = pytest.fixture(proxying)


@pytest.fixture(scope="module")
def caches(registry: DockerRegistry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a `cold`, a `warm` and a `partial` cache, to be copied and used."""
    require_fuse()
    directory = tmp_path_factory.mktemp("caches")
    mounts = Mounts(directory)
    for state in ("cold", "warm", "partial"):
        mount = mounts(registry.url, cache=directory / state)
        if state == "warm":
            for blob in APP.blobs:
                assert blob_at(mount, blob).read_bytes() == blob
        if state == "partial":
            read_some(blob_at(mount, LARGE))
        mount.unmount()
    assert mounts.close() == []
    assert list((directory / "partial").rglob("*.map"))
    return directory


@all_errors
@by_title
@pytest.mark.parametrize("state", ["cold", "partial"])
def test_a_fault_ends_in_the_right_bytes_or_in_an_errno_in_time(
    row: Row, state: str, proxy: FaultProxy, caches: Path, mounts: Mounts, tmp_path: Path
) -> None:
    cache = shutil.copytree(caches / state, tmp_path / "cache")
    mount = mounts(proxy.url, "--timeout", str(row.timeout), *row.options, cache=cache)
    path = blob_at(mount, row.blob)
    path.stat()  # from here on, all there is to ask for is the blob
    proxy.set(BLOB, row.fault)
    outcome = read(path, len(row.blob))

    assert outcome.code == row.expected
    assert row.at_least <= outcome.slowest < row.timeout + SLACK
    assert outcome.data[: faults.FLIPPED] == row.blob[: len(outcome.data)][: faults.FLIPPED]
    assert row.expected or outcome.data == row.blob
    assert not row.twice or proxy.sent < len(row.blob) + row.twice

    proxy.mend()
    assert blob_at(mount, SMALL).read_bytes() == SMALL
    until(lambda: read(path, len(row.blob)).data == row.blob, 10)
    mount.unmount()
    assert list(defects(cache, BLOBS)) == []


@all_errors
def test_a_reader_of_wrong_bytes_is_not_brought_to_a_clean_end_by_another_readers_right_ones(
    proxy: FaultProxy, mounts: Mounts
) -> None:
    path = blob_at(mounts(proxy.url), LARGE)
    path.stat()
    proxy.set(BLOB, faults.flipped)
    with path.open("rb", buffering=0) as file:
        begun = os.pread(file.fileno(), 2 * CHUNK, 0)
        assert read(path, len(LARGE)).code == EIO
        proxy.mend()
        assert read(path, len(LARGE)).data == LARGE
        assert begun != LARGE[: 2 * CHUNK]
        with pytest.raises(OSError, match="Input/output error"):
            while begun and len(begun) < len(LARGE):
                begun += os.pread(file.fileno(), CHUNK, len(begun))
    assert read(path, len(LARGE)).data == LARGE


@all_errors
@pytest.mark.parametrize("tail", [1, CHUNK // 2])
def test_a_whole_read_of_wrong_bytes_is_not_ended_by_what_a_random_read_left_in_the_kernel(
    proxy: FaultProxy, mounts: Mounts, tail: int
) -> None:
    path = blob_at(mounts(proxy.url), LARGE)
    proxy.set(BLOB, faults.flipped)
    with path.open("rb", buffering=0) as whole, path.open("rb", buffering=0) as random:
        os.posix_fadvise(random.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        first = (len(LARGE) - tail) // 4096 * 4096
        for offset in range(first, len(LARGE), 4096):
            assert os.pread(random.fileno(), 4096, offset) == LARGE[offset : offset + 4096]
        with pytest.raises(OSError, match="Input/output error"):
            while piece := os.pread(whole.fileno(), 128 << 10, whole.tell()):
                whole.seek(len(piece), os.SEEK_CUR)


def test_no_fault_is_met_by_who_reads_what_is_cached(
    proxy: FaultProxy, caches: Path, mounts: Mounts, tmp_path: Path
) -> None:
    cache = shutil.copytree(caches / "warm", tmp_path / "cache")
    mount = mounts(proxy.url, "--timeout", str(TIMEOUT), cache=cache)
    for row in ROWS:
        path = blob_at(mount, row.blob)
        path.stat()
        forget_pages(path)
        proxy.set(BLOB, row.fault)
        assert read(path, len(row.blob)).data == row.blob, row.title
        assert proxy.seen == [], row.title
    mount.unmount()
    assert list(defects(cache, BLOBS)) == []
