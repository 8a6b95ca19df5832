"""Reads an OCI image layout on disk as a source of repositories, tags, manifests and blobs.

A layout is a directory of content with an index of the names in it. A plain tag belongs to a
repository named after the directory; a name such as `library/app:1.0` belongs to the repository in
it. A manifest without a name is tagged with the hexadecimal part of its digest.

The directory is as hostile as a registry: all content is hashed, links are not followed, and only
regular files are read. Source: OCI Image specification 1.1, image-layout.md.

Locks: `OciLayout._lock` guards `_read` and `_subjects`; no I/O happens under it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from epochfs.cache.answers import Question
from epochfs.cache.directory import READ_FLAGS
from epochfs.client import MirrorState
from epochfs.client.transport import TransportStats
from epochfs.errors import (
    ContentMismatch,
    Denied,
    EpochfsError,
    InvalidName,
    NotFound,
    ProtocolViolation,
    TooLarge,
    Unavailable,
    printable,
)
from epochfs.metadata.source import Answer
from epochfs.oci.manifests import REF_NAME, Descriptor, Document, Index, load_json, parse
from epochfs.oci.names import Digest, Reference, Repository, Tag, referrers_tag

log = logging.getLogger(__name__)

_INDEX_LIMIT = 32 * 1024 * 1024
_UNNAMED = Repository("layout")
"""The repository where the directory's own name is no valid repository name."""

_READ_FLAGS = READ_FLAGS | os.O_NONBLOCK
"""O_NONBLOCK: opening a FIFO in place of a file would block."""

Names = Mapping[Repository, Mapping[Tag, Descriptor]]
Identity = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class _Contents:
    """The parsed `index.json`, valid while the file has this identity."""

    identity: Identity
    names: Names

    @cached_property
    def media_types(self) -> Mapping[Digest, str]:
        """The types of the manifests that have names."""
        named = (one for tags in self.names.values() for one in tags.values())
        return {one.digest: one.media_type for one in named}


