"""A registry of the samples, an image with a large layer, and names that need care."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from epochfs.demo import samples
from epochfs.demo.registry import Behaviour
from epochfs.oci.manifests import CREATED
from epochfs.oci.names import Digest
from support.builders import Content, image, load, random_bytes
from support.registries import EmbeddedRegistry

MADE = "2024-02-29T12:00:00Z"
LARGE = random_bytes(9_000_001, 1)
NGINX = image(LARGE, b"small", annotations={CREATED: MADE})
LENIENT = Behaviour(validates=False)


@contextmanager
def furnished(behaviour: Behaviour) -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry(behaviour) as registry:
        samples.load(registry)
        for tag in ("1.0", "latest"):
            load(registry, "library/nginx", tag, NGINX)
        load(registry, "library/nginx/debug", "latest", image(b"a repository below another"))
        load(registry, "tags/blobs", "tags", image(b"reserved words everywhere"))
        load(registry, "_private/_tags", "_tag", image(b"underscores"))
        yield registry


def blob_path(content: Content, number: int, repository: str = "library/nginx") -> str:
    return f"/{repository}/blobs/{Digest.of(content.blobs[number])}"
