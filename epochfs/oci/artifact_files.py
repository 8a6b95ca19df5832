"""The files that an artifact consists of: each layer's name, and what becomes of it in a volume.

Everything here comes from the manifest alone; no blob is read. A layer's name is the first of its
title (`org.opencontainers.image.title`), its ModelPack file path, the name that its media type is
known by, and its digest with the extension that its media type implies. Names are the registry's
word: whoever shows them passes them through `names.labels` first.

Sources: OCI Image specification, annotations.md; ModelPack's model-spec, annotations.md; the tools'
own sources for the media types (Docker Model Runner, Ollama, Helm, Flux, KitOps, cosign, Notation,
Tekton, ORAS).
"""

from __future__ import annotations

import logging
import mimetypes
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from epochfs.errors import ProtocolViolation, printable
from epochfs.oci.manifests import TITLE, Descriptor, Manifest, load_json
from epochfs.oci.times import time_ns

log = logging.getLogger(__name__)

VERSION = "org.opencontainers.image.version"
UNPACK = "io.deis.oras.content.unpack"
FILE_PATHS = ("org.cncf.model.filepath", "org.cnai.model.filepath")
FILE_METADATA = ("org.cncf.model.file.metadata+json", "org.cnai.model.file.metadata+json")
TEKTON_KIND, TEKTON_NAME = "dev.tekton.image.kind", "dev.tekton.image.name"

HELM_CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
HELM_PROVENANCE = "application/vnd.cncf.helm.chart.provenance.v1.prov"
OLLAMA = "application/vnd.ollama.image."
ORAS_DEFAULT = "application/vnd.oci.image.layer.v1.tar"
"""What ORAS calls a file of which it was not told the type: seldom a tar."""

_OLLAMA_TENSOR = f"{OLLAMA}tensor"
_DOCKER_AI = "application/vnd.docker.ai."
_NAMES: Mapping[str, str] = {
    f"{_DOCKER_AI}gguf.v3": "model.gguf",
    f"{_DOCKER_AI}safetensors": "model.safetensors",
    f"{_DOCKER_AI}mmproj": "model.mmproj",
    f"{_DOCKER_AI}chat.template.jinja": "template.jinja",
    f"{_DOCKER_AI}license": "LICENSE",
    f"{_DOCKER_AI}dduf": "model.dduf",
    f"{_DOCKER_AI}vllm.config.tar": "config.tar",
    f"{_DOCKER_AI}dir.tar": "dir.tar",
    f"{OLLAMA}model": "model.gguf",
    f"{OLLAMA}adapter": "adapter.gguf",
    f"{OLLAMA}projector": "projector.gguf",
    f"{OLLAMA}draft": "draft.gguf",
    f"{OLLAMA}template": "template",
    f"{OLLAMA}system": "system",
    f"{OLLAMA}params": "params.json",
    f"{OLLAMA}license": "license",
    f"{OLLAMA}messages": "messages.json",
    "application/vnd.cncf.flux.content.v1.tar+gzip": "content.tar.gz",
    "application/wasm": "module.wasm",
    "application/vnd.dev.cosign.simplesigning.v1+json": "signature.json",
    "application/vnd.dsse.envelope.v1+json": "attestation.dsse.json",
    "application/vnd.in-toto+json": "attestation.intoto.json",
    "application/jose+json": "signature.jws",
    "application/cose": "signature.cose",
    "application/spdx+json": "sbom.spdx.json",
    "text/spdx+json": "sbom.spdx.json",
    "application/vnd.cyclonedx+json": "sbom.cdx.json",
}
"""The names of layers by their media types."""

_NUMBERED = (f"{_DOCKER_AI}gguf.v3", f"{_DOCKER_AI}safetensors")
"""Of these a model may have several, which are numbered."""

_SIGSTORE_BUNDLE = re.compile(r"application/vnd\.dev\.sigstore\.bundle[\w.]*\+json(;|\Z)")
_MODELKIT = re.compile(
    r"application/vnd\.kitops\.modelkit\.(model|modelpart|dataset|code|docs)\.v1\.tar(\+gzip)?\Z"
)
_TAR = re.compile(r"(?:.*[./+-])?tar(?:[+.](gzip|gz|zstd|zst))?\Z")
_EXTENSIONS: Mapping[str, str] = {
    "text/markdown": ".md",
    "application/yaml": ".yaml",
    "application/toml": ".toml",
    "application/octet-stream": "",
}
_SUFFIXES: Mapping[str, str] = {
    "json": ".json",
    "yaml": ".yaml",
    "xml": ".xml",
    "cbor": ".cbor",
    "zip": ".zip",
    "gzip": ".gz",
    "zstd": ".zst",
}
"""Extensions by the structured suffix of a media type (RFC 6838, section 4.2.8)."""

_KNOWN_TYPES = mimetypes.MimeTypes()


@dataclass(frozen=True, slots=True)
class FileMetadata:
    """What a layer says of its one file: permission bits, owner, and time in epoch nanoseconds."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    time_ns: int | None = None


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A layer under the name it is to be shown by, which may be hostile.

    `unpack` is the directory of a volume into which it is unpacked, "" being its root; None where
    the layer is a file.
    """

    name: str
    layer: Descriptor
    unpack: str | None = None


