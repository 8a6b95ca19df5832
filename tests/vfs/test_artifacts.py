"""What people keep in registries, pushed as their tools push it: the files, the volume, the kind.

A row for each row of what the tools write, by their own sources. The names alone, with more of
their cases, are in `unit/oci/test_artifact_files.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import DockerRegistry
from support.artifacts import CHART, MODELPACK, TAR_GZIP, Given, artifact, packed
from support.builders import Content
from support.integrity import push
from support.layers import File
from support.stacks import stack
from support.views import VfsView, names, read, walk

from epochfs.demo.samples import encode
from epochfs.help import Table, page, parse
from epochfs.oci import kinds
from epochfs.oci.artifact_files import (
    FILE_PATHS,
    ORAS_DEFAULT,
    TEKTON_KIND,
    TEKTON_NAME,
    UNPACK,
    VERSION,
)
from epochfs.oci.manifests import TITLE
from epochfs.oci.names import Digest

pytest.importorskip("indexed_gzip")
pytest.importorskip("zstandard")

PATH, OLD_PATH = FILE_PATHS
PACK = "application/vnd.cncf.model."
OLD_PACK = "application/vnd.cnai.model."
DOCKER_AI = "application/vnd.docker.ai."
DOCKER_2 = f"{DOCKER_AI}model.config.v0.2+json"
DOCKER_1 = f"{DOCKER_AI}model.config.v0.1+json"
OLLAMA = "application/vnd.ollama.image."
OLLAMA_CONFIG = "application/vnd.docker.container.image.v1+json"
HELM_CONFIG = "application/vnd.cncf.helm.config.v1+json"
PROVENANCE = "application/vnd.cncf.helm.chart.provenance.v1.prov"
FLUX_CONFIG = "application/vnd.cncf.flux.config.v1+json"
KITOPS = "application/vnd.kitops.modelkit."
WASM_CONFIG = "application/vnd.wasm.config.v0+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
DIGEST = "<digest>"


@dataclass(frozen=True)
class Row:
    """An artifact, and what it has to look like: a name for each layer in `files`, and all of
    `volume` by path. `DIGEST` stands for that of the layer.
    """

    kind: str
    config_type: str
    layers: tuple[Given, ...]
    files: tuple[str, ...]
    volume: dict[str, bytes]
    fields: dict[str, object] = field(default_factory=dict)
    descriptor: dict[str, object] = field(default_factory=dict)
    """Members that each layer's descriptor has beside the usual ones."""

    @property
    def content(self) -> Content:
        made = artifact(*self.layers, config_type=self.config_type, **self.fields)
        document = json.loads(made.raw)
        for layer in document["layers"]:
            layer.update(self.descriptor)
        return Content(encode(document), made.media_type, made.blobs)


def file(media_type: str, **notes: str) -> Given:
    """A layer that is a file; what it has in it is in no other layer."""
    return media_type, f"{media_type} {sorted(notes.items())}".encode(), notes


def files(kind: str, config_type: str, named: dict[str, Given], **fields: object) -> Row:
    """An artifact of plain files, which look the same in `files` and in `volume`."""
    volume = {path(name, layer): layer[1] for name, layer in named.items()}
    return Row(kind, config_type, tuple(named.values()), tuple(named), volume, fields)


def path(name: str, layer: Given) -> str:
    return name.replace(DIGEST, str(Digest.of(layer[1])))


def by_types(kind: str, config_type: str, begins: str, named: dict[str, str]) -> Row:
    """An artifact of plain files, each known by its media type."""
    layers = {name: file(begins + media_type) for media_type, name in named.items()}
    return files(kind, config_type, layers)


def unpacked(
    kind: str,
    config_type: str,
    media_type: str,
    name: str,
    /,
    below: str = "",
    notes: dict[str, str] | None = None,
    **fields: object,
) -> Row:
    """An artifact of one tar, shown as a file in `files` and unpacked in `volume`."""
    tar = {"top/run.py": b"print()", "notes": f"{media_type} of {name}".encode()}
    entries = [File(name, data) for name, data in tar.items()]
    layer = packed(*entries, media_type=media_type, **(notes or {}))
    volume = {f"{below}{name}": data for name, data in tar.items()}
    return Row(kind, config_type, (layer,), (name,), volume, fields)


