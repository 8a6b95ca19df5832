"""Manifests and indexes: the raw bytes first, a parsed view of them second.

The digest covers the bytes, so they are kept exactly as they came and are what the mount shows. The
view is validated field by field: it is well-typed, but not to be trusted to be small or true.
Source: OCI Image specification 1.1, descriptor.md, manifest.md and image-index.md; Docker's schema
2 documents have the same shape.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

from epochfs.errors import InvalidName, ProtocolViolation, printable
from epochfs.oci.names import Digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
"""From a release candidate of the specification; artifacts of this type were pushed and remain."""
DOCKER_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SIGNED_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

MEDIA_TYPE = re.compile(r"[A-Za-z0-9][\w.+!#$&^-]*/[A-Za-z0-9][\w.+!#$&^-]*\Z", re.ASCII)
"""The syntax of a media type (RFC 6838, section 4.2)."""

ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, "*/*;q=0.1"))
"""The Accept header of a manifest request. To a client that does not name the newer types, Docker's
registry sends an old, re-signed schema 1 document, whose digest nobody else knows."""

CREATED = "org.opencontainers.image.created"
TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"

MAX_SIZE = 2**50 - 1
"""Largest content size believed of a descriptor, in bytes: no blob of 1 PiB exists."""

_T = TypeVar("_T")
_NO_ANNOTATIONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content by digest (descriptor.md); `size` is in bytes."""

    media_type: str
    digest: Digest
    size: int
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, Any] | None = None
    name: str = ""
    """A member of Ollama's own: the name of a tensor."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The view of an image manifest: a config and layers in order.

    The blobs of an OCI artifact manifest, which never was released, are its layers here. Those that
    Docker's schema 1 names have neither size nor type, so they are no layers but `unsized`.
    """

    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None
    artifact_type: str
    annotations: Mapping[str, str]
    unsized: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class Index:
    """The view of an image index (or Docker's manifest list): manifests, in order."""

    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None
    artifact_type: str
    annotations: Mapping[str, str]


@dataclass(frozen=True)
class Document:
    """What a registry stores under a manifest's digest: exact bytes and their media type."""

    digest: Digest
    media_type: str
    raw: bytes

    @cached_property
    def view(self) -> Manifest | Index:
        """The parsed view; raises ProtocolViolation for bytes that are no manifest or index."""
        return parse(self.raw)

    @cached_property
    def readable_view(self) -> Manifest | Index | None:
        """The parsed view; None for bytes that are no manifest or index."""
        try:
            return self.view
        except ProtocolViolation:
            return None

    @cached_property
    def own_type(self) -> str:
        """The media type that the document states as its `mediaType`, or else its structure shows.

        Some registries serve every manifest as `text/plain`, and Epoch an index without `mediaType`
        as a manifest. Where the document does not tell, it is the type that it came with.
        """
        try:
            document = load_json(self.raw)
        except ProtocolViolation:
            document = None
        if not isinstance(document, dict):
            return self.media_type
        stated = document.get("mediaType")
        if isinstance(stated, str) and MEDIA_TYPE.match(stated):
            return stated
        if document.get("schemaVersion") == 1:
            return DOCKER_SIGNED_SCHEMA_1 if "signatures" in document else DOCKER_SCHEMA_1
        if isinstance(self.readable_view, Index):
            return OCI_INDEX
        return self.media_type if self.readable_view is None else OCI_MANIFEST

    @property
    def size(self) -> int:
        """The length of the raw bytes."""
        return len(self.raw)


def load_json(raw: bytes) -> Any:  # noqa: ANN401 - JSON is any of its types
    """Parse JSON from a hostile server: strict UTF-8, no BOM, no NaN, no duplicate keys.

    Raises ProtocolViolation for anything else, deep nesting and huge numbers included.
    """
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise ProtocolViolation(f"not valid JSON: {printable(error)}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has a key twice")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def digest_matches(digest: Digest, raw: bytes) -> bool:
    """Whether a manifest has a digest, which covers its `payload` alone where it is signed."""
    return digest.matches(raw) or digest.matches(payload(raw))


