"""The endpoints that only read, asked of one host: the registry itself, or a mirror of it.

Each ends within `seconds`. `RegistryClient` documents what they return and raise. Of those that
ask by HEAD, the host that `decides`, the registry itself, is asked again by GET where it refuses.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from urllib.parse import quote

from epochfs.client.listing_pages import PAGE_LIMIT
from epochfs.client.transport import Reply, Request, Transport
from epochfs.errors import (
    ContentMismatch,
    Denied,
    InvalidName,
    NotFound,
    ProtocolViolation,
    Unsupported,
    printable,
)
from epochfs.oci.manifests import (
    ACCEPT,
    MEDIA_TYPE,
    Descriptor,
    Document,
    checked_size,
    digest_matches,
    payload,
)
from epochfs.oci.names import Digest, Reference, Repository

log = logging.getLogger(__name__)

_UNTYPED = "application/octet-stream"
_BLANK = b"\xef\xbb\xbf \t\r\n"
"""What may stand before a JSON document: a byte order mark too, though it is not allowed."""


def repository_path(repository: Repository) -> str:
    """Return the path of a repository, below the API's root."""
    return f"/{quote(repository.name)}"


def manifest_path(repository: Repository, reference: Reference) -> str:
    """Return the path of a manifest."""
    return f"{repository_path(repository)}/manifests/{quote(str(reference), safe=':')}"


def blob_path(repository: Repository, digest: Digest) -> str:
    """Return the path of a blob."""
    return f"{repository_path(repository)}/blobs/{digest}"


def pull(repository: Repository) -> str:
    """Return the scope of reading a repository."""
    return f"{repository}:pull"


def ping(transport: Transport, seconds: float) -> Reply:
    """Check that a host answers, and us (`RegistryClient.ping`); return what it says to that."""
    with transport.watch(seconds) as watch:
        reply = transport.fetch(Request("GET", transport.url("/")), watch=watch)
        if reply.ok:
            return reply
        error = transport.refusal(reply)
        if isinstance(error, Denied) and not reply.authorization:
            catalog = transport.url("/_catalog").with_parameter("n", "1")
            request = Request("GET", catalog, "registry:catalog")
            listed = transport.fetch(request, PAGE_LIMIT, watch)
            if listed.ok:
                return listed
        if isinstance(error, Denied | NotFound) or error.explained:
            raise error
        raise ProtocolViolation(f"{reply.what}: {reply.status}: not an OCI registry")


def manifest(
    repository: Repository, reference: Reference, limit: int, transport: Transport, seconds: float
) -> Document:
    """Fetch a manifest of at most `limit` bytes, and check it against its digests."""
    request = _manifest_request(transport, repository, reference)
    with transport.watch(seconds) as watch:
        reply = accepted(transport, transport.fetch(request, limit, watch))
    announced = announced_digest(reply)
    if announced is None and not isinstance(reference, Digest):
        reply.check_encoding()
        if not reply.body.lstrip(_BLANK).startswith(b"{"):
            # Nothing vouches for it, and a login page must not become what the tag leads to.
            raise ProtocolViolation(f"{reply.what}: the answer is no manifest")
    for digest in (reference, announced):
        if isinstance(digest, Digest) and not digest_matches(digest, reply.body):
            raise ContentMismatch(f"{reply.what}: the manifest does not have digest {digest}")
    named = reference if isinstance(reference, Digest) else announced
    return Document(named or Digest.of(payload(reply.body)), _media_type(reply), reply.body)


def resolve(
    repository: Repository,
    reference: Reference,
    limit: int,
    transport: Transport,
    seconds: float,
    *,
    decides: bool = False,
) -> Descriptor:
    """Ask what a reference names now: by HEAD, or else by GET of at most `limit` bytes."""
    request = _manifest_request(transport, repository, reference)
    reply, left = _head(transport, request, seconds, decides=decides)
    found = None if reply is None else _announced(reply, reference)
    if found is None:
        document = manifest(repository, reference, limit, transport, left)
        found = Descriptor(document.media_type, document.digest, document.size)
    return found


def check_manifest(
    repository: Repository,
    reference: Reference,
    transport: Transport,
    seconds: float,
    *,
    decides: bool = False,
) -> None:
    """Ask whether the repository has a manifest; raises NotFound if not."""
    request = _manifest_request(transport, repository, reference)
    reply, left = _head(transport, request, seconds, decides=decides)
    if reply is None:
        transport.open(request, 0, None, left).close()


def check_blob(
    repository: Repository,
    digest: Digest,
    transport: Transport,
    seconds: float,
    *,
    decides: bool = False,
) -> None:
    """Ask whether the repository has a blob; raises NotFound if not."""
    request = blob_request(repository, digest, 0, None, transport)
    reply, left = _head(transport, request, seconds, decides=decides)
    if reply is None:
        _told_by_first_byte(repository, digest, transport, left)


