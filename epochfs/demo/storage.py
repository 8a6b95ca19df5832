"""The content of an embedded registry, in memory, and the switches of its behaviour.

One lock guards all of the content. It is held for dictionary work only, never while bytes are
hashed, sent or received. What is returned is immutable or a copy.
"""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

from epochfs.oci.manifests import Document
from epochfs.oci.names import Digest


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a registry behaves where registries differ; the defaults are the specification's."""

    ranges: bool = True
    """`Range` is honoured with 206 for blobs; otherwise every GET returns the whole blob."""

    paging: bool = True
    """`n`, `last` and `Link` work in listings; otherwise every listing is complete."""

    page_size: int = 1000
    """Maximum names per page, and the number without `n`. Only with `paging`."""

    catalog: bool = True
    """`/v2/_catalog` exists."""

    referrers: bool = True
    """`/v2/<name>/referrers/<digest>` exists."""

    deletes: bool = True
    """Manifests and tags can be deleted."""

    tag_deletes: bool = True
    """A tag can be deleted by itself; otherwise only a manifest, by its digest, with all its tags.
    Only with `deletes`."""

    blob_deletes: bool = True
    """Blobs can be deleted."""

    uploads: bool = True
    """The specification's upload sessions (POST, PATCH, PUT) exist."""

    single_put: bool = False
    """`PUT /v2/<name>/blobs/<digest>` stores a blob in one request: Epoch's own way."""

    global_blobs: bool = False
    """A blob pushed to one repository can be pulled from every other."""

    strict_uploads: bool = True
    """A chunk out of order is answered 416, and an upload can be queried and cancelled; otherwise
    whatever arrives is appended."""

    validates: bool = True
    """Names, media types and the references of a pushed manifest are checked."""

    sparse: Literal["", "indexes", "all"] = "indexes"
    """Which manifests may name what was not pushed: none, an index its manifests, or all. Only with
    `validates`; without it, all may."""

    tag_parameters: bool = True
    """A manifest that is pushed by its digest gets the tags of `?tag=` (specification 1.1+dev)."""

    sha512: bool = True
    """sha512 digests are understood, as well as sha256; otherwise such a digest names a tag, and no
    blob."""

    bucket: bool = False
    """Tags are keys in a bucket, `<repository>/<tag>.json`: a repository exists while it has tags,
    an unknown one has none, and deleting what does not exist succeeds."""

    plain_errors: bool = False
    """Other paths are answered as by a web server, without an error code: 404 to a GET, 405 to all
    else."""

    read_only: Literal["", "denied", "unsupported"] = ""
    """How whatever would change something is refused: with 403 and DENIED, or 405 and UNSUPPORTED;
    empty: not at all."""

    auth: Literal["", "basic", "bearer"] = ""
    """How clients must authenticate; empty: not at all."""

    anonymous_reads: bool = False
    """With `auth`, every GET and HEAD but `/v2/` itself is open to all."""

    scopes: bool = True
    """A challenge names the scope to ask for."""

    empty_token: bool = False
    """The token server returns the password to whoever gives it, and "" to those who give none."""


SPECIFICATION = Behaviour()
"""A registry that offers all of the specification, without authentication."""

EPOCH = Behaviour(
    ranges=False,
    paging=False,
    referrers=False,
    blob_deletes=False,
    single_put=True,
    global_blobs=True,
    strict_uploads=False,
    validates=False,
    tag_parameters=False,
    sha512=False,
    bucket=True,
    plain_errors=True,
    auth="bearer",
    anonymous_reads=True,
    scopes=False,
    empty_token=True,
)
"""Epoch, as its sources of 24 April 2026 (commit fcafc2d, `server/` and `registry/`) have it.

Everyone may read, but `/v2/` itself asks for a token, and so does every write: the registry token,
which is the password here, sent as it is or fetched for any user name; without a password nobody
can write. Nothing is checked but that a manifest is JSON and, pushed under `sha256:`, has that
digest. One without `mediaType` is served as an image manifest, whatever it was pushed as."""


@dataclass
class _Repository:
    manifests: dict[Digest, Document] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)
    blobs: set[Digest] = field(default_factory=set)


class Storage:
    """Repositories, blobs and unfinished uploads.

    Without `global_blobs` a repository has only what was pushed or mounted into it; with `bucket`
    its tags come as a bucket lists their keys, `<tag>.json`.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self._global_blobs = behaviour.global_blobs
        self._bucket = behaviour.bucket
        self._lock = threading.Lock()
        self._repositories: defaultdict[str, _Repository] = defaultdict(_Repository)
        self._blobs: dict[Digest, bytes] = {}
        self._uploads: dict[str, bytearray] = {}

    def _held(self, name: str) -> _Repository:
        """Return what a repository has; nothing if there is none. The lock is held."""
        return self._repositories.get(name, _Repository())

    def repositories(self) -> list[str]:
        """Return the names of all repositories that something was ever stored in, sorted."""
        with self._lock:
            held = self._repositories.items()
            return sorted(name for name, one in held if one.tags or not self._bucket)

    def tags(self, name: str) -> list[str] | None:
        """Return the tags of a repository, sorted; None if there is no such repository."""
        with self._lock:
            if self._bucket:
                return sorted(self._held(name).tags, key="{}.json".format)
            return sorted(self._held(name).tags) if name in self._repositories else None

    def manifests(self, name: str) -> list[Document]:
        """Return all manifests of a repository, in the order they were pushed."""
        with self._lock:
            return list(self._held(name).manifests.values())

    def manifest(self, name: str, reference: str | Digest) -> Document | None:
        with self._lock:
            held = self._held(name)
            digest = held.tags.get(reference) if isinstance(reference, str) else reference
            return held.manifests.get(digest) if digest else None

    def put_manifest(self, name: str, document: Document, *tags: str) -> None:
        with self._lock:
            held = self._repositories[name]
            held.manifests[document.digest] = document
            held.tags.update(dict.fromkeys(tags, document.digest))

    def delete_manifest(self, name: str, reference: str | Digest) -> bool:
        """Delete a tag alone, or a manifest with all its tags; False if there is none."""
        with self._lock:
            held = self._held(name)
            if isinstance(reference, str):
                return held.tags.pop(reference, None) is not None
            held.tags = {tag: digest for tag, digest in held.tags.items() if digest != reference}
            return held.manifests.pop(reference, None) is not None

    def blob(self, name: str, digest: Digest) -> bytes | None:
        """Return a blob that the repository may show, or None."""
        with self._lock:
            if self._global_blobs or digest in self._held(name).blobs:
                return self._blobs.get(digest)
            return None

    def put_blob(self, name: str, digest: Digest, data: bytes) -> None:
        """Store a blob in a repository; the caller has checked its digest."""
        with self._lock:
            self._blobs[digest] = data
            self._repositories[name].blobs.add(digest)

    def delete_blob(self, name: str, digest: Digest) -> bool:
        """Take a blob out of a repository, and out of memory with the last one that had it."""
        with self._lock:
            blobs = self._held(name).blobs
            if digest not in blobs:
                return False
            blobs.remove(digest)
            if not any(digest in other.blobs for other in self._repositories.values()):
                self._blobs.pop(digest, None)
            return True

    def begin_upload(self) -> str:
        identifier = str(uuid.uuid4())
        with self._lock:
            self._uploads[identifier] = bytearray()
        return identifier

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
