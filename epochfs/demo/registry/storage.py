"""The registry's content, in memory.

One lock guards all of it. It is held for dictionary work only, never while bytes are hashed, sent
or received. What is returned is immutable or a copy.
"""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from dataclasses import dataclass, field

from epochfs.oci.manifests import Document
from epochfs.oci.names import Digest


@dataclass
class _Repository:
    manifests: dict[Digest, Document] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)
    blobs: set[Digest] = field(default_factory=set)


class Storage:
    """Repositories, blobs and unfinished uploads.

    With `global_blobs` a blob of one repository is every repository's; without, each repository
    has only what was pushed or mounted into it. With `bucket` a repository is there while it has
    tags, and they come as a bucket lists their keys, `<tag>.json`.
    """

    def __init__(self, *, global_blobs: bool, bucket: bool = False) -> None:
        self._global_blobs = global_blobs
        self._bucket = bucket
        self._lock = threading.Lock()
        self._repositories: defaultdict[str, _Repository] = defaultdict(_Repository)
        self._blobs: dict[Digest, bytes] = {}
        self._uploads: dict[str, bytearray] = {}

    def repositories(self) -> list[str]:
        """Return the names of all repositories that something was ever stored in, sorted."""
        with self._lock:
            held = self._repositories.items()
            return sorted(name for name, one in held if one.tags or not self._bucket)

    def tags(self, name: str) -> list[str] | None:
        """Return the tags of a repository, sorted; None if there is no such repository."""
        with self._lock:
            held = self._repositories.get(name)
            if self._bucket:
                return sorted(held.tags if held else (), key="{}.json".format)
            return sorted(held.tags) if held else None

    def manifests(self, name: str) -> list[Document]:
        """Return all manifests of a repository, in the order they were pushed."""
        with self._lock:
            held = self._repositories.get(name)
            return list(held.manifests.values()) if held else []

    def manifest(self, name: str, reference: str | Digest) -> Document | None:
        """Return the manifest that a tag or digest names, or None."""
        with self._lock:
            held = self._repositories.get(name)
            if held is None:
                return None
            digest = held.tags.get(reference) if isinstance(reference, str) else reference
            return held.manifests.get(digest) if digest else None

    def put_manifest(self, name: str, document: Document, *tags: str) -> None:
        """Store a manifest, and let the tags point to it."""
        with self._lock:
            held = self._repositories[name]
            held.manifests[document.digest] = document
            held.tags.update(dict.fromkeys(tags, document.digest))

    def delete_manifest(self, name: str, reference: str | Digest) -> bool:
        """Delete a tag alone, or a manifest with all its tags; False if there is none."""
        with self._lock:
            held = self._repositories.get(name)
            if held is None:
                return False
            if isinstance(reference, str):
                return held.tags.pop(reference, None) is not None
            held.tags = {tag: digest for tag, digest in held.tags.items() if digest != reference}
            return held.manifests.pop(reference, None) is not None

    def blob(self, name: str, digest: Digest) -> bytes | None:
        """Return a blob that the repository may show, or None."""
        with self._lock:
            held = self._repositories.get(name)
            if self._global_blobs or (held and digest in held.blobs):
                return self._blobs.get(digest)
            return None

    def put_blob(self, name: str, digest: Digest, data: bytes) -> None:
        """Store a blob in a repository; the caller has checked its digest."""
        with self._lock:
            self._blobs[digest] = data
            self._repositories[name].blobs.add(digest)

    def mount_blob(self, name: str, source: str, digest: Digest) -> bool:
        """Show a blob of the repository `source` in `name` too; False if `source` lacks it."""
        data = self.blob(source, digest)
        if data is None:
            return False
        self.put_blob(name, digest, data)
        return True

    def delete_blob(self, name: str, digest: Digest) -> bool:
        """Take a blob out of a repository, and out of memory with the last one that had it."""
        with self._lock:
            held = self._repositories.get(name)
            if held is None or digest not in held.blobs:
                return False
            held.blobs.remove(digest)
            if not any(digest in other.blobs for other in self._repositories.values()):
                self._blobs.pop(digest, None)
            return True

    def begin_upload(self) -> str:
        """Open an upload and return its identifier."""
        identifier = str(uuid.uuid4())
        with self._lock:
            self._uploads[identifier] = bytearray()
        return identifier

    def upload_size(self, identifier: str) -> int | None:
        """Return how many bytes an upload has received; None if there is no such upload."""
        with self._lock:
            received = self._uploads.get(identifier)
            return None if received is None else len(received)

    def append_upload(self, identifier: str, data: bytes, offset: int | None = None) -> int | None:
        """Append to an upload and return its size; None if it is unknown or not at `offset`."""
        with self._lock:
            received = self._uploads.get(identifier)
            if received is None or offset not in (None, len(received)):
                return None
            received += data
            return len(received)

    def end_upload(self, identifier: str, offset: int | None = None) -> bytes | None:
        """Close an upload and return all its bytes; None if it is unknown or not at `offset`."""
        with self._lock:
            received = self._uploads.get(identifier)
            if received is None or offset not in (None, len(received)):
                return None
            del self._uploads[identifier]
        return bytes(received)
