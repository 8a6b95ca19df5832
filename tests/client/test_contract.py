"""What every registry must be to our client: one suite over several of them.

The embedded registry stands for the specification's ways and for Epoch's, with and without
authentication; Debian's docker-registry is a real one that we did not write.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Skopeo
from support.builders import Content, image, index, random_bytes
from support.subjects import BEHAVIOURS, DOCKER, Subject, subject_of_kind

from epochfs.errors import EpochfsError, NotFound, TooLarge, Unsupported
from epochfs.oci.manifests import OCI_INDEX, OCI_MANIFEST, Index
from epochfs.oci.names import Digest, Repository, Tag

UNKNOWN = Digest.of(b"what no registry holds")


subject = pytest.fixture(params=[*BEHAVIOURS, "https", DOCKER])(subject_of_kind)


# --- the root ---------------------------------------------------------------------------------


def test_a_registry_that_lets_us_in_answers_ping(subject: Subject) -> None:
    """Epoch answers 401 at its root even to clients that may read all; they count as let in."""
    subject.client.ping()


# --- listings ---------------------------------------------------------------------------------


def test_the_catalog_names_what_was_pushed(subject: Subject) -> None:
    names = [f"{subject.name}/{number}" for number in range(5)]
    for name in names:
        replace(subject, name=name).push("v1", image())
    assert set(names) <= set(subject.client.catalog())


def test_tags_are_listed_from_all_pages(subject: Subject) -> None:
    tags = ["1.0", "2.0", "latest", "UPPER_case", "v-3"]
    for tag in tags:
        subject.push(tag, image())
    assert sorted(subject.client.list_tags(subject.name)) == sorted(tags)
    assert sorted(subject.client.list_tags(Repository(subject.name))) == sorted(tags)


def test_an_unknown_repository_has_no_tags(subject: Subject) -> None:
    """Epoch lists a bucket, where what was never there is empty."""
    if subject.behaviour.bucket:
        assert subject.client.list_tags(f"{subject.name}/unknown") == []
        return
    with pytest.raises(NotFound):
        subject.client.list_tags(f"{subject.name}/unknown")


# --- manifests --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [image(), index()], ids=["image", "index"])
def test_a_manifest_comes_back_byte_for_byte(subject: Subject, content: Content) -> None:
    subject.push("v1", content)
    for reference in ("v1", Tag("v1"), content.digest, str(content.digest)):
        document = subject.client.get_manifest(subject.name, reference)
        assert document.raw == content.raw
        assert document.media_type == content.media_type
        assert document.digest == content.digest


def test_a_manifest_in_other_spacing_keeps_its_bytes(subject: Subject) -> None:
    content = image()
    raw = content.raw.replace(b",", b" ,\n  ")
    subject.push("v1", replace(content, raw=raw))
    assert subject.client.get_manifest(subject.name, "v1").raw == raw


def test_resolve_describes_without_fetching(subject: Subject) -> None:
    content = index()
    subject.push("v1", content)
    for reference in ("v1", content.digest):
        descriptor = subject.client.resolve(subject.name, reference)
        assert descriptor.digest == content.digest
        assert descriptor.media_type == OCI_INDEX
        assert descriptor.size == len(content.raw)


def test_a_moved_tag_resolves_to_its_new_manifest(subject: Subject) -> None:
    old, new = image(b"old"), image(b"new")
    subject.push("latest", old)
    subject.push("latest", new)
    assert subject.client.resolve(subject.name, "latest").digest == new.digest
    assert subject.client.get_manifest(subject.name, old.digest).raw == old.raw


@pytest.mark.parametrize("reference", ["unknown", str(UNKNOWN)])
def test_an_unknown_manifest_is_not_found(subject: Subject, reference: str) -> None:
    subject.push("v1", image())
    for name in (subject.name, f"{subject.name}/unknown"):
        with pytest.raises(NotFound):
            subject.client.get_manifest(name, reference)
        with pytest.raises(NotFound):
            subject.client.resolve(name, reference)


def test_a_manifest_is_there_or_not(subject: Subject) -> None:
    content = index()
    subject.push("v1", content)
    for reference in ("v1", Tag("v1"), content.digest, str(content.children[0].digest)):
        assert subject.client.has_manifest(subject.name, reference)
    for name in (subject.name, f"{subject.name}/unknown"):
        assert not subject.client.has_manifest(name, "unknown")
        assert not subject.client.has_manifest(name, UNKNOWN)


def test_a_manifest_over_the_limit_is_too_large(subject: Subject) -> None:
    content = image()
    subject.push("v1", content)
    size = len(content.raw)
    assert subject.client.get_manifest(subject.name, "v1", limit=size).size == size
    with pytest.raises(TooLarge):
        subject.client.get_manifest(subject.name, "v1", limit=size - 1)


def test_put_manifest_returns_the_digest(subject: Subject) -> None:
    content = image()
    for blob in content.blobs:
        subject.put_blob(blob)
    for reference in ("v1", Tag("v1"), content.digest):
        digest = subject.client.put_manifest(
            subject.name, reference, content.raw, content.media_type
        )
        assert digest == content.digest


def test_a_manifest_is_not_put_under_a_type_it_does_not_declare(subject: Subject) -> None:
    content = image()
    for blob in content.blobs:
        subject.put_blob(blob)
    with pytest.raises(EpochfsError):
        subject.client.put_manifest(subject.name, "v1", content.raw, OCI_INDEX)
    with pytest.raises(NotFound):
        subject.client.get_manifest(subject.name, "v1")


def test_a_manifest_is_not_put_under_a_digest_it_does_not_have(subject: Subject) -> None:
    content = image()
    for blob in content.blobs:
        subject.put_blob(blob)
    with pytest.raises(EpochfsError):
        subject.client.put_manifest(subject.name, UNKNOWN, content.raw, OCI_MANIFEST)


def test_a_deleted_manifest_is_gone_and_may_be_deleted_again(subject: Subject) -> None:
    content = image()
    subject.push("v1", content)
    subject.client.delete_manifest(subject.name, content.digest)
    for reference in ("v1", content.digest):
        with pytest.raises(NotFound):
            subject.client.get_manifest(subject.name, reference)
    subject.client.delete_manifest(subject.name, content.digest)


def test_a_repository_whose_last_tag_is_gone_has_none(subject: Subject) -> None:
    """Docker's registry answers `"tags": null` for it."""
    content = image()
    subject.push("v1", content)
    subject.client.delete_manifest(subject.name, content.digest)
    assert subject.client.list_tags(subject.name) == []