PACKS = {
    f"pack-{what}-{form}": (
        files(
            kinds.MODEL,
            MODELPACK,
            {f"a/{what}": file(f"{PACK}{what}.v1.{form}", **{PATH: f"./a//{what}"})},
            artifactType=f"{PACK}manifest.v1+json",
        )
        if form == "raw"
        else unpacked(
            kinds.MODEL,
            MODELPACK,
            f"{PACK}{what}.v1.{form}",
            what,
            notes={PATH: what},
            artifactType=f"{PACK}manifest.v1+json",
        )
    )
    for what in ("weight", "weight.config", "doc", "code", "dataset")
    for form in ("raw", "tar", "tar+gzip", "tar+zstd")
}

KITS = {
    f"kit-{what}{zipped}": unpacked(
        kinds.MODEL,
        f"{KITOPS}config.v1+json",
        f"{KITOPS}{what}.v1.tar{zipped}",
        f"{what}.tar{'.gz' if zipped else ''}",
    )
    for what in ("model", "modelpart", "dataset", "code", "docs")
    for zipped in ("", "+gzip")
}

ATTESTATIONS = {
    "application/vnd.dev.sigstore.bundle.v0.3+json": "bundle.sigstore.json",
    "application/vnd.dsse.envelope.v1+json": "attestation.dsse.json",
    "application/vnd.in-toto+json": "attestation.intoto.json",
}
SIGNATURES = {
    "application/vnd.dev.cosign.simplesigning.v1+json": "signature.json",
    "application/jose+json": "signature.jws",
    "application/cose": "signature.cose",
}
SBOMS = {
    "application/spdx+json": "sbom.spdx.json",
    "text/spdx+json": "sbom.spdx.json",
    "application/vnd.cyclonedx+json": "sbom.cdx.json",
}
BESIDE = {
    media_type: files(kind, config, {name: file(media_type)})
    for kind, config, named in (
        (kinds.ATTESTATION, EMPTY, ATTESTATIONS),
        (kinds.SIGNATURE, IMAGE_CONFIG, SIGNATURES),
        (kinds.SBOM, EMPTY, SBOMS),
    )
    for media_type, name in named.items()
}
"""What is kept beside an image, by its media type. cosign's has the config of an image."""

TITLED_CHART = {TITLE: "nginx", VERSION: "1.2.3"}

ROWS = {
    **PACKS,
    "pack-before-it-was-cncf": files(
        kinds.MODEL,
        f"{OLD_PACK}config.v1+json",
        {"b/model": file(f"{OLD_PACK}weight.v1.raw", **{OLD_PATH: "/b/model"})},
    ),
    "docker-0.2": files(
        kinds.MODEL,
        DOCKER_2,
        {
            "weights/a.gguf": file(f"{DOCKER_AI}gguf.v3", **{PATH: "weights/a.gguf"}),
            "weights/more/b.gguf": file(f"{DOCKER_AI}gguf.v3", **{PATH: "weights/more/b.gguf"}),
            "anything": file("application/x-anything", **{PATH: "anything"}),
        },
    ),
    "docker-0.1": by_types(
        kinds.MODEL,
        DOCKER_1,
        DOCKER_AI,
        {
            "gguf.v3": "model.gguf",
            "safetensors": "model.safetensors",
            "mmproj": "model.mmproj",
            "chat.template.jinja": "template.jinja",
            "license": "LICENSE",
            "dduf": "model.dduf",
        },
    ),
    **{
        f"docker-0.1-{name}-of-2": files(
            kinds.MODEL,
            DOCKER_1,
            {
                f"model-{n:05}-of-00002.{name}": (f"{DOCKER_AI}{what}", b"part %d" % n, {})
                for n in (1, 2)
            },
        )
        for name, what in (("gguf", "gguf.v3"), ("safetensors", "safetensors"))
    },
    **{
        f"docker-0.1-{name}": unpacked(kinds.MODEL, DOCKER_1, f"{DOCKER_AI}{what}", name)
        for what, name in (("vllm.config.tar", "config.tar"), ("dir.tar", "dir.tar"))
    },
    "ollama": by_types(
        kinds.MODEL,
        OLLAMA_CONFIG,
        OLLAMA,
        {
            "model": "model.gguf",
            "adapter": "adapter.gguf",
            "projector": "projector.gguf",
            "draft": "draft.gguf",
            "template": "template",
            "system": "system",
            "params": "params.json",
            "license": "license",
            "messages": "messages.json",
        },
    ),
    "ollama-tensor": Row(
        kinds.MODEL,
        OLLAMA_CONFIG,
        ((f"{OLLAMA}tensor", b"tensor", {}),),
        ("blk.0.weight",),
        {"blk.0.weight": b"tensor"},
        descriptor={"name": "blk.0.weight"},
    ),
    "helm": unpacked(
        kinds.HELM_CHART, HELM_CONFIG, CHART, "nginx-1.2.3.tgz", annotations=TITLED_CHART
    ),
    "helm-untitled": unpacked(kinds.HELM_CHART, HELM_CONFIG, CHART, "chart.tgz"),
    "helm-provenance": files(
        kinds.HELM_CHART,
        HELM_CONFIG,
        {"nginx-1.2.3.prov": file(PROVENANCE)},
        annotations=TITLED_CHART,
    ),
    "flux": unpacked(
        kinds.FLUX, FLUX_CONFIG, "application/vnd.cncf.flux.content.v1.tar+gzip", "content.tar.gz"
    ),
    **KITS,
    "wasm": files(kinds.WASM, WASM_CONFIG, {"module.wasm": file("application/wasm")}),
    "oras-directory": unpacked(
        kinds.ARTIFACT, EMPTY, TAR_GZIP, "top.tar.gz", notes={TITLE: "top", UNPACK: "true"}
    ),
    **{
        f"oras-directory-{title or 'untitled'}": unpacked(
            kinds.ARTIFACT, EMPTY, TAR_GZIP, "content.tar.gz", notes={TITLE: title, UNPACK: "true"}
        )
        for title in (".", "")
    },
    "oras-file": files(kinds.ARTIFACT, EMPTY, {"a.txt": file(ORAS_DEFAULT, **{TITLE: "a.txt"})}),
    **BESIDE,
    "tekton": unpacked(
        kinds.TEKTON_BUNDLE,
        IMAGE_CONFIG,
        TAR_GZIP,
        "task-build.tar",
        below="task-build/",
        notes={TEKTON_KIND: "task", TEKTON_NAME: "build"},
    ),
    "anything": files(
        kinds.ARTIFACT,
        EMPTY,
        {
            f"{DIGEST}{extension}": file(media_type)
            for media_type, extension in (
                ("application/vnd.any+json", ".json"),
                ("text/markdown", ".md"),
                ("application/vnd.any", ""),
            )
        },
    ),
    **{
        f"anything-{form}": unpacked(
            kinds.ARTIFACT, EMPTY, f"application/vnd.any.{form}", f"{DIGEST}{extension}"
        )
        for form, extension in (("tar", ".tar"), ("tar+gzip", ".tar.gz"), ("tar+zstd", ".tar.zst"))
    },
}