def artifact_files(manifest: Manifest) -> Iterator[ArtifactFile]:
    """Yield every layer of an artifact, in order."""
    counts = Counter(layer.media_type for layer in manifest.layers if not _given_name(layer))
    numbers: Counter[str] = Counter()
    for layer in manifest.layers:
        given, media_type = _given_name(layer), layer.media_type
        name = given or _known_name(manifest, layer) or f"{layer.digest}{extension(media_type)}"
        if given and _is_packed_directory(layer):  # ORAS titles it by the directory
            name += extension(media_type)
        elif not given and media_type in _NUMBERED and counts[media_type] > 1:
            numbers[media_type] += 1
            stem, _, suffix = name.partition(".")
            name = f"{stem}-{numbers[media_type]:05}-of-{counts[media_type]:05}.{suffix}"
        yield ArtifactFile(name, layer, _unpacked_into(layer, given))


def normalized(path: str) -> str:
    """Return a relative path without empty segments and `.`; one that climbs still does."""
    return "/".join(segment for segment in path.split("/") if segment not in ("", "."))


def _given_name(layer: Descriptor) -> str:
    """Return the name that a layer's annotations give it, "" where they give none."""
    for key in (TITLE, *FILE_PATHS):
        name = normalized(layer.annotations.get(key, ""))
        if name:
            return name
    return ""


def _known_name(manifest: Manifest, layer: Descriptor) -> str:
    """Return the name that what a layer is gives it, "" where that is not known."""
    media_type = layer.media_type
    if _is_packed_directory(layer):
        return f"content{extension(media_type)}"
    if bundled := _tekton_object(layer):
        return f"{bundled}.tar"
    if media_type == HELM_CHART:
        return f"{_chart(manifest)}.tgz"
    if media_type == HELM_PROVENANCE:
        return f"{_chart(manifest)}.prov"
    if media_type == _OLLAMA_TENSOR:
        return normalized(layer.name)
    if _SIGSTORE_BUNDLE.match(media_type):
        return "bundle.sigstore.json"
    if part := _MODELKIT.match(media_type):
        return f"{part[1]}.tar{'.gz' if part[2] else ''}"
    return _NAMES.get(media_type, "")


def _chart(manifest: Manifest) -> str:
    """Return a Helm chart's name and version, as `helm package` puts them into a file's name."""
    name = normalized(manifest.annotations.get(TITLE, ""))
    version = manifest.annotations.get(VERSION, "")
    return f"{name}-{version}" if name and version else name or "chart"


def _tekton_object(layer: Descriptor) -> str:
    """Return the kind and name of an object in a Tekton bundle, "" for any other layer."""
    kind, name = layer.annotations.get(TEKTON_KIND), layer.annotations.get(TEKTON_NAME)
    return normalized(f"{kind}-{name}") if kind and name else ""


def _is_packed_directory(layer: Descriptor) -> bool:
    return layer.annotations.get(UNPACK) == "true"


def _unpacked_into(layer: Descriptor, given: str) -> str | None:
    """Return the directory of a volume that a tar is unpacked into; None for what is a file."""
    if _is_packed_directory(layer):
        return ""  # its entries begin with the directory's name
    if not _TAR.match(layer.media_type):
        return None
    if given and layer.media_type == ORAS_DEFAULT and not given.endswith(".tar"):
        return None
    return _tekton_object(layer)


def extension(media_type: str) -> str:
    """Return the extension that files of a media type have, "" where that is not known."""
    media_type = media_type.partition(";")[0].strip().lower()
    tar = _TAR.match(media_type)
    if tar is not None:
        return {None: ".tar", "g": ".tar.gz", "z": ".tar.zst"}[tar[1] and tar[1][0]]
    if media_type in _EXTENSIONS:
        return _EXTENSIONS[media_type]
    suffix = _SUFFIXES.get(media_type.rpartition("+")[2])
    return suffix or _KNOWN_TYPES.guess_extension(media_type) or ""


def file_metadata(layer: Descriptor) -> FileMetadata:
    """Return what a layer's annotation says of its file; what is malformed is not believed."""
    text = next((layer.annotations[key] for key in FILE_METADATA if key in layer.annotations), "")
    if not text:
        return FileMetadata()
    try:
        stated = load_json(text.encode("utf-8", "surrogatepass"))
        if not isinstance(stated, dict):
            raise ProtocolViolation("not a JSON object")
    except ProtocolViolation as error:
        log.warning("ignored the file metadata of %s: %s", layer.digest, printable(error))
        return FileMetadata()
    mode = _number(stated.get("mode"))
    return FileMetadata(
        None if mode is None else stat.S_IMODE(mode),
        _number(stated.get("uid")),
        _number(stated.get("gid")),
        _time(stated.get("mtime")),
    )


def _number(value: object) -> int | None:
    """Return a number that fits a C `unsigned int`, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < 1 << 32 else None


def _time(value: object) -> int | None:
    try:
        return time_ns(value) if isinstance(value, str) else None
    except ValueError:
        return None
