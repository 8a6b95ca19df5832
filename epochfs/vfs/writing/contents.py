"""Settles files and links under their final names: proved, then sent, or kept until they can be.

What is derived from a manifest is never sent: it is accepted if it is what the tree shows, and kept
here as long as the tree does not show it yet.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable
from functools import partial

from epochfs.errors import (
    ContentMismatch,
    EpochfsError,
    NotFound,
    NotPermitted,
    ProtocolViolation,
    UsageError,
    printable,
)
from epochfs.oci.manifests import (
    OCI_INDEX,
    OCI_MANIFEST,
    REF_NAME,
    Document,
    Index,
    digest_matches,
    load_json,
)
from epochfs.oci.names import Digest, Repository, Tag
from epochfs.vfs.manifest_directory import ManifestDirectory, ManifestFile
from epochfs.vfs.node import Context, ManifestNode, Node
from epochfs.vfs.tree import BlobFile, TagLink
from epochfs.vfs.views.layout import (
    INDEX_FILE,
    LAYOUT_FILE,
    VERSION,
    ContentLink,
    IndexFile,
    LayoutFile,
)
from epochfs.vfs.writing.idle import StagedInMemory
from epochfs.vfs.writing.keeping import Keeper
from epochfs.vfs.writing.local import LocalFile, LocalLink, LocalTree, SentFile
from epochfs.vfs.writing.places import Place, place_of, tagged_digest
from epochfs.vfs.writing.publisher import Publisher
from epochfs.vfs.writing.waiting import Content, ContentKind, Tagged, Waiter

log = logging.getLogger(__name__)

_PIECE = 1 << 20


class Contents:
    """Settles files and links. Any thread may call anything."""

    def __init__(
        self,
        find: Callable[[str], Node],
        context: Context,
        local: LocalTree,
        publisher: Publisher,
        keeper: Keeper,
        manifest_limit: int,
    ) -> None:
        """`find` returns the tree's node of a path; `manifest_limit` is in bytes."""
        self._find = find
        self._context = context
        self._local = local
        self._publisher = publisher
        self._keeper = keeper
        self._limit = manifest_limit

    # ---- files -------------------------------------------------------------------------------

    def settle_file(self, place: Place, file: LocalFile, path: str) -> bool:
        """Prove and send a file that is whole, or have it wait; return whether it is kept here.

        Raises why it cannot be, and then nothing waits.
        """
        if isinstance(place, BlobFile):
            self._prove(file, place.digest)
            self._publisher.blob(place.repository, place.digest, file.staged)
            self._keeper.keep(file, place.digest)
            self._local.note_sent(path, stat.S_IFREG)
            self._drop_link(path.rpartition("/blobs/")[0], place.digest)
            return False
        if isinstance(place, ManifestFile):
            return self._settle_manifest(place.repository, place.digest, file, path)
        if isinstance(place, ContentLink):
            return self._settle_content(place, file, path)
        if isinstance(place, IndexFile):
            return self._settle_index(place, file, path)
        if isinstance(place, LayoutFile):
            if _version(file.staged.read_all(_PIECE)) != _version(VERSION):
                raise UsageError(f"{LAYOUT_FILE} of a layout is {VERSION.decode()}")
            file.proved = True
            return True
        self.check_file(place)
        assert isinstance(place, ManifestNode)  # not a tag, which was refused
        return not self._is_shown_file(place, file)

    def check_file(self, place: Place) -> None:
        """Raise NotPermitted where there can be no file: a tag, or what no manifest leads to."""
        if isinstance(place, TagLink):
            raise NotPermitted("a tag is a link to ../manifests/<digest>, and no file")
        if is_derived(place) and not self.is_shown(place):
            assert isinstance(place, ManifestNode)
            if self.is_shown(ManifestDirectory(place.repository, place.digest)):
                raise NotPermitted(f"nothing is derived from {place.digest} under this name")

    def _prove(self, file: LocalFile, digest: Digest) -> None:
        found = file.staged.digest(digest.algorithm)
        if found != digest:
            raise ContentMismatch(f"the {file.staged.size} bytes written hash to {found}")
        file.proved = True

    def _settle_manifest(
        self, repository: Repository, digest: Digest, file: LocalFile, path: str
    ) -> bool:
        document = self._document(file, digest)

        def sent() -> None:
            self._local.give(path, file)
            directory = path.rpartition("/")[0]
            self._drop_derived(directory)
            self._local.note_sent(directory, stat.S_IFDIR)
            self._drop_link(directory.rpartition("/manifests/")[0], digest)

        return not self._publisher.manifest(repository, document, sent)

    def _document(self, file: LocalFile, digest: Digest) -> Document:
        """Return the manifest that was written; raises TooLarge, ContentMismatch."""
        raw = file.staged.read_all(self._limit)
        if not digest_matches(digest, raw):
            raise ContentMismatch(f"the {len(raw)} bytes written hash to {Digest.of(raw)}")
        file.proved = True
        return Document(digest, OCI_MANIFEST, raw)

    def _drop_link(self, repository: str, digest: Digest) -> None:
        """Leave a link of the layout below a repository's path to the tree, which now has it."""
        path = f"{repository}/layout/blobs/{digest.algorithm}/{digest.encoded}"
        local = self._local.get(path)
        if isinstance(local, LocalLink):
            self._local.give(path, local)

    def _is_named(self, place: ContentLink) -> bool:
        """Whether a manifest is known to name something as a blob."""
        return self._context.listings.names_blob(place.repository, place.digest)

    def _drop_derived(self, directory: str) -> None:
        """Drop what was kept below a manifest's directory until the tree shows it."""
        for path, local in self._local.below(directory):
            try:
                if isinstance(local, LocalLink):
                    self._local.give(path, local)
                elif isinstance(local, LocalFile) and local.is_final and local.writers == 0:
                    place = place_of(self._find, path)
                    if isinstance(place, ManifestNode) and self._is_shown_file(place, local):
                        self._local.give(path, local)
            except EpochfsError as error:
                log.warning("%s is kept, and not in the registry: %s", printable(path), error)
        self._local.prune(directory)

    # ---- a layout's files --------------------------------------------------------------------

    def _settle_content(self, place: ContentLink, file: LocalFile, path: str) -> bool:
        """Send a file of `layout/blobs`: a manifest if it is one, else a blob.

        A blob may look like a manifest, too: the bytes stay at hand for what names it so.
        """
        self._prove(file, place.digest)
        repository, digest = place.repository, place.digest
        document = self._manifest_in(file, digest)
        if document is None:
            self._publisher.blob(repository, digest, file.staged)
            # It goes on being a regular file, which the writer may look at, and not a link.
            self._local.put(path, SentFile(BlobFile(repository, digest)))
            return False

        def sent() -> None:
            self._publisher.spare(repository, digest, None)
            self._local.put(path, SentFile(ManifestFile(repository, digest)))

        self._publisher.spare(repository, digest, StagedInMemory(document.raw))
        try:
            return not self._publisher.manifest(repository, document, sent)
        except EpochfsError:
            self._publisher.spare(repository, digest, None)
            raise

    def _manifest_in(self, file: LocalFile, digest: Digest) -> Document | None:
        """Return a file as a manifest, if it is one."""
        if file.staged.size > self._limit:
            return None
        document = Document(digest, OCI_MANIFEST, file.staged.read_all(self._limit))
        return document if document.readable_view is not None else None

    def _settle_index(self, place: IndexFile, file: LocalFile, path: str) -> bool:
        """Tag as the index of a layout says; tags that it does not have are left alone."""
        wanted = _tags_of(file.staged.read_all(self._limit))
        file.proved = True
        repository = place.repository
        self._publisher.touch(repository)
        pending = set(wanted)

        def sent(tag: Tag) -> None:
            pending.discard(tag)
            if not pending:
                self._local.give(path, file)

        for tag, digest in wanted.items():
            if self._publisher.is_tagged(repository, tag, digest):
                sent(tag)
            else:
                self._publisher.tag(repository, tag, digest, partial(sent, tag))
        return bool(pending)

    # ---- links -------------------------------------------------------------------------------

    def settle_link(self, place: Place, link: LocalLink, path: str) -> bool:
        """Tag a manifest, or accept a derived link; return whether the link is kept here."""
        if isinstance(place, TagLink):
            return not self._tag(place, link, path)
        if isinstance(place, BlobFile | ManifestFile | IndexFile | LayoutFile):
            raise NotPermitted("content is a regular file here, and no link")
        if isinstance(place, ContentLink) and not self._is_named(place):
            # Asked for each link of a layout, a registry would be asked three times.
            if link.to not in _targets(place.digest):
                raise NotPermitted(f"this is a link to where {place.digest} is")
            return True
        try:
            shown = place.target(self._context)
        except NotFound:
            return True
        except NotImplementedError:
            raise NotPermitted("this is no link") from None
        if shown != link.to:
            raise NotPermitted(f"this is a link to {shown}, as its manifest says")
        return False

    def _tag(self, place: TagLink, link: LocalLink, path: str) -> bool:
        """Have a tag name what a link says; return whether nothing of it is to be shown here."""
        digest = tagged_digest(link.to)

        def sent() -> None:
            self._local.give(path, link)

        was_sent = self._publisher.tag(place.repository, place.tag, digest, sent)
        return was_sent or self.is_shown(place)

    # ---- what the tree shows -----------------------------------------------------------------

    def is_shown(self, node: Node) -> bool:
        """Whether the tree has a node."""
        try:
            node.attr(self._context)
        except NotFound:
            return False
        return True

    def _is_shown_file(self, place: ManifestNode, file: LocalFile) -> bool:
        """Whether the tree shows a file; raises NotPermitted if it shows another in its place."""
        try:
            size = place.attr(self._context).size
            opened = place.open(self._context).file
        except NotFound:
            return False
        file.hold()
        staged = file.staged
        try:
            same = size == staged.size
            for offset in range(0, size if same else 0, _PIECE):
                mine = memoryview(bytearray(min(_PIECE, size - offset)))
                theirs = memoryview(bytearray(len(mine)))
                staged.read_into(mine, offset)
                opened.read_into(theirs, offset)
                same = same and mine == theirs
        finally:
            opened.close()
            file.let_go()
        if not same:
            raise NotPermitted("this file is derived from its manifest, and has other bytes")
        return True