class OciLayout:
    """The layout in one directory, a `Source`; `index.json` is read again when it changes."""

    stats = TransportStats()
    token_expiry: float | None = None
    mirrors: tuple[MirrorState, ...] = ()
    """Nothing is ever transported."""

    def __init__(self, directory: Path, manifest_limit: int) -> None:
        """Open a layout; the limit is in bytes. Raises NotFound or ProtocolViolation for none."""
        self.own_repository = _repository_of(directory)
        """The repository of what has no repository in its name."""
        self._manifest_limit = manifest_limit
        self._lock = threading.Lock()
        self._read: _Contents | None = None
        self._subjects: tuple[Mapping[Digest, list[Descriptor]], Identity | None] = {}, None
        with _disk_errors(printable(directory)):
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            layout = load_json(self._small_file(("oci-layout",), _INDEX_LIMIT))
            if not isinstance(layout, dict) or "imageLayoutVersion" not in layout:
                raise ProtocolViolation("oci-layout has no imageLayoutVersion")
            self._contents()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._directory)

    def located(self, name: str) -> tuple[Repository, Tag]:
        """Return the repository and tag of a name in `index.json`; raises InvalidName."""
        return _parse_name(name, self.own_repository)

    def catalog(self) -> Answer[list[str]]:
        return Answer([repository.name for repository in self._contents().names])

    def list_tags(self, name: Repository) -> Answer[list[str]]:
        return Answer([tag.name for tag in self._tags(name)])

    def resolve(self, name: Repository, reference: Reference) -> Answer[Descriptor]:
        tags = self._tags(name)
        if isinstance(reference, Tag):
            if reference not in tags:
                raise NotFound(f"no tag {reference} in {name}")
            return Answer(tags[reference])
        document = self.get_manifest(name, reference)
        return Answer(Descriptor(document.media_type, document.digest, document.size))

    def fetch_tag(self, name: Repository, tag: Tag, limit: int) -> Answer[Descriptor | Document]:
        return self.resolve(name, tag)

    def get_manifest(
        self, name: Repository, reference: Digest, limit: int | None = None
    ) -> Document:
        """Return a manifest. Only its content tells it from a blob here."""
        named = self._contents().media_types
        try:
            raw = self.read_blob(name, reference, self._manifest_limit if limit is None else limit)
        except TooLarge as error:
            if reference in named:
                raise
            raise NotFound(f"{reference} is not a manifest: {error}") from error
        document = Document(reference, named.get(reference, ""), raw)
        if document.readable_view is None and reference not in named:
            raise NotFound(f"{reference} is not a manifest")
        if document.media_type == document.own_type:
            return document
        return Document(reference, document.own_type, raw)

    def referrers(self, name: Repository, digest: Digest) -> Answer[list[Descriptor]]:
        """Return the manifests that have this subject, and those under the fallback tag."""
        tags = self._tags(name)
        found = [*self._referrers_by_subject().get(digest, ())]
        tag = referrers_tag(digest)
        if tag in tags:
            view = self.get_manifest(name, tags[tag].digest).readable_view
            found += view.manifests if isinstance(view, Index) else ()
        return Answer(found)

    def blob_size(self, name: Repository, digest: Digest) -> Answer[int]:
        self._tags(name)
        fd = self.open_blob(digest)
        try:
            return Answer(os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def read_blob(self, name: Repository, digest: Digest, limit: int) -> bytes:
        self._tags(name)
        data = self._small_file(_place(digest), limit)
        if not digest.matches(data):
            raise ContentMismatch(f"the layout's file does not have digest {digest}")
        return data

    def amend(self, now: Mapping[Question, object], gone: Iterable[Question] = ()) -> None:
        """Nothing is remembered: who writes to a layout has written to what is read."""

    def open_blob(self, digest: Digest) -> int:
        """Return a descriptor of a file of content, unverified, for the caller to close."""
        return self._open(_place(digest))

    def _open(self, path: tuple[str, ...]) -> int:
        """Open a regular file below the directory, through no link."""
        directory = os.dup(self._directory)
        try:
            with _disk_errors("/".join(path)):
                for name in path[:-1]:
                    inner = os.open(name, _READ_FLAGS | os.O_DIRECTORY, dir_fd=directory)
                    os.close(directory)
                    directory = inner
                fd = os.open(path[-1], _READ_FLAGS, dir_fd=directory)
        finally:
            os.close(directory)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ProtocolViolation(f"{'/'.join(path)} is not a regular file")
        return fd

    def _small_file(self, path: tuple[str, ...], limit: int) -> bytes:
        with os.fdopen(self._open(path), "rb") as file, _disk_errors("/".join(path)):
            data = file.read(limit + 1)
        if len(data) > limit:
            raise TooLarge(f"{'/'.join(path)} is over {limit} bytes")
        return data

    def _tags(self, name: Repository) -> Mapping[Tag, Descriptor]:
        names = self._contents().names
        if name not in names:
            raise NotFound(f"the layout names nothing in {name}")
        return names[name]

    def _referrers_by_subject(self) -> Mapping[Digest, list[Descriptor]]:
        """Return the named manifests by their subjects; all are read, once."""
        contents = self._contents()
        with self._lock:
            known, identity = self._subjects
        if identity == contents.identity:
            return known
        found: dict[Digest, list[Descriptor]] = {}
        for name, tags in contents.names.items():
            for descriptor in tags.values():
                try:
                    subject = self.get_manifest(name, descriptor.digest).view.subject
                except (Unavailable, Denied):
                    raise  # its subject may be known soon
                except EpochfsError as error:
                    log.debug("no subject of %s: %s", descriptor.digest, error)
                    continue
                if subject is not None:
                    found.setdefault(subject.digest, []).append(descriptor)
        with self._lock:
            self._subjects = found, contents.identity
        return found

    def _contents(self) -> _Contents:
        fd = self._open(("index.json",))
        with os.fdopen(fd, "rb") as file, _disk_errors("index.json"):
            identity = identity_of(fd)
            with self._lock:
                known = self._read
            if known is not None and known.identity == identity:
                return known
            raw = file.read(_INDEX_LIMIT + 1)
        if len(raw) > _INDEX_LIMIT:
            raise TooLarge(f"index.json is over {_INDEX_LIMIT} bytes")
        index = parse(raw)
        if not isinstance(index, Index):
            raise ProtocolViolation("index.json is not an image index")
        read = _Contents(identity, _names(index, self.own_repository))
        with self._lock:
            self._read = read
        return read


def identity_of(fd: int) -> Identity:
    """Return the identity of a file, which changes when it is replaced or written to."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _place(digest: Digest) -> tuple[str, ...]:
    return "blobs", digest.algorithm, digest.encoded


def _repository_of(directory: Path) -> Repository:
    try:
        return Repository.parse(directory.resolve().name)
    except InvalidName:
        return _UNNAMED


def _names(index: Index, own: Repository) -> Names:
    """Return the names in an index; the first of several manifests with one name wins."""
    names: dict[Repository, dict[Tag, Descriptor]] = {}
    refused: list[InvalidName] = []
    for descriptor in index.manifests:
        repository, tag = own, Tag(descriptor.digest.encoded)
        if REF_NAME in descriptor.annotations:
            try:
                repository, tag = _parse_name(descriptor.annotations[REF_NAME], own)
            except InvalidName as error:
                refused.append(error)
        names.setdefault(repository, {}).setdefault(tag, descriptor)
    if refused:
        log.warning("%d names in a layout are shown by digest: %s", len(refused), refused[0])
    return names or {own: {}}


def _parse_name(text: str, own: Repository) -> tuple[Repository, Tag]:
    """Return the repository and tag that a name means; raises InvalidName.

    A colon in the last segment separates them; with slashes but no such colon the tag is `latest`.
    """
    before, colon, after = text.rpartition(":")
    if colon and "/" not in after:
        return Repository.parse(before), Tag.parse(after)
    if "/" in text:
        return Repository.parse(text), Tag("latest")
    return own, Tag.parse(text)


@contextlib.contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    """Turn an OSError of the layout's disk into an EpochfsError."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"the layout has no {what}") from None
    except PermissionError:
        raise Denied(f"{what} cannot be read") from None
    except OSError as error:
        raise Unavailable(f"{what}: {error.strerror or error}") from error