def payload(raw: bytes) -> bytes:
    """Return the part of a manifest that its digest covers: all of it, or what the signatures of
    Docker's schema 1 sign (a JWS whose protected headers say how to cut them out again).

    The signatures are not verified, as Docker does not verify them. But nothing else may have been
    added: without them, the document says what its payload says.
    """
    if b'"signatures"' not in raw:
        return raw
    try:
        document = load_json(raw)
        headers = [load_json(_base64url(one["protected"])) for one in document.pop("signatures")]
        ((length, tail),) = {(one["formatLength"], one["formatTail"]) for one in headers}
        signed = raw[: checked_size(length)] + _base64url(tail)
        if document["schemaVersion"] == 1 and load_json(signed) == document:
            return signed
    except (ProtocolViolation, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        pass
    return raw


def _base64url(text: str) -> bytes:
    """Decode base64url without padding, as a JWS has it (RFC 7515); raises ValueError."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True)


def parse(raw: bytes) -> Manifest | Index:
    """Parse a manifest or index; raises ProtocolViolation unless every field has its type.

    Which of the two it is follows from its fields, as OCI's validation advice has it: a document
    with both `manifests` and `layers` or `config` is ambiguous and refused (CVE-2021-41190).
    """
    document = load_json(raw)
    if not isinstance(document, dict):
        raise ProtocolViolation("a manifest that is not a JSON object")
    subject = _descriptor_or_none(document, "subject")
    artifact_type = _text(document, "artifactType")
    annotations = _annotations(document)
    if document.get("mediaType") == OCI_ARTIFACT:
        if not document.keys().isdisjoint(("config", "layers", "manifests")):
            raise ProtocolViolation("a document that is both an artifact manifest and another kind")
        return Manifest(None, _descriptors(document, "blobs"), subject, artifact_type, annotations)
    if "manifests" in document:
        if "layers" in document or "config" in document:
            raise ProtocolViolation("a document that is both a manifest and an index")
        return Index(_descriptors(document, "manifests"), subject, artifact_type, annotations)
    if document.get("schemaVersion") == 1 and "fsLayers" in document:
        return Manifest(None, (), None, "", _NO_ANNOTATIONS, _schema_1_blobs(document))
    if "layers" not in document and "config" not in document:
        raise ProtocolViolation("neither a manifest nor an index")
    config, layers = _descriptor_or_none(document, "config"), _descriptors(document, "layers")
    return Manifest(config, layers, subject, artifact_type, annotations)


def described_referrer(document: Document) -> dict[str, Any]:
    """Return the descriptor of a referrer as it is listed, in JSON: with its artifact type, or else
    its config's type, and all its annotations (OCI Distribution specification 1.1, "Listing
    Referrers"). Raises ProtocolViolation for what is no manifest or index.
    """
    view = document.view
    descriptor: dict[str, Any] = {
        "mediaType": document.media_type,
        "digest": str(document.digest),
        "size": document.size,
    }
    config = view.config if isinstance(view, Manifest) else None
    if kind := view.artifact_type or (config.media_type if config else ""):
        descriptor["artifactType"] = kind
    if view.annotations:
        descriptor["annotations"] = dict(view.annotations)
    return descriptor


def _schema_1_blobs(document: Mapping[str, Any]) -> tuple[Digest, ...]:
    """Return the blobs that a manifest of Docker's schema 1 names, each once."""
    layers = document["fsLayers"]
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ProtocolViolation("'fsLayers' is not a list of objects")
    return tuple(dict.fromkeys(_digest(layer.get("blobSum", "")) for layer in layers))


def _field(document: Mapping[str, Any], key: str, kind: type[_T], name: str) -> _T | None:
    """Return a field, or None if it is absent or null, as some clients write it."""
    value = document.get(key)
    if value is not None and not isinstance(value, kind):
        raise ProtocolViolation(f"'{key}' is not {name}")
    return value


def _text(document: Mapping[str, Any], key: str) -> str:
    return _field(document, key, str, "text") or ""


def _annotations(document: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the annotations; one that is null is none."""
    value = _field(document, "annotations", dict, "a map of text to text")
    if value is None:
        return _NO_ANNOTATIONS
    found = {key: text for key, text in value.items() if text is not None}
    if not all(isinstance(text, str) for text in found.values()):
        raise ProtocolViolation("'annotations' is not a map of text to text")
    return MappingProxyType(found)


def _descriptors(document: Mapping[str, Any], key: str) -> tuple[Descriptor, ...]:
    return tuple(_descriptor(item) for item in _field(document, key, list, "a list") or ())


def _descriptor_or_none(document: Mapping[str, Any], key: str) -> Descriptor | None:
    value = document.get(key)
    return None if value is None else _descriptor(value)


def _descriptor(value: object) -> Descriptor:
    if not isinstance(value, dict):
        raise ProtocolViolation("a descriptor that is not a JSON object")
    return Descriptor(
        media_type=_text(value, "mediaType"),
        digest=_digest(value.get("digest", "")),
        size=checked_size(value.get("size")),
        artifact_type=_text(value, "artifactType"),
        annotations=_annotations(value),
        platform=_field(value, "platform", dict, "a JSON object"),
        name=name if isinstance(name := value.get("name"), str) else "",
    )


def _digest(text: Any) -> Digest:  # noqa: ANN401 - JSON is any of its types
    try:
        return Digest.parse(text)
    except InvalidName as error:
        raise ProtocolViolation(f"a descriptor's digest: {error}") from None


def checked_size(value: object) -> int:
    """Return a content size in bytes, or raise ProtocolViolation for anything unbelievable."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SIZE:
        raise ProtocolViolation(f"not a content size: {printable(value, 40)}")
    return value
