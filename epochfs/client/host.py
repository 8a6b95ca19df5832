"""One host that serves a registry's content: the registry itself, or a mirror of it.

One method per endpoint that reads; each ends within `seconds`, if it is given. `RegistryClient`
documents what they return and raise ("§" is a section of the OCI Distribution Specification 1.1).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from urllib.parse import quote

from epochfs.client.transport import BlobStream, Reply, Request, Transport, Url, Watch, next_page
from epochfs.errors import (
    ContentMismatch,
    Denied,
    EpochfsError,
    InvalidName,
    NotFound,
    ProtocolViolation,
    TooLarge,
    Unavailable,
    Unsupported,
    printable,
)
from epochfs.oci.manifests import (
    ACCEPT,
    OCI_INDEX,
    Descriptor,
    Document,
    Index,
    digest_matches,
    load_json,
    parse,
    payload,
)
from epochfs.oci.names import Digest, Reference, Repository, Tag

log = logging.getLogger(__name__)

_BLANK = b"\xef\xbb\xbf \t\r\n"
"""What may precede a JSON document: even a byte order mark, though it is not allowed."""

_FAILED = "UNKNOWN"
"""What Docker's registry calls a failure of its own, with the status 500."""

_PAGE_NAMES = 1000
"""Names to ask for at a time: the most that registries commonly allow."""

_PAGE_LIMIT = 32 * 1024 * 1024
"""Limit of one page of a listing, in bytes."""

_MOST_PAGES = 10_000
_MOST_NAMES = 1_000_000
_MOST_REFERRERS = 100_000