def is_derived(place: Place | None) -> bool:
    """Whether what is at a place is made from a manifest, and never sent."""
    return isinstance(place, ManifestNode) and not isinstance(
        place, ManifestFile | ManifestDirectory
    )


def waiter_of(place: Place | None) -> Waiter | None:
    """Return what may wait under a path, by its place."""
    if isinstance(place, TagLink):
        return Tagged(place.repository, place.tag)
    if isinstance(place, ManifestFile | ContentLink | ManifestDirectory):
        return Content(place.repository, place.digest, ContentKind.MANIFEST)
    return None


def _version(raw: bytes) -> object:
    """Return the version that an `oci-layout` file states (image-spec, image-layout.md)."""
    try:
        document = load_json(raw)
    except ProtocolViolation:
        return None
    return document.get("imageLayoutVersion") if isinstance(document, dict) else None


def _tags_of(raw: bytes) -> dict[Tag, Digest]:
    """Return the tags in the index of a layout (image-spec, image-layout.md); raises UsageError."""
    try:
        view = Document(Digest.of(raw), OCI_INDEX, raw).view
    except ProtocolViolation as error:
        raise UsageError(f"{INDEX_FILE} is not the index of a layout: {error}") from error
    if not isinstance(view, Index):
        raise UsageError(f"{INDEX_FILE} is a manifest, and not the index of a layout")
    tags = {}
    for descriptor in view.manifests:
        if name := descriptor.annotations.get(REF_NAME, ""):
            tag = Tag(name)
            if not tag.conforms:
                raise UsageError(f"{REF_NAME} is '{printable(name)}', which cannot be a tag")
            tags[tag] = descriptor.digest
    return tags


def _targets(digest: Digest) -> tuple[str, str]:
    """Return where a link of a layout may lead: to a blob, or to a manifest."""
    return f"../../../blobs/{digest}", f"../../../manifests/{digest}/manifest.json"
