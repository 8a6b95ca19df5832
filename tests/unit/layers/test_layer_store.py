"""The bytes of layers: no wrong ones, and what is made of them once for all."""

from __future__ import annotations

import errno
import gzip
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from support.builders import random_bytes
from support.layers import (
    File,
    Layer,
    estargz,
    gzipped,
    zstd,
    zstd_chunked,
)
from support.registries import Guarded
from support.roots import MIB, Make, Show, plain, showing

from epochfs.cache.blobs import BlobCache
from epochfs.config import CacheOptions
from epochfs.demo.registry import Request, Response
from epochfs.errors import ContentMismatch, DeadlineExceeded, EpochfsError, NotFound, Vanished
from epochfs.layers.chunks import ChunkCache, ChunkedArchive
from epochfs.layers.entry import Piece
from epochfs.layers.index import Inode
from epochfs.layers.layer_store import LayerFile, Layers
from epochfs.layers.soci import SociSource
from epochfs.oci.manifests import Descriptor, Document
from epochfs.oci.names import Digest, Repository

pytest.importorskip("indexed_gzip")


show = pytest.fixture(showing)

APP = Repository("app")


@pytest.mark.parametrize("make", [estargz, zstd_chunked], ids=lambda make: make.__name__)
def test_a_chunk_of_other_bytes_than_the_table_says_is_an_error(make: Make, show: Show) -> None:
    data = random_bytes(50_000)
    layer = make(File("a", data))
    blob = bytearray(layer.blob)
    blob[blob.index(data[20_000:20_100])] ^= 1
    root = show(replace(layer, blob=bytes(blob)))
    assert root.view.stat(root / "a").size == 50_000
    with pytest.raises(OSError, match="does not match the digest") as raised:
        root.read("a")
    assert raised.value.errno == errno.EIO


