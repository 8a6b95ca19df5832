"""Changes a registry as the write side does, and tells the listings of it."""

from __future__ import annotations

from epochfs.metadata.listings import Listings
from epochfs.oci.manifests import Descriptor, Document
from epochfs.oci.names import Digest, Repository, Tag
from support.builders import Content
from support.registries import EmbeddedRegistry

APP, NEW = Repository("team/app"), Repository("team/new")
LATEST, OTHER = Tag("latest"), Tag("other")


def write(
    registry: EmbeddedRegistry,
    listings: Listings,
    content: Content,
    *tags: Tag,
    repository: Repository = APP,
) -> None:
    """Push content as the write side does, and tell the listings."""
    for blob in content.every_blob():
        registry.put_blob(repository.name, blob)
        listings.wrote_blob(repository, Descriptor("", Digest.of(blob), len(blob)))
    for manifest in content.every_manifest():
        registry.put_manifest(repository.name, "", manifest.raw, manifest.media_type)
        document = Document(manifest.digest, manifest.media_type, manifest.raw)
        listings.wrote_manifest(repository, document)
    for tag in tags:
        registry.put_manifest(repository.name, tag.name, content.raw, content.media_type)
        listings.wrote_tag(repository, tag, content.digest)
