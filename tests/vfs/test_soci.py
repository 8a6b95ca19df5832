"""`rootfs/` of images with a SOCI index: one file costs its spans, and nobody's word but theirs."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import replace

import pytest
from support.builders import load, random_bytes
from support.layers import File, Layer, container, gzipped, soci_index
from support.roots import MIB, Show, Shown, showing
from support.soci import Checkpoint, Value, checkpoints, mixed, soci, with_table
from support.views import names

from epochfs.demo.registry import Request, Response
from epochfs.demo.samples import descriptor, encode
from epochfs.oci.manifests import OCI_MANIFEST
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
    honest = root.registry.respond

    def respond(request: Request) -> Response:
        found = honest(request)
        if request.method != "GET" or str(Digest.of(blob)) not in request.path:
            return found
        return answer or replace(found, body=bytes(one ^ 1 for one in found.body))

    monkeypatch.setattr(root.registry._server, "respond", respond)


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


def test_a_referrer_that_nothing_in_the_image_names_is_not_believed(show: Show) -> None:
    layer = repeating()
    root = show(layer)
    image = container(layer)
    index = soci_index(with_table(layer, checkpoints=forged(layer)))
    subject = {"subject": descriptor(image.raw, image.media_type)}
    raw = index.raw.replace(b"{", encode(subject)[:-1] + b",", 1)
    load(root.registry, "app", "", replace(index, raw=raw, media_type=OCI_MANIFEST))
    assert names(root.view, root.path.removesuffix("rootfs") + "referrers") == [str(Digest.of(raw))]
    assert root.read("file-25") == mixed(20_000, 25)
