"""Names of layers: a row for each row of what the tools write, by their own sources."""

from __future__ import annotations

import json
from typing import Any

import pytest

from epochfs.oci.artifact_files import (
    FILE_METADATA,
    FILE_PATHS,
    ORAS_DEFAULT,
    TEKTON_KIND,
    TEKTON_NAME,
    UNPACK,
    VERSION,
    FileMetadata,
    artifact_files,
    extension,
    file_metadata,
)
from epochfs.oci.manifests import OCI_MANIFEST, TITLE, Descriptor, Manifest, parse
from epochfs.oci.names import Digest

DIGEST = Digest.of(b"layer")
MODEL = "application/vnd.cncf.model."
DOCKER_AI = "application/vnd.docker.ai."
OLLAMA = "application/vnd.ollama.image."
KITOPS = "application/vnd.kitops.modelkit."
TAR_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
PROVENANCE = "application/vnd.cncf.helm.chart.provenance.v1.prov"


def layer(media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(DIGEST), "size": 5, **more}


def noted(media_type: str, **annotations: str) -> dict[str, Any]:
    return layer(media_type, annotations=annotations)


def manifest(*layers: dict[str, Any], annotations: dict[str, str] | None = None) -> Manifest:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "layers": layers,
        "annotations": annotations or {},
    }
    view = parse(json.dumps(document).encode())
    assert isinstance(view, Manifest)
    return view


def shown(*layers: dict[str, Any], **given: Any) -> list[tuple[str, str | None]]:
    return [(file.name, file.unpack) for file in artifact_files(manifest(*layers, **given))]


def row(media_type: str, name: str, unpack: str | None = None) -> Any:
    return pytest.param(layer(media_type), name, unpack, id=media_type)


def titled(media_type: str, key: str, given: str, name: str, unpack: str | None = None) -> Any:
    return pytest.param(noted(media_type, **{key: given}), name, unpack, id=f"{name} {media_type}")


@pytest.mark.parametrize(
    ("given", "name", "unpack"),
    [
        titled(f"{MODEL}weight.v1.raw", FILE_PATHS[0], "a/w.safetensors", "a/w.safetensors"),
        titled(f"{MODEL}weight.config.v1.raw", FILE_PATHS[0], "./config.json", "config.json"),
        titled(f"{MODEL}doc.v1.raw", FILE_PATHS[1], "/docs//README.md", "docs/README.md"),
        titled(f"{MODEL}code.v1.tar", FILE_PATHS[0], "code", "code", ""),
        titled(f"{MODEL}dataset.v1.tar+gzip", FILE_PATHS[0], "data", "data", ""),
        titled(f"{MODEL}weight.v1.tar+zstd", FILE_PATHS[0], "weights", "weights", ""),
        titled("application/vnd.docker.ai.gguf.v3", FILE_PATHS[0], "x/m.gguf", "x/m.gguf"),
        row(f"{DOCKER_AI}gguf.v3", "model.gguf"),
        row(f"{DOCKER_AI}safetensors", "model.safetensors"),
        row(f"{DOCKER_AI}mmproj", "model.mmproj"),
        row(f"{DOCKER_AI}chat.template.jinja", "template.jinja"),
        row(f"{DOCKER_AI}license", "LICENSE"),
        row(f"{DOCKER_AI}dduf", "model.dduf"),
        row(f"{DOCKER_AI}vllm.config.tar", "config.tar", ""),
        row(f"{DOCKER_AI}dir.tar", "dir.tar", ""),
        row(f"{OLLAMA}model", "model.gguf"),
        row(f"{OLLAMA}adapter", "adapter.gguf"),
        row(f"{OLLAMA}projector", "projector.gguf"),
        row(f"{OLLAMA}draft", "draft.gguf"),
        row(f"{OLLAMA}template", "template"),
        row(f"{OLLAMA}system", "system"),
        row(f"{OLLAMA}params", "params.json"),
        row(f"{OLLAMA}license", "license"),
        row(f"{OLLAMA}messages", "messages.json"),
        pytest.param(layer(f"{OLLAMA}tensor", name="blk.0.weight"), "blk.0.weight", None),
        pytest.param(layer(f"{OLLAMA}tensor", name=7), str(DIGEST), None),
        row(CHART, "chart.tgz", ""),
        row(PROVENANCE, "chart.prov"),
        row("application/vnd.cncf.flux.content.v1.tar+gzip", "content.tar.gz", ""),
        row(f"{KITOPS}model.v1.tar", "model.tar", ""),
        row(f"{KITOPS}modelpart.v1.tar+gzip", "modelpart.tar.gz", ""),
        row(f"{KITOPS}dataset.v1.tar", "dataset.tar", ""),
        row(f"{KITOPS}code.v1.tar+gzip", "code.tar.gz", ""),
        row(f"{KITOPS}docs.v1.tar", "docs.tar", ""),
        row("application/wasm", "module.wasm"),
        pytest.param(noted(TAR_GZIP, **{TITLE: "site", UNPACK: "true"}), "site.tar.gz", ""),
        pytest.param(noted(TAR_GZIP, **{TITLE: ".", UNPACK: "true"}), "content.tar.gz", ""),
        pytest.param(noted(TAR_GZIP, **{UNPACK: "true"}), "content.tar.gz", ""),
        row("application/vnd.dev.cosign.simplesigning.v1+json", "signature.json"),
        row("application/vnd.dev.sigstore.bundle.v0.3+json", "bundle.sigstore.json"),
        row("application/vnd.dev.sigstore.bundle+json", "bundle.sigstore.json"),
        row("application/vnd.dev.sigstore.bundle+json;version=0.2", "bundle.sigstore.json"),
        row("application/vnd.dsse.envelope.v1+json", "attestation.dsse.json"),
        row("application/vnd.in-toto+json", "attestation.intoto.json"),
        row("application/jose+json", "signature.jws"),
        row("application/cose", "signature.cose"),
        row("application/spdx+json", "sbom.spdx.json"),
        row("text/spdx+json", "sbom.spdx.json"),
        row("application/vnd.cyclonedx+json", "sbom.cdx.json"),
        pytest.param(
            noted(
                "application/vnd.oci.image.layer.v1.tar", **{TEKTON_KIND: "task", TEKTON_NAME: "b"}
            ),
            "task-b.tar",
            "task-b",
        ),
        row("application/json", f"{DIGEST}.json"),
        row("application/vnd.anything+json", f"{DIGEST}.json"),
        row(TAR_GZIP, f"{DIGEST}.tar.gz", ""),
        row("application/vnd.oci.image.layer.v1.tar+zstd", f"{DIGEST}.tar.zst", ""),
        row(ORAS_DEFAULT, f"{DIGEST}.tar", ""),
        row("text/markdown", f"{DIGEST}.md"),
        row("application/octet-stream", str(DIGEST)),
        row("application/vnd.unknown", str(DIGEST)),
        row("", str(DIGEST)),
        titled(ORAS_DEFAULT, TITLE, "hello.txt", "hello.txt"),
        titled(ORAS_DEFAULT, TITLE, "hello.tar", "hello.tar", ""),
        titled(TAR_GZIP, TITLE, "hello.tar.gz", "hello.tar.gz", ""),
        titled("text/plain", TITLE, "../up", "../up"),
    ],
)
def test_the_name_of_a_layer_and_where_a_volume_unpacks_it(
    given: dict[str, Any], name: str, unpack: str | None
) -> None:
    assert shown(given) == [(name, unpack)]