@pytest.fixture(scope="module")
def pushed(docker_registry: DockerRegistry) -> str:
    """The URL of a registry to which all were pushed, each as `artifacts/<its number>:v1`."""
    for number, row in enumerate(ROWS.values()):
        push(docker_registry.url, f"artifacts/{number}", "v1", row.content)
    return docker_registry.url


@pytest.mark.parametrize(("number", "row"), list(enumerate(ROWS.values())), ids=ROWS)
def test_each_artifact_has_its_kind_and_every_layer_by_its_name_and_in_its_volume(
    pushed: str, tmp_path: Path, number: int, row: Row
) -> None:
    with stack(pushed, tmp_path) as opened:
        view = VfsView(opened.filesystem)
        manifest = f"/artifacts/{number}/manifests/{row.content.digest}"
        assert view.xattr(manifest, "user.epochfs.kind") == row.kind
        assert "files" in names(view, manifest)
        expected = {
            path(name, layer): layer[1] for name, layer in zip(row.files, row.layers, strict=True)
        }
        linked = {}
        for place, one in walk(view, f"{manifest}/files").items():
            if isinstance(one.content, str):
                blob = read(view, f"/artifacts/{number}/blobs/{one.content.rpartition('/')[2]}")
                linked[place.removeprefix(f"{manifest}/files/")] = blob
        assert linked == expected != {}
        shown = {
            place.removeprefix(f"{manifest}/volume/"): one.content
            for place, one in walk(view, f"{manifest}/volume").items()
            if one.content is not None
        }
        assert shown == row.volume != {}


def test_the_rows_have_every_kind_that_the_page_tells_but_images_and_epochs_own() -> None:
    [told] = [
        row[2]
        for block in parse(page("tree")).blocks
        if isinstance(block, Table)
        for row in block.rows
        if row[0] == "`user.epochfs.kind`"
    ]
    words = re.findall(r"`([a-z-]+)`", told)
    elsewhere = {kinds.CLOUD_IMAGE, kinds.SNAPSHOT, kinds.CONTAINER_IMAGE, kinds.IMAGE_INDEX}
    assert {row.kind for row in ROWS.values()} == set(words) - elsewhere
