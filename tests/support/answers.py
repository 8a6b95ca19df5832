"""Answers of a registry about one manifest and one blob, as a scripted server gives them."""

from __future__ import annotations

import json

from epochfs.oci.manifests import OCI_MANIFEST
from epochfs.oci.names import Digest
from support.scripted import Step, reply

RAW = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
DIGEST = Digest.of(RAW)
OTHER = Digest.of(b"other")
BLOB = bytes(range(256)) * 300
BLOB_DIGEST = Digest.of(BLOB)


def listing(key: str, names: object, **headers: str) -> list[Step]:
    return [reply(200, json.dumps({key: names}).encode(), **headers)]


def manifest(raw: bytes = RAW, digest: object = DIGEST, **headers: str | None) -> list[Step]:
    headers = {"Content_Type": OCI_MANIFEST, **headers}
    if digest is not None:
        headers["Docker_Content_Digest"] = str(digest)
    return [reply(200, raw, **headers)]


def head(length: object = len(RAW), digest: object = DIGEST) -> list[Step]:
    return manifest(b"", digest, Content_Length=None if length is None else str(length))


def errors(code: str) -> bytes:
    """Return the body of a refusal as the specification has it."""
    return json.dumps({"errors": [{"code": code, "message": "why"}]}).encode()