class Host:
    """A host, over its transport; thread-safe.

    The one that `decides`, the registry itself, is asked again by GET where it refuses HEAD. Other
    hosts are not asked twice, unless what they refuse is HEAD itself.
    """

    def __init__(self, transport: Transport, *, decides: bool = True) -> None:
        self.transport = transport
        self._decides = decides

    def ping(self, seconds: float) -> Reply:
        """Check that the host answers, and admits us; return its answer."""
        transport = self.transport
        with transport.watch(seconds) as watch:
            reply = transport.fetch(Request("GET", transport.url("/")), watch=watch)
            if reply.ok:
                return reply
            error = transport.refusal(reply)
            if isinstance(error, Denied) and not reply.what.authorization:
                catalog = transport.url("/_catalog").with_parameter("n", "1")
                request = Request("GET", catalog, "registry:catalog")
                listed = transport.fetch(request, _PAGE_LIMIT, watch)
                if listed.ok:
                    return listed
            if isinstance(error, Denied | NotFound) or error.explained:
                raise error
            raise ProtocolViolation(f"{reply.what}: {reply.status}: not an OCI registry")

    def catalog(self) -> list[str]:
        return self._names("/_catalog", "registry:catalog", "repositories")

    def tags(self, repository: Repository) -> list[str]:
        path = f"{repository_path(repository)}/tags/list"
        return self._names(path, f"{repository.name}:pull", "tags")

    def referrers(self, repository: Repository, digest: Digest) -> list[Descriptor]:
        """Return all referrers; raises ProtocolViolation rather than pass some of them for all."""
        listing = self.transport.url(f"{repository_path(repository)}/referrers/{digest}")
        found: list[Descriptor] = []
        scope = f"{repository.name}:pull"
        pages = self._pages(listing, scope, listing, refused=_without_referrers)
        for number, reply in enumerate(pages):
            if number == 0 and not _is_of_an_index(reply):
                what = ProtocolViolation(f"{reply.what}: the answer is not an index")
                raise _without_referrers(what)
            page = parse(reply.body)
            if not isinstance(page, Index):
                raise ProtocolViolation(f"{reply.what}: the referrers are not an index")
            found += page.manifests
            if len(found) > _MOST_REFERRERS:
                raise ProtocolViolation(f"{reply.what}: over {_MOST_REFERRERS} referrers")
        return found

    def manifest(
        self, seconds: float, repository: Repository, reference: Reference, limit: int
    ) -> Document:
        reply = self._fetched(seconds, repository, reference, limit)
        announced = announced_digest(reply)
        if announced is None and not isinstance(reference, Digest):
            reply.check_encoding()
            if not reply.body.lstrip(_BLANK).startswith(b"{"):
                # No digest vouches for it, and a login page must not pass for the manifest.
                raise ProtocolViolation(f"{reply.what}: the answer is not a manifest")
        for digest in dict.fromkeys((reference, announced)):  # mostly one: hashed once
            if isinstance(digest, Digest) and not digest_matches(digest, reply.body):
                raise ContentMismatch(f"{reply.what}: the manifest does not have digest {digest}")
        named = reference if isinstance(reference, Digest) else announced
        return Document(named or Digest.of(payload(reply.body)), reply.media_type, reply.body)

    def _fetched(
        self, seconds: float, repository: Repository, reference: Reference, limit: int
    ) -> Reply:
        """Return the answer to a GET of a manifest; raises NotFound for a blob's digest."""
        request = self._manifest_request(repository, reference)
        if not (isinstance(reference, Digest) and self._decides):
            return self.accepted(self.transport.fetch(request, limit, seconds=seconds))
        started = time.monotonic()
        once = replace(request, final_code=_FAILED)
        try:
            return self.accepted(self.transport.fetch(once, limit, seconds=seconds))
        except Unavailable as error:
            left = seconds - (time.monotonic() - started)
            if not error.is_final or left <= 0:
                raise
            # Docker's registry reads a blob of that digest, and fails as it is no manifest.
            try:
                self.check_blob(left, repository, reference)
            except NotFound:
                log.debug("%s; asking again", error)
            else:
                raise NotFound(f"{reference} in {repository} is a blob") from error
        left = max(seconds - (time.monotonic() - started), 0.001)
        return self.accepted(self.transport.fetch(request, limit, seconds=left))

    def resolve(
        self, seconds: float, repository: Repository, reference: Reference, limit: int
    ) -> Descriptor:
        """Ask what a reference names now: by HEAD, or else by GET of at most `limit` bytes."""
        request = self._manifest_request(repository, reference)
        reply, left = self._head(request, seconds)
        found = None if reply is None else _announced(reply, reference)
        if found is None:
            document = self.manifest(left, repository, reference, limit)
            found = Descriptor(document.media_type, document.digest, document.size)
        return found

    def check_manifest(
        self, seconds: float, repository: Repository, reference: Reference, limit: int
    ) -> None:
        request = self._manifest_request(repository, reference)
        reply, left = self._head(request, seconds)
        if reply is None:
            self.transport.open(request, 0, None, left).close()
        elif isinstance(reference, Digest) and announced_digest(reply) != reference:
            # Whatever answers 200 to everything names no digest.
            self.manifest(left, repository, reference, limit)

    def check_blob(self, seconds: float, repository: Repository, digest: Digest) -> None:
        reply, left = self._head(self._blob_request(repository, digest), seconds)
        if reply is None:
            self._told_by_first_byte(left, repository, digest)

    def has_blob(self, seconds: float, repository: Repository, digest: Digest, size: int) -> bool:
        """Whether a blob need not be sent. A 404 is believed: sending it again does no harm."""
        started = time.monotonic()
        head = replace(self._blob_request(repository, digest), method="HEAD")
        reply = self.transport.fetch(head, seconds=seconds)
        if reply.status == 404:
            return False
        if reply.ok and reply.content_length is not None:
            return reply.content_length == size
        left = max(seconds - (time.monotonic() - started), 0.001)
        return self._told_by_first_byte(left, repository, digest) == size

    def blob_size(self, seconds: float, repository: Repository, digest: Digest) -> int:
        """Ask for a blob's size in bytes: by HEAD, or else by GET of its first byte."""
        reply, left = self._head(self._blob_request(repository, digest), seconds)
        size = None if reply is None else reply.content_length
        if size is None:
            size = self._told_by_first_byte(left, repository, digest)
        if size is None:
            raise ProtocolViolation(f"{digest} in {repository}: its size is not stated")
        return size

    def small_blob(
        self, seconds: float, repository: Repository, digest: Digest, limit: int
    ) -> bytes:
        request = self._blob_request(repository, digest)
        reply = self.accepted(self.transport.fetch(request, limit, seconds=seconds))
        if not digest.matches(reply.body):
            raise ContentMismatch(f"{reply.what}: the blob does not have digest {digest}")
        return reply.body

    def open_blob(
        self, seconds: float, repository: Repository, digest: Digest, start: int, end: int | None
    ) -> BlobStream:
        request = self._blob_request(repository, digest, start, end)
        return self.transport.open(request, start, end, seconds)

    def accepted(self, reply: Reply) -> Reply:
        """Return a 2xx reply, or raise what its status means."""
        if not reply.ok:
            raise self.transport.refusal(reply)
        return reply

    def _head(self, get: Request, seconds: float) -> tuple[Reply | None, float]:
        """Return the answer to a HEAD of what `get` asks for, and the seconds left.

        None stands for a refusal that is not to be believed: GET decides, as its body has the
        reason. Some registries refuse HEAD, in any words, for what GET gives, and redirect to URLs
        that are signed for GET alone.
        """
        started = time.monotonic()
        reply = self.transport.fetch(replace(get, method="HEAD"), seconds=seconds)
        left = max(seconds - (time.monotonic() - started), 0.001)
        if reply.ok:
            return reply, left
        error = self.transport.refusal(reply)
        if not (self._decides or isinstance(error, Unsupported)):
            raise error
        log.debug("%s; asking by GET", error)
        return None, left

    def _told_by_first_byte(
        self, seconds: float, repository: Repository, digest: Digest
    ) -> int | None:
        """Return a blob's size in bytes as a GET of its first byte tells it, if it does."""
        # An empty blob has no range (416), and all of it costs nothing.
        end = None if digest.matches(b"") else 1
        # Not `open_blob`: what a mirror's does about its pace is for content.
        request = self._blob_request(repository, digest, 0, end)
        with self.transport.open(request, 0, end, seconds) as stream:
            return stream.total

    def _manifest_request(self, repository: Repository, reference: Reference) -> Request:
        url = self.transport.url(manifest_path(repository, reference))
        scope = f"{repository.name}:pull"
        return Request("GET", url, scope, {"Accept": ACCEPT}, hashed=True)

    def _blob_request(
        self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None
    ) -> Request:
        headers = {}
        if start > 0 or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        url = self.transport.url(blob_path(repository, digest))
        return Request("GET", url, f"{repository.name}:pull", headers, hashed=True)

    def _names(self, path: str, scope: str, key: str) -> list[str]:
        """Return the names under `key` in all pages of the listing at `path`, as the server sent
        them, within one time limit. Anything but strings is left out, with one warning.

        Raises ProtocolViolation for pages that never end, are too large or are no listing.
        """
        listing = self.transport.url(path)
        what = f"{listing.origin.site}{listing.path}"
        found: list[str] = []
        left_out = 0
        for reply in self._pages(listing, scope, listing.with_parameter("n", str(_PAGE_NAMES))):
            page = load_json(reply.body)
            if not isinstance(page, dict):
                raise ProtocolViolation(f"{reply.what}: the listing is not a JSON object")
            items = page.get(key)
            if items is None:  # what some registries send for an empty list
                continue
            if not isinstance(items, list):
                raise ProtocolViolation(f"{what}: '{key}' is not a list")
            texts = [item for item in items if isinstance(item, str)]
            left_out += len(items) - len(texts)
            found += texts
            if len(found) > _MOST_NAMES:
                raise ProtocolViolation(f"{what}: over {_MOST_NAMES} names")
        if left_out:
            log.warning("%s: left out %d names that are not strings", what, left_out)
        return found

    def _pages(
        self,
        listing: Url,
        scope: str,
        first: Url,
        refused: Callable[[EpochfsError], EpochfsError] = lambda error: error,
    ) -> Iterator[Reply]:
        """Yield the pages of a listing from `first` on, or, if that is refused, from `listing` on.

        `refused` turns the refusal of the whole listing into the error to raise.
        """
        transport = self.transport
        with transport.watch() as watch:
            url: Url | None = first
            seen: set[Url] = set()
            begun = False
            while url is not None:
                if url in seen or len(seen) == _MOST_PAGES:
                    raise ProtocolViolation(f"{listing}: the pages never end")
                seen.add(url)
                reply = self._page(Request("GET", url, scope), watch)
                if reply.status == 400 and url == first != listing:
                    url = listing  # it allows fewer names per page: let it choose
                    continue
                if not reply.ok:
                    refusal = transport.refusal(reply)
                    if begun and isinstance(refusal, NotFound | Unsupported):
                        # The listing must not pass for one that does not exist.
                        raise ProtocolViolation(f"{refusal}: a listing names this as its next page")
                    raise refusal if begun else refused(refusal)
                begun = True
                yield reply
                here = transport.base.at(reply.url.target)
                url = next_page(reply.headers.get("Link", ""), here, transport.root)
                url = None if url is None else transport.in_namespace(url)

    def _page(self, request: Request, watch: Watch) -> Reply:
        """Fetch a page, of bounded size and number of names."""
        try:
            reply = self.transport.fetch(request, _PAGE_LIMIT, watch)
        except TooLarge as error:
            raise ProtocolViolation(str(error)) from error
        # All but the first name follow a comma. Counted before parsing, as three bytes of an empty
        # list become sixty in memory.
        if reply.ok and reply.body.count(b",") > _MOST_NAMES:
            raise ProtocolViolation(f"{reply.what}: over {_MOST_NAMES} names")
        return reply


