"""An OCI image layout on disk in place of a registry, made well and made with malice."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.builders import Content, image, index, load, random_bytes, write_layout
from support.commandline import run
from support.mounts import Mounts, status
from support.registries import EmbeddedRegistry
from support.scripted import until
from support.stacks import stack_status
from support.views import MountView, VfsView, names, read, refusal, walk

from epochfs.blobs.layout_blobs import LayoutBlobs
from epochfs.cache.blobs import BlobCache
from epochfs.cache.tag_history import TagHistory
from epochfs.config import BlobOptions, CacheOptions, ListingOptions
from epochfs.demo.samples import descriptor, encode
from epochfs.errors import NotFound, ProtocolViolation, Unavailable
from epochfs.layers.layer_store import Layers
from epochfs.layers.soci import SociSource
from epochfs.metadata.layout_source import OciLayout
from epochfs.metadata.listings import Listings
from epochfs.oci.manifests import OCI_MANIFEST, REF_NAME
from epochfs.oci.names import Digest, Repository
from epochfs.vfs.composed import Composer
from epochfs.vfs.filesystem import FileSystem
from epochfs.vfs.kernel_memory import KernelMemory
from epochfs.vfs.node import Context
from epochfs.vfs.tree import root

APP = image(random_bytes(9_000_000, 1), b"small")
LAYER = Digest.of(APP.blobs[1])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A layout that holds one image, tagged `latest`."""
    write_layout(tmp_path / "app", "latest", APP)
    return tmp_path / "app"


@contextlib.contextmanager
def served(
    directory: Path, *, timeout: float = 20.0, verify_first: bool = False
) -> Iterator[FileSystem]:
    """Serve a layout, with nothing remembered for long."""
    with contextlib.ExitStack() as closing:
        options = ListingOptions(metadata_ttl=0)
        layout = OciLayout(directory, options.manifest_limit)
        closing.callback(layout.close)
        history = TagHistory(directory.parent / "tags.sqlite", "oci:")
        closing.callback(history.close)
        listings = Listings(layout, options, history)
        closing.callback(listings.close)
        blobs = LayoutBlobs(layout, BlobOptions(timeout, verify_first=verify_first))
        closing.callback(blobs.close)
        cache = BlobCache(CacheOptions(directory.parent / "cache"))
        composer = Composer(blobs, cache, timeout)
        closing.callback(composer.close)
        layers = Layers(blobs, cache, SociSource.of(listings))
        closing.callback(layers.close)
        kernel = KernelMemory(listings.kernel_ttl)
        context = Context(listings, blobs, layers, composer, kernel, stack_status, timeout)
        yield FileSystem(root(), context)


@contextlib.contextmanager
def viewed(
    directory: Path, *, timeout: float = 20.0, verify_first: bool = False
) -> Iterator[VfsView]:
    """View a layout that is served so."""
    with served(directory, timeout=timeout, verify_first=verify_first) as filesystem:
        yield VfsView(filesystem)


def name(directory: Path, *entries: tuple[Content, str | None]) -> None:
    """Write an index that gives content these names."""
    manifests = [
        descriptor(
            content.raw, content.media_type, annotations={} if ref is None else {REF_NAME: ref}
        )
        for content, ref in entries
    ]
    _write_index(directory, {"schemaVersion": 2, "manifests": manifests})


def _write_index(directory: Path, document: dict[str, Any]) -> None:
    (directory / "new").write_bytes(encode(document))
    (directory / "new").rename(directory / "index.json")


def store(directory: Path, content: Content) -> None:
    """Add content to the layout, without a name."""
    for data in (*content.every_blob(), *(one.raw for one in content.every_manifest())):
        (directory / "blobs/sha256" / Digest.of(data).encoded).write_bytes(data)


def refused(view: VfsView, path: str) -> int | None:
    return refusal(lambda: read(view, path))


