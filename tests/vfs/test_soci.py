"""`rootfs/` of images with a SOCI index: one file costs its spans, and nobody's word but theirs."""

from __future__ import annotations

import contextlib
import errno
import json
from dataclasses import replace

import pytest
from support.builders import load, random_bytes
from support.layers import File, Layer, container, gzipped, soci_index
from support.minds import signature
from support.roots import MIB, Show, Shown, showing
from support.soci import Checkpoint, Value, checkpoints, mixed, soci, with_table
from support.views import names

from epochfs.demo.registry import Request, Response
from epochfs.demo.samples import descriptor, encode
from epochfs.oci.names import Digest

pytest.importorskip("indexed_gzip")


show = pytest.fixture(showing)

SMALL = random_bytes(10 << 10, 7)
LARGE = random_bytes(40 * MIB)
FILES = (File("etc/first", SMALL), File("large", LARGE), File("last", b"the last"))


def forged(layer: Layer) -> list[Checkpoint]:
    """Return the checkpoints of a layer with other windows: other bytes come out of its own."""
    return [(*place, bytes(32 << 10)) for *place, _ in checkpoints(layer.blob)[0]]


def repeating() -> Layer:
    """Return a layer whose spans need their windows."""
    return gzipped(*(File(f"file-{n}", mixed(20_000, n)) for n in range(30)))


def test_one_file_costs_its_span_and_the_table(show: Show) -> None:
    layer = with_table(gzipped(*FILES), span=MIB)
    root = show(layer)
    assert root.read("etc/first") == SMALL
    assert root.moved() < 0.05 * len(layer.blob) + len(layer.ztoc)
    assert root.read("last") == b"the last"
    assert root.moved() < 0.1 * len(layer.blob) + len(layer.ztoc)
    with root.view.opened(root / "large") as file:
        for offset in (30 * MIB - 5, 12 * MIB, 40 * MIB - 9):
            assert file.pread(1000, offset) == LARGE[offset : offset + 1000]
    assert root.read("large") == LARGE
    assert root.names() == ["etc", "large", "last"]


def test_the_index_is_kept(show: Show) -> None:
    layer = with_table(gzipped(*FILES), span=MIB)
    show(layer).view.stat(show(layer) / "last")
    root = show(layer)
    assert root.read("etc/first") == SMALL
    assert root.registry.count("GET", str(Digest.of(layer.ztoc))) == 1


def change(
    root: Shown, blob: bytes, monkeypatch: pytest.MonkeyPatch, answer: Response | None = None
) -> None:
    """Have the registry send a blob with its bytes changed, or `answer` to who asks for it."""

    def guard(request: Request) -> Response | None:
        if request.method != "GET" or str(Digest.of(blob)) not in request.path:
            return None
        found = root.registry.honest(request)
        return answer or replace(found, body=bytes(one ^ 1 for one in found.body))

    monkeypatch.setattr(root.registry, "guard", guard)


def test_wrong_bytes_of_a_layer_are_never_shown(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = with_table(gzipped(*FILES), span=MIB)
    root = show(layer)
    with monkeypatch.context() as lying:
        change(root, layer.blob, lying)
        assert root.view.stat(root / "etc/first").size == len(SMALL)
        with pytest.raises(OSError, match="does not match the digest") as raised:
            root.read("etc/first")
        assert raised.value.errno == errno.EIO
    for _ in range(2):  # what came wrong is fetched anew with the whole blob, which may be refused
        with contextlib.suppress(OSError):
            root.read("etc/first")
    assert root.read("etc/first") == SMALL


@pytest.mark.expects_log("is read whole; bad SOCI index|another digest")
@pytest.mark.parametrize("answer", [None, Response(404), Response(403), Response(200, body=b"")])
@pytest.mark.parametrize("which", ["index", "table"])
def test_without_the_table_that_the_image_names_the_layer_is_read_whole(
    which: str, answer: Response | None, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = soci(File("a", b"right"), File("b", SMALL * 20))
    root = show(layer)
    change(root, layer.ztoc if which == "table" else soci_index(layer).raw, monkeypatch, answer)
    assert root.read("a") == b"right"
    assert root.names() == ["a", "b"]


@pytest.mark.expects_log("is read whole; bad SOCI index")
@pytest.mark.parametrize(
    "lies",
    [{"version": b"7"}, {"metadata": [{0: b"a"}]}, {"span_digests": []}],
    ids=lambda lies: next(iter(lies)),
)
def test_a_table_that_makes_no_sense_is_not_used(lies: dict[str, Value], show: Show) -> None:
    assert show(with_table(gzipped(*FILES[::2]), **lies)).read("last") == b"the last"


def test_a_table_of_another_layer_is_not_used(show: Show) -> None:
    root = show(gzipped(File("a", b"A")), soci(File("b", b"B")))
    assert (root.read("a"), root.read("b")) == (b"A", b"B")


def test_spans_that_are_not_the_layers_are_an_error(show: Show) -> None:
    layer = with_table(gzipped(*FILES[::2]), span_digests=[b"sha256:" + b"0" * 64])
    with pytest.raises(OSError, match="does not match the digest"):
        show(layer).read("last")


@pytest.mark.parametrize("first", ["honest", "forged"])
def test_what_one_image_says_of_a_layer_is_not_believed_of_another(first: str, show: Show) -> None:
    layer = repeating()
    images = {
        "honest": with_table(layer),
        "forged": with_table(layer, checkpoints=forged(layer)),
    }
    path = "file-25"
    expected = show(layer).read(path)
    if first == "forged":
        assert show(images["forged"]).read(path) != expected
    assert show(images["honest"]).read(path) == expected
    assert show(layer).read(path) == expected


def refer(root: Shown, layer: Layer, table: Layer) -> bytes:
    """Add a SOCI index of the first version to the image of a layer; return it."""
    image, index = container(layer), soci_index(table)
    document = json.loads(index.raw) | {"subject": descriptor(image.raw, image.media_type)}
    document["config"]["mediaType"] = "application/vnd.amazon.soci.index.v1+json"
    raw = encode(document)
    load(root.registry, "app", "", replace(index, raw=raw))
    return raw


def test_a_referrer_that_is_believed_is_used(show: Show) -> None:
    layer = gzipped(*FILES)
    root = show(layer, soci_referrers=True)
    refer(root, layer, with_table(layer, span=MIB))
    assert root.read("etc/first") == SMALL
    assert root.moved() < 0.2 * len(layer.blob)


def test_without_a_referrer_of_that_kind_the_layer_is_read_whole(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = soci(File("a", b"A"))
    image = show(replace(layer, ztoc=b""), soci_referrers=True)
    load(image.registry, "app", "", signature(container(replace(layer, ztoc=b"")), b"x"))
    assert image.read("a") == b"A"


@pytest.mark.expects_log("is read whole; bad SOCI index|500")
def test_where_the_referrers_cannot_be_listed_the_layer_is_read_whole(show: Show) -> None:
    root = show(gzipped(File("a", b"A")), soci_referrers=True)
    root.registry.guard = lambda asked: Response(500) if "/referrers/" in asked.path else None
    assert root.read("a") == b"A"


def test_a_referrer_that_nothing_in_the_image_names_is_not_believed(show: Show) -> None:
    layer = repeating()
    root = show(layer)
    raw = refer(root, layer, with_table(layer, checkpoints=forged(layer)))
    assert names(root.view, root.path.removesuffix("rootfs") + "referrers") == [str(Digest.of(raw))]
    assert root.read("file-25") == mixed(20_000, 25)