def lie(registry: Guarded, blob: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a registry send a blob with some of its bytes changed, until that is undone."""
    wrong = blob[: len(blob) // 2] + bytes(100) + blob[len(blob) // 2 + 100 :]

    def guard(request: Request) -> Response | None:
        is_it = request.method == "GET" and str(Digest.of(blob)) in request.path
        return Response(200, body=wrong) if is_it else None

    monkeypatch.setattr(registry, "guard", guard)


@pytest.mark.expects_log("another digest, fetching again")
@pytest.mark.parametrize("make", [plain, gzipped, zstd], ids=lambda make: make.__name__)
def test_where_only_the_index_was_kept_no_wrong_bytes_are_shown(
    make: Make, show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random_bytes(3 * MIB)
    layer = make(File("before", random_bytes(9 * MIB, 2)), File("a", data))
    first = show(layer)
    assert first.read("a") == data
    first.layers.blobs.close()
    shutil.rmtree(tmp_path / "cache/v1/blobs")
    root = show(layer)
    with monkeypatch.context() as lying:
        lie(root.registry, layer.blob, lying)
        assert root.view.stat(root / "a").size == len(data)
        with pytest.raises(OSError, match="digest") as raised:
            root.read("a")
        assert raised.value.errno == errno.EIO
    assert root.read("a") == data


def test_where_only_the_index_was_kept_a_file_of_a_gzip_layer_costs_its_spans(
    show: Show, tmp_path: Path
) -> None:
    data = random_bytes(40 * MIB)
    layer = gzipped(File("a", b"first"), File("large", data), File("z", b"last"))
    first = show(layer)
    assert first.read("z") == b"last"
    first.layers.blobs.close()
    shutil.rmtree(tmp_path / "cache/v1/blobs")
    root = show(layer)
    assert (root.read("a"), root.read("z")) == (b"first", b"last")
    assert root.moved() < 12 * MIB  # two spans of a little over 4 MiB
    assert root.read("large") == data


class Stored:
    """A blob that is here (a `BlobHandle`), and fails as long as its store does."""

    verified = True

    def __init__(self, data: bytes, store: Store | None = None) -> None:
        self.data = data
        self.size = len(data)
        self.store = store
        self.failure = store.failure if store else None

    def fileno(self) -> int:
        raise NotImplementedError

    def read_into(self, view: memoryview, offset: int) -> int:
        if self.failure is not None:
            raise self.failure
        found = self.data[offset : offset + len(view)]
        view[: len(found)] = found
        if self.store is not None:
            self.store.bytes_read += len(found)
        return len(found)

    def close(self) -> None:
        """Nothing to close."""


class Store:
    """Gives one blob, whatever is asked for; from what was opened during a `failure` comes that."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.failure: EpochfsError | None = None
        self.opened: list[bool] = []
        self.bytes_read = 0

    def open(
        self, repository: Repository, digest: Digest, size: int, *, precise: bool = False
    ) -> Stored:
        self.opened.append(precise)
        return Stored(self.data, self)


@dataclass
class OneLayer:
    """A layer whose blob is the store's; each question is a new one."""

    layers: Layers
    descriptor: Descriptor

    def inode(self) -> Inode:
        """Return the inode of the file `a`."""
        index = self.layers.index(APP, self.descriptor, time.monotonic() + 20)
        return index.inode(index.see(b"a").inode or 0)

    def open(self) -> LayerFile:
        """Open the file `a`."""
        return self.layers.open(APP, self.descriptor, self.inode(), time.monotonic() + 20)


def no_manifest(repository: Repository, digest: Digest) -> Document:
    raise NotFound(f"no {digest}")


OfStore = Callable[[Store, Layer], OneLayer]


@pytest.fixture
def of_store(tmp_path: Path) -> Iterator[OfStore]:
    """Gives a layer to a new `Layers`, which is closed when the test ends."""
    with ExitStack() as closing:

        def build(store: Store, layer: Layer) -> OneLayer:
            cache = BlobCache(CacheOptions(tmp_path, 1 << 30))
            layers = Layers(store, cache, SociSource(no_manifest))
            closing.callback(layers.close)
            digest = Digest.of(layer.blob)
            descriptor = Descriptor(
                layer.media_type, digest, len(layer.blob), annotations=layer.annotations
            )
            return OneLayer(layers, descriptor)

        yield build


@pytest.mark.parametrize("failure", [ContentMismatch("wrong"), Vanished("gone")])
def test_a_layer_whose_blob_failed_is_opened_anew(failure: EpochfsError, of_store: OfStore) -> None:
    layer = plain(File("a", b"well"))
    store = Store(layer.blob)
    one = of_store(store, layer)
    one.inode()

    def content() -> bytes:
        buffer = bytearray(4)
        one.open().read_into(memoryview(buffer), 0)
        return bytes(buffer)

    store.failure = failure
    with pytest.raises(type(failure)):
        content()
    store.failure = None
    assert content() == b"well"


@pytest.mark.expects_log("is read whole")
def test_a_layer_that_is_read_whole_is_opened_for_that(of_store: OfStore) -> None:
    layer = estargz(File("a", b"in the stream"))
    wrong = dict.fromkeys(layer.annotations, f"sha256:{'0' * 64}")
    store = Store(layer.blob)
    one = of_store(store, replace(layer, annotations=wrong))
    assert one.inode().size == 13
    assert store.opened == [True, False]  # precise for the table, and then not


def test_a_gzip_layer_is_read_once_however_small_the_reads_of_its_files(of_store: OfStore) -> None:
    data = random_bytes(12 * MIB)
    layer = gzipped(File("a", data))
    store = Store(layer.blob)
    file = of_store(store, layer).open()
    assert store.bytes_read < 3.1 * len(layer.blob)  # the tar, the points, the spans' digests
    store.bytes_read = 0
    view = memoryview(bytearray(32 << 10))
    for offset in range(0, len(data), len(view)):
        assert file.read_into(view, offset) == len(view)
        assert view == data[offset : offset + len(view)]
    assert store.bytes_read < 1.1 * len(layer.blob)


def test_a_copy_that_was_not_finished_leaves_nothing(of_store: OfStore, tmp_path: Path) -> None:
    layer = zstd(File("a", random_bytes(8 * MIB)))
    store = Store(layer.blob)
    one = of_store(store, layer)
    one.inode()
    store.failure = DeadlineExceeded("a silent registry")
    with pytest.raises(DeadlineExceeded):
        one.open()
    assert list((tmp_path / "v1/partial/sha256").iterdir()) == []


def test_a_chunk_that_is_shorter_than_the_table_says_is_an_error() -> None:
    blob = Stored(gzip.compress(b"short"))
    archive = ChunkedArchive(Digest.of(blob.data), "estargz", lambda: blob, ChunkCache())
    piece = Piece(0, 1000, 0, 0, str(Digest.of(b"short")))
    with pytest.raises(ContentMismatch):
        archive.read_piece(piece, 0, memoryview(bytearray(1000)))


def test_a_chunk_is_made_once_for_all_who_want_it_and_few_at_once() -> None:
    data = random_bytes(1000)
    piece = Piece(0, 1000, 0, 0, str(Digest.of(data)))
    opened: list[int] = []
    done: list[int] = []
    under_way: list[int] = []
    cache = ChunkCache()

    def make(number: int) -> bytes:
        opened.append(number)
        under_way.append(len(opened) - len(done))
        time.sleep(0.05)
        done.append(number)
        return data

    with ThreadPoolExecutor(24) as pool:
        layers = [Digest.of(b"%d" % (n % 8)) for n in range(24)]
        found = pool.map(lambda n: cache.get(layers[n], piece, lambda: make(n % 8)), range(24))
        assert list(found) == [data] * 24
    assert sorted(opened) == list(range(8))
    assert max(under_way) <= 4


def test_a_chunk_that_is_longer_than_the_cache_takes_the_place_of_the_others() -> None:
    cache, made = ChunkCache(), []

    def make(size: int) -> bytes:
        made.append(size)
        return bytes(size)

    for size in (1000, 60 * MIB, 60 * MIB, 1000, 1000):
        assert len(cache.get("layer", size, partial(make, size))) == size
    assert made == [1000, 60 * MIB, 1000]


def test_a_chunk_that_could_not_be_made_is_made_anew() -> None:
    piece, cache = Piece(0, 1, 0), ChunkCache()

    def fail() -> bytes:
        time.sleep(0.1)
        raise ContentMismatch("wrong")

    def wanted(_: int) -> bytes:
        return cache.get(Digest.of(b""), piece, fail)

    with ThreadPoolExecutor(3) as pool:
        for failed in [pool.submit(wanted, n) for n in range(3)]:
            with pytest.raises(ContentMismatch):
                failed.result()
    assert cache.get(Digest.of(b""), piece, lambda: b"x") == b"x"