@pytest.mark.parametrize("method", ["delete_tag", "delete_manifest"])
def test_deleting_a_tag_leaves_the_manifest_and_its_sibling_or_is_refused(
    subject: Subject, method: str
) -> None:
    """Docker's registry deletes by digest only, which would take the sibling too."""
    content, delete = image(), getattr(subject.client, method)
    subject.push("v1", content)
    subject.push("v2", content)
    try:
        delete(subject.name, "v1")
    except Unsupported:
        assert sorted(subject.client.list_tags(subject.name)) == ["v1", "v2"]
    else:
        assert subject.client.list_tags(subject.name) == ["v2"]
        delete(subject.name, "v1")
    assert subject.client.get_manifest(subject.name, content.digest).raw == content.raw


def test_the_digest_of_a_blob_is_that_of_no_manifest(subject: Subject) -> None:
    """Docker's registry answers 500, which is not to be tried again."""
    data = random_bytes(1000, 77)
    digest, before = subject.put_blob(data), subject.client.stats.retries
    with pytest.raises(NotFound):
        subject.client.get_manifest(subject.name, digest)
    assert subject.client.stats.retries == before


# --- blobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100_000, 5 * 2**20], ids=["0", "1", "100 kB", "5 MiB"])
def test_a_blob_comes_back_byte_for_byte(subject: Subject, size: int) -> None:
    data = random_bytes(size)
    digest = subject.put_blob(data)
    assert subject.client.blob_exists(subject.name, digest)
    assert subject.client.blob_size(subject.name, digest) == size
    with subject.client.get_blob(subject.name, digest) as stream:
        assert (stream.start, stream.ranged) == (0, False)
        assert stream.total in (size, None)
        assert read_all(stream.read) == data
        assert stream.read(1) == b""


def read_all(read: Callable[[int], bytes]) -> bytes:
    """Read in steps of an odd size until the end."""
    return b"".join(iter(lambda: read(65_537), b""))