def repository_path(repository: Repository) -> str:
    """Return the path of a repository, below the API's root."""
    return f"/{quote(repository.name)}"


def manifest_path(repository: Repository, reference: Reference) -> str:
    """Return the path of a manifest."""
    name = reference.name if isinstance(reference, Tag) else str(reference)
    return f"/{quote(repository.name)}/manifests/{quote(name, safe=':')}"


def blob_path(repository: Repository, digest: Digest) -> str:
    """Return the path of a blob."""
    return f"/{quote(repository.name)}/blobs/{digest}"


def announced_digest(reply: Reply) -> Digest | None:
    """Return the Docker-Content-Digest, or None for a missing or malformed one."""
    text = reply.headers.get("Docker-Content-Digest", "")
    try:
        return Digest.parse(text)
    except InvalidName:
        if text:
            log.debug("%s: a malformed Docker-Content-Digest: %s", reply.what, printable(text))
        return None


def _announced(reply: Reply, reference: Reference) -> Descriptor | None:
    """Return what the answer to a HEAD says a reference names, None where it says too little."""
    digest, size = announced_digest(reply), reply.content_length
    if isinstance(reference, Digest):
        if digest and digest.algorithm == reference.algorithm and digest != reference:
            raise ContentMismatch(f"{reply.what}: resolves to {digest}")
        digest = reference
    if digest is None or size is None or reply.encoded:
        return None
    return Descriptor(reply.media_type, digest, size)


def _without_referrers(error: EpochfsError) -> Unsupported:
    """Return the error for the refusal of a call that registries need not offer."""
    unsupported = Unsupported(f"{error}: the registry has no referrers")
    unsupported.__cause__ = error
    return unsupported


def _is_of_an_index(reply: Reply) -> bool:
    """Whether an answer is meant to be an index, by its type or its JSON, even if malformed."""
    if reply.media_type.lower() == OCI_INDEX:
        return True
    try:
        document = load_json(reply.body)
    except ProtocolViolation:
        return False
    return isinstance(document, dict) and isinstance(document.get("manifests", 0), list | None)