def test_a_title_comes_before_a_file_path_and_a_file_path_before_the_name_of_its_kind() -> None:
    both = {TITLE: "title", FILE_PATHS[0]: "path", FILE_PATHS[1]: "older"}
    gguf = f"{DOCKER_AI}gguf.v3"
    assert shown(noted(gguf, **both)) == [("title", None)]
    del both[TITLE]
    assert shown(noted(gguf, **both)) == [("path", None)]
    del both[FILE_PATHS[0]]
    assert shown(noted(gguf, **both)) == [("older", None)]


@pytest.mark.parametrize("what", ["gguf.v3", "safetensors"])
def test_the_parts_of_a_model_are_numbered(what: str) -> None:
    part, end = layer(f"{DOCKER_AI}{what}"), what.partition(".")[0]
    names = [name for name, _ in shown(part, layer(f"{DOCKER_AI}license"), part, part)]
    assert names == [
        f"model-00001-of-00003.{end}",
        "LICENSE",
        f"model-00002-of-00003.{end}",
        f"model-00003-of-00003.{end}",
    ]


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({TITLE: "nginx", VERSION: "1.2.3"}, "nginx-1.2.3"),
        ({TITLE: "nginx"}, "nginx"),
        ({VERSION: "1.2.3"}, "chart"),
        ({}, "chart"),
    ],
)
def test_a_chart_is_named_by_its_manifest(annotations: dict[str, str], name: str) -> None:
    found = shown(layer(CHART), layer(PROVENANCE), annotations=annotations)
    assert found == [(f"{name}.tgz", ""), (f"{name}.prov", None)]


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", ".tar.gz"),
        ("application/x-tar", ".tar"),
        ("application/vnd.x.target", ""),
        ("application/vnd.x+yaml", ".yaml"),
        ("APPLICATION/JSON; charset=utf-8", ".json"),
        ("text/html", ".html"),
    ],
)
def test_an_extension_is_what_the_media_type_implies(media_type: str, expected: str) -> None:
    assert extension(media_type) == expected


def of_metadata(text: str) -> FileMetadata:
    return file_metadata(Descriptor("text/plain", DIGEST, 5, annotations={FILE_METADATA[0]: text}))


def test_file_metadata_gives_mode_owner_and_time() -> None:
    text = '{"name":"a","mode":33188,"uid":7,"gid":8,"size":5,"mtime":"2025-01-02T03:04:05.6Z"}'
    assert of_metadata(text) == FileMetadata(0o644, 7, 8, 1735787045_600000000)
    assert of_metadata('{"mode":-1,"uid":"root","gid":true,"mtime":"now"}') == FileMetadata()
    assert file_metadata(Descriptor("text/plain", DIGEST, 5)) == FileMetadata()


@pytest.mark.expects_log("ignored the file metadata of")
@pytest.mark.parametrize("text", ["no JSON", "[]", '"text"', '{"mode":1,"mode":2}', "\ud800"])
def test_malformed_file_metadata_is_ignored_in_one_log_line(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert of_metadata(text) == FileMetadata()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "ignored the file metadata of sha256"
    ]