def test_a_blob_is_put_from_a_file(subject: Subject, tmp_path: Path) -> None:
    data = random_bytes(300_000)
    file = tmp_path / "blob"
    file.write_bytes(data)
    with file.open("rb") as body:
        subject.client.put_blob(subject.name, Digest.of(data), body, len(data))
    with subject.client.get_blob(subject.name, Digest.of(data)) as stream:
        assert read_all(stream.read) == data


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1000), (1, 1000), (500, 501), (999, 1000), (0, 500), (700, None)]
)
def test_a_part_of_a_blob(subject: Subject, start: int, end: int | None) -> None:
    """A registry answers with the part that was asked for, or with the whole from the start."""
    data = random_bytes(1000)
    digest = subject.put_blob(data)
    with subject.client.get_blob(subject.name, digest, start, end) as stream:
        assert stream.ranged == subject.behaviour.ranges
        assert stream.total in (len(data), None)
        expected = data[start:end] if stream.ranged else data
        assert stream.start == (start if stream.ranged else 0)
        assert read_all(stream.read) == expected


def test_a_stream_may_be_closed_before_its_end(subject: Subject) -> None:
    data = random_bytes(3 * 2**20)
    digest = subject.put_blob(data)
    for _ in range(3):
        with subject.client.get_blob(subject.name, digest) as stream:
            assert data.startswith(stream.read(10))
    assert subject.client.blob_exists(subject.name, digest)


def test_an_unknown_blob_is_not_found(subject: Subject) -> None:
    subject.put_blob(b"another")
    assert not subject.client.blob_exists(subject.name, UNKNOWN)
    with pytest.raises(NotFound):
        subject.client.blob_size(subject.name, UNKNOWN)
    with pytest.raises(NotFound):
        subject.client.get_blob(subject.name, UNKNOWN)


def test_a_blob_with_another_digest_is_refused(subject: Subject) -> None:
    for body in (b"content", io.BytesIO(b"content")):
        with pytest.raises(EpochfsError):
            subject.client.put_blob(subject.name, UNKNOWN, body, 7)
    assert not subject.client.blob_exists(subject.name, UNKNOWN)


def test_a_blob_may_be_put_twice(subject: Subject) -> None:
    assert subject.put_blob(b"content") == subject.put_blob(b"content")


# --- together ---------------------------------------------------------------------------------


def test_what_skopeo_pushes_we_read(subject: Subject, skopeo: Skopeo) -> None:
    if not subject.behaviour.uploads:
        pytest.skip("skopeo can push to upload sessions only")
    content = index(image(random_bytes(100_000)), image(b"second", random_bytes(10)))
    skopeo.push(content, subject.host, subject.name, "v1", subject.credentials)
    document = subject.client.get_manifest(subject.name, "v1")
    assert document.raw == content.raw
    assert isinstance(document.view, Index)
    for child, expected in zip(document.view.manifests, content.children, strict=True):
        assert subject.client.get_manifest(subject.name, child.digest).raw == expected.raw
    for blob in content.every_blob():
        with subject.client.get_blob(subject.name, Digest.of(blob)) as stream:
            assert read_all(stream.read) == blob


def test_what_we_push_skopeo_pulls(subject: Subject, skopeo: Skopeo) -> None:
    content = index()
    subject.push("v1", content)
    layout = skopeo.pull(subject.host, subject.name, "v1", subject.credentials)
    for data in (content.raw, *content.every_blob()):
        assert (layout / "blobs" / "sha256" / Digest.of(data).encoded).read_bytes() == data


def test_one_client_serves_many_threads(subject: Subject) -> None:
    content = image()
    subject.push("v1", content)
    blobs = [random_bytes(50_000, seed) for seed in range(16)]
    together = threading.Barrier(len(blobs))

    def work(blob: bytes) -> None:
        digest = subject.put_blob(blob)
        together.wait()
        for _ in range(8):
            with subject.client.get_blob(subject.name, digest) as stream:
                assert read_all(stream.read) == blob
            assert subject.client.resolve(subject.name, "v1").digest == content.digest

    with ThreadPoolExecutor(len(blobs)) as pool:
        list(pool.map(work, blobs))
