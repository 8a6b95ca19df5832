"""What the rows read: blobs of random bytes, and many small repositories, pushed to a registry."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from epochfs.client import RegistryClient
from epochfs.config import TransportOptions
from epochfs.demo.samples import CONFIG, LAYER, descriptor, encode
from epochfs.oci.artifact_files import FILE_PATHS
from epochfs.oci.manifests import OCI_MANIFEST, REF_NAME
from epochfs.oci.names import Digest

MIB = 1 << 20

MODEL = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"

_THREADS = 16
_PUSH_SECONDS = 120.0
"""What a registry may take over one request: hashing 1 GiB, on a busy machine."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob that a registry has; `file` holds the same bytes."""

    repository: str
    digest: Digest
    size: int
    file: Path

    def url(self, base: str) -> str:
        """Return its address at a registry with this base URL."""
        return f"{base}/v2/{self.repository}/blobs/{self.digest}"


def push_blob(url: str, repository: str, file: Path, size: int) -> Blob:
    """Write `size` random bytes to `file`, and push them as a layer of `repository:latest`."""
    random_file(file, size)
    client = client_of(url)
    blob = push_file(client, repository, file)
    put_image(client, blob, "latest")
    client.close()
    return blob


def put_image(
    client: RegistryClient,
    layer: Blob,
    tag: str,
    media_type: str = LAYER,
    diff_id: str = "",
    annotations: Mapping[str, str] | None = None,
) -> None:
    """Push the config and the manifest of an image whose one layer its registry has.

    Without a `diff_id`, the layer is not compressed.
    """
    config = _config(diff_id or str(layer.digest))
    client.put_blob(layer.repository, Digest.of(config), config, len(config))
    described = {"mediaType": media_type, "digest": str(layer.digest), "size": layer.size}
    manifest = _manifest(config, described, annotations=annotations)
    client.put_manifest(layer.repository, tag, manifest, OCI_MANIFEST)


def push_model(url: str, repository: str, files: Iterable[Path]) -> list[Blob]:
    """Push files as a ModelPack, `repository:latest`: each is a layer, titled by its name."""
    client = client_of(url)
    with ThreadPoolExecutor(_THREADS) as pool:
        blobs = list(pool.map(lambda file: push_file(client, repository, file), files))
    layers: list[dict[str, object]] = [
        {
            "mediaType": WEIGHT,
            "digest": str(blob.digest),
            "size": blob.size,
            "annotations": {FILE_PATHS[0]: blob.file.name},
        }
        for blob in blobs
    ]
    config = b"{}"
    client.put_blob(repository, Digest.of(config), config, len(config))
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": MODEL,
        "config": descriptor(config, MODEL_CONFIG),
        "layers": layers,
    }
    client.put_manifest(repository, "latest", encode(manifest), OCI_MANIFEST)
    client.close()
    return blobs


def push_file(client: RegistryClient, repository: str, file: Path) -> Blob:
    """Push a file as a blob."""
    with file.open("rb") as stream:
        digest = Digest("sha256", hashlib.file_digest(stream, "sha256").hexdigest())
        size = stream.seek(0, 2)
        stream.seek(0)
        client.put_blob(repository, digest, stream, size)
    return Blob(repository, digest, size, file)


def random_file(file: Path, size: int) -> None:
    """Write `size` bytes that no compression shortens, the same ones for the same name."""
    source = random.Random(file.name)
    with file.open("wb") as stream:
        for start in range(0, size, MIB):
            stream.write(source.randbytes(min(MIB, size - start)))


def push_repositories(url: str, names: Iterable[str], tags: Iterable[str]) -> None:
    """Push a small image under each of `tags` to each of `names`; no two have the same digest."""
    client, wanted = client_of(url), list(tags)
    layer = b"a layer that all share"
    config = _config(str(Digest.of(layer)))

    def push_blobs(name: str) -> None:
        for blob in (config, layer):
            client.put_blob(name, Digest.of(blob), blob, len(blob))

    def push_tag(place: tuple[str, str]) -> None:
        name, tag = place
        named = {REF_NAME: f"{name}:{tag}"}
        manifest = _manifest(config, descriptor(layer, LAYER), annotations=named)
        client.put_manifest(name, tag, manifest, OCI_MANIFEST)

    repositories = list(names)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(push_blobs, repositories))
        list(pool.map(push_tag, ((name, tag) for name in repositories for tag in wanted)))
    client.close()


def push_images(url: str, count: int, blobs: int) -> None:
    """Push so many images to four repositories, each with so many small blobs of its own."""
    client, source = client_of(url), random.Random(count)
    for number in range(count):
        repository = f"team/app{number % 4}"
        layers = [source.randbytes(2000) for _ in range(blobs - 1)]
        config = _config(*(str(Digest.of(layer)) for layer in layers))
        for blob in (config, *layers):
            client.put_blob(repository, Digest.of(blob), blob, len(blob))
        manifest = _manifest(config, *(descriptor(layer, LAYER) for layer in layers))
        client.put_manifest(repository, f"v{number}", manifest, OCI_MANIFEST)
    client.close()


def numbered(word: str, count: int) -> list[str]:
    """Return so many names that begin with a word."""
    return [f"{word}{number}" for number in range(count)]


def client_of(url: str) -> RegistryClient:
    """Return a client of a registry that has the time to hash what it is sent."""
    return RegistryClient(url, options=TransportOptions(timeout=_PUSH_SECONDS))


def _config(*diff_ids: str) -> bytes:
    """Return the config of an image whose layers' tar streams have these digests."""
    filesystem = {"type": "layers", "diff_ids": diff_ids}
    return encode({"architecture": "amd64", "os": "linux", "rootfs": filesystem})


def _manifest(
    config: bytes, *layers: dict[str, object], annotations: Mapping[str, str] | None = None
) -> bytes:
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(config, CONFIG),
            "layers": layers,
            "annotations": annotations or {},
        }
    )
