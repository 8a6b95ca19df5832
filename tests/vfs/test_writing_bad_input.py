"""What a writer may try that nobody should: names, sizes, documents. Each has its errno."""

from __future__ import annotations

import errno
import json
import time

import pytest
from support.registries import EmbeddedRegistry, Guarded
from support.scripted import at_most, until
from support.writing import (
    OLD,
    blob_path,
    exists,
    listed,
    make,
    read,
    strict_registry,
    tags,
    write,
    written_to,
)

from epochfs.cache.written_file import WrittenFile
from epochfs.demo.registry import Request
from epochfs.errors import EpochfsError, NoRoom
from epochfs.fuse.errnos import errno_of
from epochfs.oci.manifests import OCI_MANIFEST
from epochfs.oci.names import Digest
from epochfs.vfs.writing import outbox
from epochfs.vfs.writing.writable import WritableFileSystem

TOP = "/team/app"

registry = pytest.fixture(strict_registry)
fs = pytest.fixture(written_to)


def described(data: bytes, **other: object) -> dict[str, object]:
    return {
        "mediaType": "application/octet-stream",
        "digest": str(Digest.of(data)),
        "size": len(data),
        **other,
    }


def document(**other: object) -> bytes:
    base = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(b"old"),
        "layers": [],
    }
    return json.dumps({**base, **other}).encode()


def write_manifest(fs: WritableFileSystem, raw: bytes) -> str:
    directory = f"{TOP}/manifests/{Digest.of(raw)}"
    make(fs, directory)
    write(fs, f"{directory}/manifest.json", raw)
    return f"{directory}/manifest.json"