def blob_size(
    repository: Repository,
    digest: Digest,
    transport: Transport,
    seconds: float,
    *,
    decides: bool = False,
) -> int:
    """Ask for a blob's size in bytes: by HEAD, or else by GET of its first byte."""
    request = blob_request(repository, digest, 0, None, transport)
    reply, left = _head(transport, request, seconds, decides=decides)
    size = None if reply is None else announced_size(reply)
    if size is None:
        size = _told_by_first_byte(repository, digest, transport, left)
    if size is None:
        raise ProtocolViolation(f"{digest} in {repository}: the registry tells no size")
    return size


def small_blob(
    repository: Repository, digest: Digest, limit: int, transport: Transport, seconds: float
) -> bytes:
    """Fetch all of a blob of at most `limit` bytes, and check it against its digest."""
    with transport.watch(seconds) as watch:
        request = blob_request(repository, digest, 0, None, transport)
        reply = accepted(transport, transport.fetch(request, limit, watch))
    if not digest.matches(reply.body):
        raise ContentMismatch(f"{reply.what}: the blob does not have digest {digest}")
    return reply.body


def blob_request(
    repository: Repository, digest: Digest, start: int, end: int | None, transport: Transport
) -> Request:
    """Return the request for the bytes of a blob from `start` to before `end`."""
    headers = {}
    if start > 0 or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    url = transport.url(blob_path(repository, digest))
    return Request("GET", url, pull(repository), headers, hashed=True)


def accepted(transport: Transport, reply: Reply) -> Reply:
    """Return a 2xx reply, or raise what its status means."""
    if not reply.ok:
        raise transport.refusal(reply)
    return reply


def announced_digest(reply: Reply) -> Digest | None:
    """Return the Docker-Content-Digest, or None for a missing or malformed one."""
    text = reply.headers.get("Docker-Content-Digest", "")
    try:
        return Digest.parse(text)
    except InvalidName:
        if text:
            log.debug("%s: a malformed Docker-Content-Digest: %s", reply.what, printable(text))
        return None


def announced_size(reply: Reply) -> int | None:
    """Return the size in bytes that a HEAD's Content-Length gives, or None if it has none."""
    length = reply.content_length
    return None if length is None else checked_size(length)


def _head(
    transport: Transport, get: Request, seconds: float, *, decides: bool
) -> tuple[Reply | None, float]:
    """Return the answer to a HEAD of what `get` asks for, and the seconds left.

    None stands for a refusal that is not to be believed: GET has to say, whose body has the reason.
    There are registries that refuse HEAD, in any words, for what GET gives, and redirects to URLs
    that are signed for GET alone. A host that does not decide, a mirror, is not asked twice: what
    it refuses is raised, unless what it refuses is HEAD itself.
    """
    with transport.watch(seconds) as watch:
        reply = transport.fetch(replace(get, method="HEAD"), watch=watch)
        left = watch.remaining()
    if reply.ok:
        return reply, left
    error = transport.refusal(reply)
    if not (decides or isinstance(error, Unsupported)):
        raise error
    log.debug("%s; asking by GET", error)
    return None, left


def _announced(reply: Reply, reference: Reference) -> Descriptor | None:
    """Return what the answer to a HEAD says a reference names, None where it says too little."""
    digest, size = announced_digest(reply), announced_size(reply)
    if isinstance(reference, Digest):
        if digest and digest.algorithm == reference.algorithm and digest != reference:
            raise ContentMismatch(f"{reply.what}: resolves to {digest}")
        digest = reference
    if digest is None or size is None or reply.encoded:
        return None
    return Descriptor(_media_type(reply), digest, size)


def _manifest_request(
    transport: Transport, repository: Repository, reference: Reference
) -> Request:
    url = transport.url(manifest_path(repository, reference))
    return Request("GET", url, pull(repository), {"Accept": ACCEPT}, hashed=True)


def _told_by_first_byte(
    repository: Repository, digest: Digest, transport: Transport, seconds: float
) -> int | None:
    """Return a blob's size in bytes as a GET of its first byte tells it, if it does."""
    # Of an empty blob no range can be asked for (416), and all of it costs nothing.
    end = None if digest.matches(b"") else 1
    request = blob_request(repository, digest, 0, end, transport)
    with transport.open(request, 0, end, seconds) as stream:
        return stream.total


def _media_type(reply: Reply) -> str:
    """Return the media type, or that of any bytes where there is none to be used."""
    return reply.media_type if MEDIA_TYPE.match(reply.media_type) else _UNTYPED
