"""Tables of contents that are not what they should be: the layer is read without them."""

from __future__ import annotations

import gzip
from dataclasses import replace
from typing import Any

import pytest
from support.layers import File, Layer, estargz, gzipped, zstd_chunked
from support.roots import Make, Show, showing

pytest.importorskip("indexed_gzip")

show = pytest.fixture(showing)


@pytest.mark.expects_log("is read whole")
def test_headers_without_end_before_a_table_are_an_error(show: Show) -> None:
    layer = gzipped(File("a", b"in the stream"))
    start = len(layer.blob)
    nested = gzip.compress(File("x").header()[:1024] * 3000)
    footer = estargz().blob[-51:]
    footer = footer[:16] + b"%016x" % start + footer[32:]
    annotations = {"containerd.io/snapshot/stargz/toc.digest": f"sha256:{'0' * 64}"}
    root = show(replace(layer, blob=layer.blob + nested + footer, annotations=annotations))
    assert root.read("a") == b"in the stream"


@pytest.mark.expects_log("is read whole")
@pytest.mark.parametrize("make", [estargz, zstd_chunked], ids=lambda make: make.__name__)
def test_a_table_that_nothing_vouches_for_is_not_believed(make: Make, show: Show) -> None:
    layer = make(File("a", b"from the tar stream"))
    wrong = {
        name: value if "position" in name else f"sha256:{'0' * 64}"
        for name, value in layer.annotations.items()
    }
    for vouchers in ({}, wrong):
        root = show(replace(layer, annotations=vouchers))
        assert root.read("a") == b"from the tar stream"


ODD_ROWS = {
    "a name that is no text": {"name": []},
    "a name that is no UTF-8": {"name": "\ud800"},
    "a name that is too long": {"name": "n" * 300},
    "a hard link to a name that is too long": {"type": "hardlink", "linkName": "n" * 300},
    "a chunk without a digest": {"size": 1, "offset": 1},
    "an attribute that is no UTF-8": {"xattrs": {"user.\ud800": ""}},
}


@pytest.mark.expects_log("is read whole; bad table")
@pytest.mark.parametrize("odd", ODD_ROWS.values(), ids=ODD_ROWS)
def test_a_layer_whose_table_has_an_odd_row_is_read_whole(odd: dict[str, Any], show: Show) -> None:
    class Odd(File):
        def row(self) -> dict[str, Any]:
            return {**super().row(), **odd}

    root = show(estargz(Odd("b"), File("a", b"from the tar stream")))
    assert root.read("a") == b"from the tar stream"


@pytest.mark.expects_log("is read whole; bad table of contents: not a sha256")
@pytest.mark.parametrize("make", [estargz, zstd_chunked], ids=lambda make: make.__name__)
def test_a_layer_whose_tables_digest_is_none_is_read_whole(make: Make, show: Show) -> None:
    layer = make(File("a", b"from the tar stream"))
    odd = {
        name: value if "position" in name else "md5:0" for name, value in layer.annotations.items()
    }
    root = show(replace(layer, annotations=odd))
    assert root.read("a") == b"from the tar stream"


@pytest.mark.expects_log("is read whole; bad table of contents: it has more than")
@pytest.mark.parametrize("make", [estargz, zstd_chunked], ids=lambda make: make.__name__)
def test_a_table_of_too_many_rows_is_not_parsed(
    make: Make, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.layers.toc.MAX_ROWS", 100)
    root = show(make(*(File(f"d/{n}", b"x") for n in range(200))))
    assert len(root.names("d")) == 200
    assert root.read("d/7") == b"x"


def two_faced() -> Layer:
    """Return a layer whose tar stream has `real`, and whose table of contents has `other`."""
    stream = gzipped(File("real", b"real")).blob
    layer = estargz(File("other", b"other"))
    start = layer.blob.rindex(b"STARGZ") - 16
    offset = int(layer.blob[start : start + 16], 16)
    moved = layer.blob[:start] + b"%016x" % (offset + len(stream)) + layer.blob[start + 16 :]
    return replace(layer, blob=stream + moved)


@pytest.mark.parametrize("first", ["believed", "not believed"])
def test_a_table_is_believed_only_by_the_manifest_that_vouches_for_it(
    first: str, show: Show
) -> None:
    layer = two_faced()
    expected = {True: ["other"], False: ["real"]}
    shown = {}
    for believed in (first == "believed", first != "believed"):
        annotations = layer.annotations if believed else {}
        shown[believed] = show(replace(layer, annotations=annotations)).names()
    assert shown == expected