DIRECTORIES = (
    "/",
    "/team",
    TOP,
    f"{TOP}/tags",
    f"{TOP}/blobs",
    f"{TOP}/manifests",
    f"{TOP}/manifests/{OLD.digest}",
    f"{TOP}/layout",
    f"{TOP}/layout/blobs/sha256",
    f"{TOP}/manifests/{OLD.digest}/referrers",
    "/.epochfs",
)
NAMES = {
    "NUL": "a\0b",
    "255 bytes": "a" * 255,
    "256 bytes": "a" * 256,
    "no UTF-8": "\udcff\udcfe",
    "newline": "a\nb",
    "escape": "a\x1bb",
    "short digest": "sha256:zz",
    "upper case": "sha256:" + "A" * 64,
    "unknown algorithm": "md5:" + "a" * 32,
    "temporary": ".~tmp~",
    "long tag": "t" * 129,
    "dash": "-x",
    "dots": "..",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("directory", DIRECTORIES)
def test_a_name_is_taken_and_shown_or_refused(
    directory: str, name: str, fs: WritableFileSystem
) -> None:
    path = f"{directory.rstrip('/')}/{name}"
    before = listed(fs, directory)

    def create() -> None:
        handle = fs.create(path).handle
        fs.write(handle, memoryview(b"x"), 0)
        fs.flush(handle)
        fs.release(handle)
        assert read(fs, path) == b"x"
        assert name in listed(fs, directory)
        fs.unlink(path)

    def mkdir() -> None:
        fs.mkdir(path)
        assert listed(fs, path) == []
        fs.rmdir(path)

    def symlink() -> None:
        fs.symlink("to\udcff", path)
        assert fs.readlink(path) == "to\udcff"
        fs.unlink(path)

    for act in (create, mkdir, symlink):
        try:
            act()
        except EpochfsError as error:
            refused = (errno.EINVAL, errno.ENOENT, errno.EPERM, errno.ENAMETOOLONG)
            assert errno_of(error) in refused
        assert listed(fs, directory) == before


@pytest.mark.parametrize(
    ("offset", "code"),
    [(1 << 40, 0), (1 << 62, errno.EFBIG), ((1 << 63) - 1, errno.EFBIG)],
)
def test_a_byte_far_away_is_written_or_too_far(
    offset: int, code: int, fs: WritableFileSystem
) -> None:
    handle = fs.create(f"{TOP}/blobs/.sparse").handle
    try:
        fs.write(handle, memoryview(b"x"), offset)
        assert not code
        assert fs.getattr(f"{TOP}/blobs/.sparse").size == offset + 1
    except EpochfsError as error:
        assert errno_of(error) == code
    fs.release(handle)
    fs.unlink(f"{TOP}/blobs/.sparse")


@pytest.mark.parametrize("stop", [1 << 60, (1 << 63) - 1])
def test_more_than_any_disk_has_cannot_be_reserved(stop: int, fs: WritableFileSystem) -> None:
    handle = fs.create(f"{TOP}/blobs/.large").handle
    with pytest.raises(EpochfsError) as raised:
        fs.reserve(handle, stop)
    assert errno_of(raised.value) == errno.ENOSPC
    fs.release(handle)
    fs.unlink(f"{TOP}/blobs/.large")


DOCUMENTS: dict[str, tuple[bytes, int]] = {
    "empty": (b"", errno.EIO),
    "nonsense": (b"nonsense", errno.EIO),
    "a list": (b"[]", errno.EIO),
    "nested": (b"[" * 100_000 + b"]" * 100_000, errno.EIO),
    "keys twice": (b'{"schemaVersion":2,"schemaVersion":2}', errno.EIO),
    "NaN": (b'{"schemaVersion":NaN}', errno.EIO),
    "digits": (b'{"schemaVersion":' + b"9" * 10_000 + b"}", errno.EIO),
    "a type of two lines": (document(mediaType="a/b\r\nX: y"), errno.EINVAL),
    "a type that is a number": (document(mediaType=7), errno.EINVAL),
    "a negative size": (document(layers=[described(b"z", size=-1)]), errno.EIO),
    "a digest that climbs": (document(layers=[described(b"z", digest="sha256:../x")]), errno.EIO),
    "over the limit": (document(annotations={"a": "x" * 5_000_000}), errno.EFBIG),
}


@pytest.mark.expects_log("was not written")
@pytest.mark.parametrize(("raw", "code"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_what_is_no_manifest_is_refused(raw: bytes, code: int, fs: WritableFileSystem) -> None:
    with pytest.raises(EpochfsError) as raised:
        write_manifest(fs, raw)
    assert errno_of(raised.value) == code
    assert not exists(fs, f"{TOP}/manifests/{Digest.of(raw)}/manifest.json")
    assert fs.writing().reasons == ()


@pytest.mark.expects_log("was not written")
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[" * 50_000,
        b'{"schemaVersion":2,"manifests":{}}',
        json.dumps(
            {
                "schemaVersion": 2,
                "manifests": [
                    described(b"q", annotations={"org.opencontainers.image.ref.name": "-bad"})
                ],
            }
        ).encode(),
    ],
    ids=["empty", "nested", "no list", "no tag"],
)
def test_what_is_no_index_of_a_layout_is_refused(
    raw: bytes, registry: EmbeddedRegistry, fs: WritableFileSystem
) -> None:
    with pytest.raises(EpochfsError) as raised:
        write(fs, f"{TOP}/layout/index.json", raw)
    assert errno_of(raised.value) in (errno.EINVAL, errno.EIO)
    assert set(tags(registry, "team/app")) == {"old"}


def slowly(request: Request) -> None:
    """Take some time to say whether there is a blob."""
    if request.method == "HEAD" and "/blobs/" in request.path:
        time.sleep(0.003)


@pytest.mark.parametrize("last_is_missing", [False, True])
def test_a_manifest_of_many_blobs_is_closed_in_time_and_sent_later(
    last_is_missing: bool,
    registry: Guarded,
    fs: WritableFileSystem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "_LOOK_SECONDS", 0.2)
    blobs = [b"%d" % number for number in range(300)]
    raw = document(layers=[described(blob) for blob in blobs])
    for blob in blobs[: -1 if last_is_missing else None]:
        registry.put_blob("team/app", blob)
    registry.guard = slowly
    with at_most(1.0):
        write_manifest(fs, raw)
    assert fs.writing().waiting == 1
    if last_is_missing:
        write(fs, blob_path(blobs[-1]), blobs[-1])
    until(lambda: fs.writing().waiting == 0, 20)
    assert exists(fs, f"{TOP}/manifests/{Digest.of(raw)}/manifest.json")


@pytest.mark.expects_log("was not written: no room")
def test_what_found_no_room_is_closed_with_that_error_and_can_be_written_again(
    fs: WritableFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"what finds no room"
    path = blob_path(data)
    handle = fs.create(path).handle

    def full(*_: object) -> None:
        raise NoRoom("no room")

    with monkeypatch.context() as patched:
        patched.setattr(WrittenFile, "write", full)
        with pytest.raises(NoRoom):
            fs.write(handle, memoryview(data), 0)
    with pytest.raises(NoRoom):
        fs.flush(handle)
    fs.release(handle)
    assert not exists(fs, path)
    write(fs, path, data)
    assert read(fs, path) == data
