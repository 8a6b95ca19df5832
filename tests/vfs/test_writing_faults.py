"""Each step of a write, each answer it may get: success is true, and failure leaves nothing."""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.builders import image, load, random_bytes
from support.registries import EmbeddedRegistry
from support.scripted import at_most
from support.writefaults import (
    DELETE,
    FAULTS,
    HEAD_BLOB,
    HEAD_MANIFEST,
    PATCH,
    POST,
    PUT_BLOB,
    PUT_MANIFEST,
    PUT_TAG,
    WriteProxy,
)
from support.writing import (
    OLD,
    blob_path,
    exists,
    link_to,
    make,
    manifest_path,
    read,
    tags,
    writable,
    write,
)

from epochfs.client import RegistryClient, upload_sessions, uploads
from epochfs.demo.registry import Behaviour
from epochfs.errors import EpochfsError
from epochfs.fuse.errnos import errno_of, name_of
from epochfs.oci.names import Digest
from epochfs.vfs.writing.writable import WritableFileSystem

NAME = "team/app"
BLOB = random_bytes(100_000, 3)
NEW = image(b"new")
TIMEOUT = 1.5
SLACK = 1.5

OF_STEP = {
    HEAD_BLOB: "blob",
    POST: "blob",
    PATCH: "blob",
    PUT_BLOB: "blob",
    HEAD_MANIFEST: "manifest",
    PUT_MANIFEST: "manifest",
    PUT_TAG: "tag",
    DELETE: "removal",
}

REFUSED = {
    "413": {errno.EFBIG},
    "401 always": {errno.EACCES},
    "403": {errno.EACCES},
    "404 plain": {errno.ENOENT, errno.EPERM, errno.EIO},
    "405": {errno.EIO, errno.EPERM},
    "silence": {errno.ETIMEDOUT},
}
"""How a write fails that meets such an answer, if it fails; EIO for all others."""

NEVER = {"429 with Retry-After once", "500 once", "401 once", "reset once", "answer lost once"}
"""What no write may fail for."""


@dataclass(frozen=True)
class Act:
    """Something to write: how, where it is seen, and whether the registry has it."""

    path: str
    do: Callable[[WritableFileSystem], None]
    is_done: Callable[[EmbeddedRegistry], bool]


def has_blob(registry: EmbeddedRegistry, data: bytes) -> bool:
    with closing(RegistryClient(registry.url)) as client:
        digest = Digest.of(data)
        return client.blob_exists(NAME, digest) and client.read_blob(NAME, digest, 1 << 20) == data


def has_manifest(registry: EmbeddedRegistry) -> bool:
    with closing(RegistryClient(registry.url)) as client:
        if not client.has_manifest(NAME, NEW.digest):
            return False
        return client.get_manifest(NAME, NEW.digest).raw == NEW.raw


def write_manifest(fs: WritableFileSystem) -> None:
    make(fs, f"/{NAME}/manifests/{NEW.digest}")
    write(fs, manifest_path(NEW), NEW.raw)


ACTS = {
    "blob": Act(
        blob_path(BLOB),
        lambda fs: write(fs, blob_path(BLOB), BLOB),
        lambda registry: has_blob(registry, BLOB),
    ),
    "manifest": Act(manifest_path(NEW), write_manifest, has_manifest),
    "tag": Act(
        f"/{NAME}/tags/new",
        lambda fs: fs.symlink(link_to(NEW), f"/{NAME}/tags/new"),
        lambda registry: tags(registry, NAME).get("new") == str(NEW.digest),
    ),
    "removal": Act(
        f"/{NAME}/tags/old",
        lambda fs: fs.unlink(f"/{NAME}/tags/old"),
        lambda registry: "old" not in tags(registry, NAME),
    ),
}


@pytest.fixture
def registry() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry(Behaviour(sparse="")) as registry:
        load(registry, NAME, "old", OLD)
        for blob in NEW.every_blob():
            registry.put_blob(NAME, blob)
        yield registry


@pytest.fixture
def proxy(registry: EmbeddedRegistry) -> Iterator[WriteProxy]:
    with WriteProxy(registry.host) as proxy:
        yield proxy


@pytest.fixture
def fs(proxy: WriteProxy, tmp_path: Path) -> Iterator[WritableFileSystem]:
    with writable(proxy, tmp_path, timeout=TIMEOUT) as fs:
        yield fs


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a blob of 100 kB sent in parts."""
    monkeypatch.setattr(upload_sessions, "PART_BYTES", 1 << 16)
    monkeypatch.setattr(uploads, "PART_BYTES", 1 << 16)


CASES = [
    (step, title)
    for step, title in itertools.product(OF_STEP, FAULTS)
    if (step, title) != (DELETE, "202 without Location")  # it is how a deletion succeeds
]


@pytest.mark.expects_log("was not written")
@pytest.mark.parametrize(("step", "title"), CASES)
def test_a_write_whose_step_is_answered_otherwise_is_done_or_fails_and_leaves_nothing(
    step: str,
    title: str,
    registry: EmbeddedRegistry,
    proxy: WriteProxy,
    fs: WritableFileSystem,
    caplog: pytest.LogCaptureFixture,
) -> None:
    act = ACTS[OF_STEP[step]]
    if step == PUT_TAG:
        write_manifest(fs)
    proxy.set(step, FAULTS[title])
    failure = None
    with at_most(TIMEOUT + SLACK):
        try:
            act.do(fs)
        except EpochfsError as error:
            failure = error
    if failure is None:
        assert act.is_done(registry)
    else:
        assert title not in NEVER
        code = errno_of(failure)
        assert code in REFUSED.get(title, {errno.EIO}), name_of(code)
        was_there = step == DELETE
        proxy.mend()
        assert exists(fs, act.path) == was_there or act.is_done(registry)
        if not act.is_done(registry):
            assert set(tags(registry, NAME)) == {"old"}
    warnings = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warnings) <= 1
    assert fs.writing().reasons == ()
    proxy.mend()
    if failure is not None and not act.is_done(registry):
        act.do(fs)
    assert act.is_done(registry)
    if step not in (DELETE, PUT_TAG):
        assert read(fs, act.path) in (BLOB, NEW.raw)