class TestTheTree:
    def test_a_layout_shows_what_a_registry_of_the_same_content_does(
        self, directory: Path, mounts: Mounts
    ) -> None:
        both = index(image(b"one"), image(b"other"))
        store(directory, both)
        name(directory, (APP, "1.0"), (both, "latest"))
        with EmbeddedRegistry() as registry:
            load(registry, "app", "1.0", APP)
            load(registry, "app", "latest", both)
            expected = walk(MountView(mounts(registry.url).path))
        mounted = mounts(f"oci:{directory}")
        seen = walk(MountView(mounted.path))
        assert seen.keys() == expected.keys()
        for path, one in seen.items():
            assert one.content == expected[path].content, path
            assert one.stat.inode == expected[path].stat.inode, path
        assert status(mounted.path)["registry"] == f"oci:{directory}"

    def test_no_blob_is_copied(self, directory: Path, mounts: Mounts, tmp_path: Path) -> None:
        mount = mounts(f"oci:{directory}")
        blob = mount.path / f"app/blobs/{LAYER}"
        assert blob.read_bytes() == APP.blobs[1]
        assert os.getxattr(blob, "user.epochfs.cached") == b"100"
        kept = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*"))
        assert kept < 1_000_000

    def test_a_layout_below_a_mount_can_be_mounted(self, mounts: Mounts) -> None:
        with EmbeddedRegistry() as registry:
            load(registry, "team/app", "latest", APP)
            first = mounts(registry.url)
            backup = first.path.parent / "backup"
            shutil.copytree(first.path / "team/app/layout", backup)
            second = mounts(f"oci:{backup}")
            assert read(MountView(second.path), f"/backup/blobs/{LAYER}") == APP.blobs[1]

    def test_names_say_which_repository_and_tag_are_meant(self, directory: Path) -> None:
        one, two, three, four = (image(bytes([number])) for number in range(4))
        for content in (one, two, three, four):
            store(directory, content)
        name(
            directory,
            (APP, "1.0"),
            (one, "docker.io/library/nginx:1.27"),
            (two, "localhost:5000/tools/x"),
            (three, None),
            (four, "1.0"),
        )
        with viewed(directory) as view:
            assert names(view, "/") == ["app", "docker.io", "localhost:5000"]
            assert names(view, "/app/tags") == sorted(["1.0", three.digest.encoded])
            assert view.readlink("/app/tags/1.0") == f"../manifests/{APP.digest}"
            assert names(view, "/docker.io/library/nginx/tags") == ["1.27"]
            assert names(view, "/localhost:5000/tools/x/tags") == ["latest"]

    @pytest.mark.expects_log("1 names in a layout are shown by digest")
    @pytest.mark.parametrize("ref", ["..", "../../etc/x:y", "a\nb", "", "/x", "a" * 300, "\ud800"])
    def test_a_hostile_name_is_shown_by_digest(self, directory: Path, ref: str) -> None:
        name(directory, (APP, ref))
        with viewed(directory) as view:
            assert names(view, "/app/tags") == [APP.digest.encoded]

    def test_a_directory_whose_name_is_none_is_called_layout(self, tmp_path: Path) -> None:
        write_layout(tmp_path / "a\nb", "latest", APP)
        with viewed(tmp_path / "a\nb") as view:
            assert names(view, "/_layout/tags") == ["latest"]

    def test_a_changed_index_is_seen(self, directory: Path) -> None:
        with viewed(directory) as view:
            assert names(view, "/app/tags") == ["latest"]
            name(directory, (APP, "latest"), (APP, "stable"))
            assert names(view, "/app/tags") == ["latest", "stable"]

    def test_referrers_are_found_by_their_subject_and_by_tag(self, directory: Path) -> None:
        subject = descriptor(APP.raw, OCI_MANIFEST)
        signature, report = image(b"signature", subject=subject), image(b"report")
        tagged = index(report, manifests=[descriptor(report.raw, OCI_MANIFEST)])
        for content in (signature, report, tagged):
            store(directory, content)
        name(
            directory,
            (APP, "latest"),
            (signature, None),
            (tagged, f"sha256-{APP.digest.encoded}"),
        )
        with viewed(directory) as view:
            found = names(view, f"/app/manifests/{APP.digest}/referrers")
        assert found == sorted(map(str, (signature.digest, report.digest)))

    def test_a_failing_disk_hides_no_referrers(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        signature = image(b"signature", subject=descriptor(APP.raw, OCI_MANIFEST))
        store(directory, signature)
        name(directory, (APP, "latest"), (signature, None))
        place = f"/app/manifests/{APP.digest}/referrers"
        read_blob = OciLayout.read_blob

        def failing(layout: OciLayout, name: Repository, digest: Digest, limit: int) -> bytes:
            if digest == signature.digest:
                raise Unavailable("Input/output error")
            return read_blob(layout, name, digest, limit)

        with viewed(directory) as view:
            with monkeypatch.context() as disk:
                disk.setattr(OciLayout, "read_blob", failing)
                with pytest.raises(OSError) as refused:
                    names(view, place)
            assert refused.value.errno == errno.EIO
            assert names(view, place) == [str(signature.digest)]

    def test_a_failing_disk_is_an_error_at_once_and_no_older_listing(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(layout: OciLayout, path: tuple[str, ...]) -> int:
            raise Unavailable("Input/output error")

        with viewed(directory) as view:
            before = names(view, "/app/tags")
            with monkeypatch.context() as disk:
                disk.setattr(OciLayout, "_open", failing)
                with pytest.raises(OSError) as refused:
                    names(view, "/app/tags")
            assert refused.value.errno == errno.EIO
            assert names(view, "/app/tags") == before


class TestMalice:
    @pytest.mark.parametrize("at", [0, 4_000_000, 8_999_999])
    def test_a_blob_of_another_digest_has_no_clean_end(self, directory: Path, at: int) -> None:
        file = directory / "blobs/sha256" / LAYER.encoded
        data = bytearray(APP.blobs[1])
        data[at] ^= 1
        file.write_bytes(data)
        path = f"/app/blobs/{LAYER}"
        with viewed(directory) as view:
            assert refused(view, path) == errno.EIO
            with view.opened(path) as opened, pytest.raises(OSError, match="digest"):
                opened.pread(10, 8_999_995)
            file.write_bytes(APP.blobs[1])
            assert read(view, path) == APP.blobs[1]
            file.write_bytes(data)
            assert refused(view, path) == errno.EIO
        with (
            viewed(directory, verify_first=True) as view,
            view.opened(path) as opened,
            pytest.raises(OSError, match="digest"),
        ):
            opened.pread(1, 0)

    def test_a_file_that_changes_after_it_was_hashed_has_no_clean_end(
        self, directory: Path
    ) -> None:
        file = directory / "blobs/sha256" / LAYER.encoded
        with viewed(directory) as view, view.opened(f"/app/blobs/{LAYER}") as opened:
            assert opened.pread(10, 8_999_995) == APP.blobs[1][-5:]
            with file.open("r+b") as changed:
                changed.write(b"other bytes")
            assert opened.pread(5, 0) == b"other"
            with pytest.raises(OSError, match="was changed") as raised:
                opened.pread(10, 8_999_995)
            assert raised.value.errno == errno.EIO

    def test_the_kernel_is_given_only_a_file_that_is_verified(self, directory: Path) -> None:
        path = f"/app/blobs/{LAYER}"
        with served(directory) as filesystem:
            opened = filesystem.open(path)
            assert opened.backing is None
            filesystem.read(opened.handle, 8_999_999, 1)
            filesystem.release(opened.handle)
            opened = filesystem.open(path)
            assert opened.backing is not None
            assert os.pread(opened.backing, 10, 0) == APP.blobs[1][:10]
            filesystem.release(opened.handle)

    def test_hashing_meets_the_time_limit(self, directory: Path) -> None:
        path = f"/app/blobs/{LAYER}"
        with viewed(directory, timeout=0) as view, view.opened(path) as opened:
            assert opened.pread(10, 0) == APP.blobs[1][:10]
            with pytest.raises(OSError, match="takes its time") as caught:
                opened.pread(10, len(APP.blobs[1]) - 10)
            assert caught.value.errno == errno.ETIMEDOUT

    def test_a_file_of_another_size_is_refused(self, directory: Path) -> None:
        (directory / "blobs/sha256" / LAYER.encoded).write_bytes(b"short")
        with viewed(directory) as view:
            view.stat(f"/app/manifests/{APP.digest}")
            assert refused(view, f"/app/blobs/{LAYER}") == errno.EIO

    def test_a_manifest_of_another_digest_is_refused(self, directory: Path) -> None:
        (directory / "blobs/sha256" / APP.digest.encoded).write_bytes(image(b"other").raw)
        with viewed(directory) as view:
            assert refused(view, f"/app/manifests/{APP.digest}/manifest.json") == errno.EIO

    def test_a_file_that_is_wrong_is_closed_by_whoever_hashed_it(self, directory: Path) -> None:
        file = directory / "blobs/sha256" / LAYER.encoded
        file.write_bytes(bytes(file.stat().st_size))
        with viewed(directory) as view:
            assert refused(view, f"/app/blobs/{LAYER}") == errno.EIO
            gc.disable()
            try:
                before = len(list(Path("/proc/self/fd").iterdir()))
                for _ in range(5):
                    assert refused(view, f"/app/blobs/{LAYER}") == errno.EIO
                until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before, 5)
            finally:
                gc.enable()

    def test_links_are_not_followed(self, directory: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_bytes(APP.blobs[1])
        file = directory / "blobs/sha256" / LAYER.encoded
        file.unlink()
        file.symlink_to(secret)
        with viewed(directory) as view:
            assert refused(view, f"/app/blobs/{LAYER}") == errno.EIO
        (directory / "blobs").rename(tmp_path / "elsewhere")
        (directory / "blobs").symlink_to(tmp_path / "elsewhere")
        with viewed(directory) as view:
            assert refused(view, f"/app/manifests/{APP.digest}/manifest.json") == errno.EIO

    @pytest.mark.parametrize("kind", ["fifo", "directory"])
    def test_what_is_no_regular_file_is_refused(self, directory: Path, kind: str) -> None:
        file = directory / "blobs/sha256" / LAYER.encoded
        file.unlink()
        os.mkfifo(file) if kind == "fifo" else file.mkdir()
        with viewed(directory) as view:
            assert refused(view, f"/app/blobs/{LAYER}") == errno.EIO

    def test_what_is_missing_is_not_found(self, directory: Path) -> None:
        (directory / "blobs/sha256" / LAYER.encoded).unlink()
        with viewed(directory) as view:
            assert refused(view, f"/app/blobs/{LAYER}") == errno.ENOENT
            assert refused(view, f"/app/manifests/{LAYER}/manifest.json") == errno.ENOENT
            assert refused(view, f"/app/blobs/{Digest.of(b'nobody')}") == errno.ENOENT

    def test_a_blob_is_no_manifest(self, directory: Path) -> None:
        with viewed(directory) as view:
            for blob in APP.blobs:
                path = f"/app/manifests/{Digest.of(blob)}/manifest.json"
                assert refused(view, path) == errno.ENOENT

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("oci-layout", "{}"),
            ("oci-layout", "nonsense"),
            ("oci-layout", None),
            ("index.json", None),
            ("index.json", '{"layers": []}'),
            ("index.json", '{"manifests": [{"digest": "sha256:../../x", "size": 1}]}'),
        ],
    )
    def test_a_directory_that_is_no_layout_is_refused(
        self, directory: Path, file: str, text: str | None
    ) -> None:
        (directory / file).unlink()
        if text is not None:
            (directory / file).write_text(text)
        with pytest.raises((NotFound, ProtocolViolation)):
            OciLayout(directory, 1 << 20)


class TestTheCommand:
    def test_it_says_what_is_wrong_with_the_directory(self, tmp_path: Path) -> None:
        (tmp_path / "mnt").mkdir()
        for where, problem in ((tmp_path, "oci-layout"), (tmp_path / "nobody", "nobody")):
            code, _, errors = run("mount", f"oci:{where}", tmp_path / "mnt")
            assert (code, errors.count("\n")) == (1, 1)
            assert f"oci:{where} is not a readable OCI image layout" in errors
            assert problem in errors
