"""Snapshots that do not fit together: an error of the file that does not, and of no other."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from support.builders import load
from support.registries import EmbeddedRegistry
from support.snapshots import (
    CONFIG,
    MEMORY,
    NOTHING,
    ONE_BLOB_HOLES,
    PACKED,
    PACKED_HOLES,
    PLAIN,
    RAW,
    RAW_HOLES,
    SNAPSHOT,
    SNAPSHOT_2,
    STRIDE,
    Change,
    Draft,
    File,
    Open,
    Opened,
    packed,
    snapshot,
)
from support.stacks import stack
from support.views import VfsView, names, read

from epochfs.demo.registry import Behaviour, Request, Response
from epochfs.demo.samples import descriptor
from epochfs.oci.manifests import TITLE
from epochfs.oci.names import Digest


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as closing:
        yield Open(tmp_path, closing)


def config(**values: object) -> Change:
    """Change what the config says of the file `bad`; what is None is left out."""

    def change(draft: Draft) -> None:
        entry = {**draft.file("bad"), **values}
        draft.config["files"]["bad"] = {k: v for k, v in entry.items() if v is not None}

    return change


def layers(**values: object) -> Change:
    """Change the descriptors of the first chunk of `bad`."""

    def change(draft: Draft) -> None:
        for layer in draft.layers("bad")[-1:]:
            layer |= values

    return change


def chunks(*order: int) -> Change:
    """Have `bad` consist of its chunks of these numbers; -1 is none that is a layer."""

    def change(draft: Draft) -> None:
        known = [*draft.file("bad")["chunks"], f"sha256:{'0' * 64}"]
        draft.file("bad")["chunks"] = [known[number] for number in order]

    return change


def blob(number: int, make: object) -> Change:
    """Have other bytes stored as a chunk of `bad`, under their own digest."""

    def change(draft: Draft) -> None:
        layer = draft.layers("bad")[::-1][number]
        old = next(one for one in draft.blobs if str(Digest.of(one)) == layer["digest"])
        new = make(old)  # type: ignore[operator]
        draft.blobs.append(new)
        entry = draft.file("bad")
        digest = str(Digest.of(new))
        if "chunks" in entry:
            entry["chunks"] = [digest if c == layer["digest"] else c for c in entry["chunks"]]
        layer |= {"digest": digest, "size": len(new)}

    return change


def unpacked(old: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(old)


def also_titled(title: str, of: str) -> Change:
    """Have the chunks of one file be titled as another instead."""

    def change(draft: Draft) -> None:
        for layer in draft.layers(of):
            layer["annotations"] = {TITLE: title}

    return change


def described_twice(**values: object) -> Change:
    def change(draft: Draft) -> None:
        draft.manifest["layers"].append({**draft.layers("bad")[0], **values})

    return change


def second_layer(draft: Draft) -> None:
    data = b"another"
    draft.blobs.append(data)
    draft.manifest["layers"].append(descriptor(data, MEMORY, annotations={TITLE: "bad"}))


def only_some_compressed(draft: Draft) -> None:
    first = draft.layers("bad")[-1]
    first["mediaType"] = MEMORY if first["mediaType"].endswith("+zstd") else f"{MEMORY}+zstd"


BAD_CHUNKS: dict[str, Change] = {
    "a-chunk-is-missing": chunks(0, 1, -1, 3, 4),
    "a-chunk-is-left-out": chunks(0, 1, 3, 4),
    "a-chunk-too-many": chunks(0, 1, 2, 3, 4, 0),
    "no-chunks-told": config(chunks=None),
    "chunks-that-are-none": config(chunks=[]),
    "chunks-that-are-no-list": config(chunks="sha256:x"),
    "chunks-that-are-no-texts": config(chunks=[1, 2]),
    "no-size": config(size=None),
    "size-zero": config(size=0),
    "size-too-small": config(size=299_999),
    "size-too-large": config(size=300_001),
    "size-far-too-large": config(size=400_000),
    "size-negative": config(size=-1),
    "size-no-number": config(size="300000"),
    "size-unbelievable": config(size=2**62),
    "an-unknown-type": layers(mediaType=f"{MEMORY}+gzip"),
    "another-unknown-type": layers(mediaType="text/plain"),
    "no-type": layers(mediaType=""),
    "twice-zstd": layers(mediaType=f"{MEMORY}+zstd+zstd"),
    "only-some-compressed": only_some_compressed,
    "two-sizes-of-a-chunk": described_twice(size=7),
    "two-types-of-a-chunk": described_twice(mediaType="application/octet-stream"),
    "a-size-that-is-not-the-blobs": layers(size=STRIDE + 1),
    "an-entry-that-is-none": lambda draft: draft.config["files"].update(bad=[]),
    "chunks-of-another-title": also_titled("another", of="bad"),
}

BAD_FRAMES: dict[str, Change] = {
    "a-frame-that-is-cut": blob(1, lambda old: old[:-5]),
    "a-frame-without-its-checksum": blob(1, lambda old: old[:-4]),
    "a-frame-with-more-behind-it": blob(1, lambda old: old + b"more"),
    "a-frame-of-too-little": blob(1, lambda old: packed(unpacked(old)[:-1])),
    "a-frame-of-too-much": blob(1, lambda old: packed(unpacked(old) + b"x")),
    "a-frame-of-nothing": blob(1, lambda old: packed(b"")),
    "an-empty-blob": blob(1, lambda old: b""),
    "no-frame": blob(1, unpacked),
    "the-last-of-too-little": blob(4, lambda old: packed(unpacked(old)[:-1])),
    "the-last-of-too-much": blob(4, lambda old: packed(unpacked(old) + b"x")),
    "a-frame-without-end": blob(1, lambda old: packed(bytes(50_000_000))),
    "the-first-cut-short": blob(0, lambda old: old[: len(old) // 2]),
}

BAD_MAPS: dict[str, Change] = {
    "a-map-that-is-nonsense": config(sparseMap="nonsense"),
    "an-empty-map": config(sparseMap="[]"),
    "a-map-of-a-number": config(sparseMap="[7]"),
    "a-map-that-is-no-list": config(sparseMap='{"o": 0, "l": 300000}'),
    "a-map-of-too-little": config(sparseMap='[{"o": 0, "l": 299999}]'),
    "a-map-of-too-much": config(sparseMap='[{"o": 0, "l": 300001}]'),
    "pieces-that-overlap": config(sparseMap='[{"o": 0, "l": 150000}, {"o": 100000, "l": 150000}]'),
    "pieces-in-no-order": config(
        sparseMap='[{"o": 400000, "l": 150000}, {"o": 100000, "l": 150000}]'
    ),
    "a-negative-offset": config(sparseMap='[{"o": -1, "l": 300000}]'),
    "an-offset-that-is-text": config(sparseMap='[{"o": "0", "l": 300000}]'),
    "an-offset-beyond-belief": config(sparseMap='[{"o": 1125899906842623, "l": 300000}]'),
    "no-sparse-size": config(sparseSize=None),
    "a-sparse-size-that-is-text": config(sparseSize="5000000"),
    "a-sparse-size-beyond-belief": config(sparseSize=2**62),
    "a-map-that-is-no-text": config(sparseMap=[{"o": 0, "l": 300000}]),
}


def named(changes: dict[str, Change]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("change", changes.values(), ids=changes.keys())


def only_bad_is_bad(shown: Opened, *neighbours: File) -> None:
    files = [file.title for file in neighbours]
    listed = names(shown.view, f"{shown.path}/files")
    assert names(shown.view, f"{shown.path}/sparse") == listed
    assert set(files) < set(listed)
    for title in set(listed) - set(files):
        assert shown.errno_of(title) == errno.EIO
    for file in neighbours:
        assert shown.read(file.title) == file.whole()


@named(BAD_CHUNKS)
@pytest.mark.parametrize("packs", [False, True], ids=["raw", "compressed"])
def test_chunks_that_do_not_fit_are_an_error(opened: Open, change: Change, packs: bool) -> None:
    bad = replace(RAW, title="bad", packs=packs)
    only_bad_is_bad(opened(PLAIN, bad, PACKED, change=change), PLAIN, PACKED)


@named(BAD_FRAMES)
@pytest.mark.parametrize("shown_whole", [False, True], ids=["as-it-comes", "when-it-is-whole"])
def test_a_frame_that_does_not_fit_is_an_error(
    opened: Open, change: Change, shown_whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shown_whole:
        monkeypatch.setattr("epochfs.vfs.composed._WHOLE_BYTES", 0)
    only_bad_is_bad(opened(PLAIN, replace(PACKED, title="bad"), RAW, change=change), PLAIN, RAW)


@pytest.mark.parametrize("offset", [STRIDE, STRIDE + 1000, 2 * STRIDE - 10])
@named(BAD_FRAMES)
def test_nothing_is_read_of_a_frame_that_does_not_fit(
    opened: Open, change: Change, offset: int
) -> None:
    if change in (BAD_FRAMES["the-last-of-too-little"], BAD_FRAMES["the-last-of-too-much"]):
        offset += 3 * STRIDE
    offset = 0 if change is BAD_FRAMES["the-first-cut-short"] else min(offset, 299_990)
    shown = opened(replace(PACKED, title="bad"), change=change)
    with (
        shown.view.opened(f"{shown.path}/sparse/bad") as handle,
        pytest.raises(OSError) as caught,
    ):
        handle.pread(10, offset)
    assert caught.value.errno == errno.EIO


@named(BAD_MAPS)
@pytest.mark.parametrize(
    ("version", "file"),
    [(SNAPSHOT, ONE_BLOB_HOLES), (SNAPSHOT_2, RAW_HOLES), (SNAPSHOT_2, PACKED_HOLES)],
    ids=["first-version", "raw", "compressed"],
)
def test_a_map_that_does_not_fit_is_an_error(
    opened: Open, change: Change, version: str, file: File
) -> None:
    bad = replace(file, title="bad")
    shown = opened(PLAIN, bad, NOTHING, version=version, change=change)
    only_bad_is_bad(shown, PLAIN, NOTHING)


BAD_FIRST: dict[str, Change] = {
    "chunks": lambda draft: draft.file("bad").update(chunks=[draft.layers("bad")[0]["digest"]]),
    "zstd": layers(mediaType=f"{MEMORY}+zstd"),
    "another-size": config(size=299_999),
    "a-map-beyond-the-size": config(sparseMap='[{"o": 0, "l": 300000}]', sparseSize=299_999),
}


@named(BAD_FIRST)
def test_what_only_the_second_version_may_have_is_an_error_in_the_first(
    opened: Open, change: Change
) -> None:
    bad = File("bad", RAW.data)
    only_bad_is_bad(opened(PLAIN, bad, NOTHING, version=SNAPSHOT, change=change), PLAIN, NOTHING)


def test_layers_of_one_title_without_an_order_are_an_error(opened: Open) -> None:
    only_bad_is_bad(opened(PLAIN, File("bad", b"data"), change=second_layer), PLAIN)


def test_a_layer_that_is_listed_twice_is_one_file(opened: Open) -> None:
    file = File("bad", b"data")
    assert opened(file, change=described_twice()).read("bad") == b"data"


def test_chunks_may_be_the_same(opened: Open) -> None:
    file = File("same", (b"a" * 1000 + bytes(1000)) * 5, stride=1000, packs=True)
    assert len(set(file.blobs())) == 2
    assert opened(file, PACKED, change=lambda draft: None).read("same") == file.data
    once = replace(file, title="bad")

    def named_once(draft: Draft) -> None:
        layers = {layer["digest"]: layer for layer in draft.manifest["layers"]}
        draft.manifest["layers"] = list(layers.values())

    assert opened(once, change=named_once).read("bad") == file.data


def test_a_config_of_an_unknown_type_is_an_error_of_all_files(opened: Open) -> None:
    def change(draft: Draft) -> None:
        draft.manifest["config"]["mediaType"] = CONFIG.replace("v1", "v3")

    shown = opened(PLAIN, RAW, change=change)
    assert shown.errno_of("config.json") == shown.errno_of("raw") == errno.EIO


def test_a_config_that_cannot_be_parsed_is_an_error_of_all_files(opened: Open) -> None:
    def change(draft: Draft) -> None:
        draft.config["files"] = [1]

    shown = opened(PLAIN, RAW, change=change)
    assert shown.errno_of("config.json") == shown.errno_of("raw") == errno.EIO
    assert names(shown.view, f"{shown.path}/files") == ["config.json", "raw"]


def test_a_piece_beyond_the_stated_size_makes_the_file_larger(opened: Open) -> None:
    """As it does where Epoch restores it: the size is set, and then the pieces are written."""
    shown = opened(RAW_HOLES, change=lambda d: d.file("raw-holes").update(sparseSize=4_000_000))
    assert shown.read("raw-holes") == RAW_HOLES.whole()[:4_049_000]


@pytest.mark.parametrize("version", [SNAPSHOT, SNAPSHOT_2])
def test_a_config_over_64_mib_is_refused_unasked(opened: Open, version: str) -> None:
    shown = opened(PLAIN, version=version, change=lambda draft: None)
    content = snapshot(PLAIN, version=version)
    raw = content.raw.replace(b'"size":%d' % len(content.blobs[0]), b'"size":%d' % (2**26 + 1))
    load(shown.registry, "app", "large", replace(content, raw=raw))
    shown.path = f"/app/manifests/{Digest.of(raw)}"
    assert shown.errno_of("config.json") == errno.EFBIG
    assert shown.registry.count("GET", "/blobs/") == 0


@pytest.mark.expects_log("fetching again")
def test_a_chunk_with_wrong_bytes_gives_no_clean_end(tmp_path: Path) -> None:
    chunk = PACKED.blobs()[2]

    class Flipped(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            response = super().respond(request)
            if request.method == "GET" and str(Digest.of(chunk)) in request.path:
                return replace(response, body=chunk[:-1] + bytes([chunk[-1] ^ 1]))
            return response

    content = snapshot(PACKED)
    with Flipped(Behaviour(ranges=False)) as registry, stack(registry.url, tmp_path) as layers:
        load(registry, "app", "latest", content)
        view, path = VfsView(layers.filesystem), f"/app/manifests/{content.digest}/sparse/packed"
        with pytest.raises(OSError) as caught:
            read(view, path)
        assert caught.value.errno == errno.EIO
        with view.opened(path) as handle:
            assert handle.pread(100, 0) == PACKED.data[:100]
