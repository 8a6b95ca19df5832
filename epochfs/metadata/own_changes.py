"""Tells what is remembered of a registry what this process itself wrote to it, or removed from it.

After each of these calls the listings show it, without having asked the registry. What is listed
grows no younger by it: it is asked for again when it would have been, and what the registry then
says is believed, for somebody else may have changed it since.

The registry is asked anew only where nobody can tell what it would say: the referrers of a
manifest, the tags after a manifest is gone, and the catalog where a repository may be gone. Nothing
here waits for the network.
"""

from __future__ import annotations

from collections.abc import Callable

from epochfs.cache.answers import Question
from epochfs.cache.tag_history import TagHistory
from epochfs.errors import NotFound
from epochfs.metadata.content import Documents, Referrers
from epochfs.metadata.repositories import Repositories
from epochfs.metadata.source import Kind, Source
from epochfs.metadata.ttl_cache import Resolved, TagKey, TtlCache
from epochfs.oci.manifests import Descriptor, Document
from epochfs.oci.names import Digest, Reference, Repository, Tag


class OwnChanges:
    """What this process changed in one registry. Any thread may call anything.

    Each is called after the registry has confirmed the change. Where one tag is written twice, the
    calls are to be in the order of the writes.
    """

    def __init__(
        self,
        source: Source,
        history: TagHistory,
        repositories: Repositories,
        resolved: TtlCache[TagKey, Resolved],
        heads: TtlCache[tuple[Repository, Digest], Descriptor],
        documents: Documents,
        referrers: Referrers,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called when manifests came or went."""
        self._source = source
        self._history = history
        self._repositories = repositories
        self._resolved = resolved
        self._heads = heads
        self._documents = documents
        self._referrers = referrers
        self._changed = changed
        self.has_tagged = False
        """Whether a tag was written: only then can an answer about one be older than we know."""

    def wrote_blob(self, repository: Repository, descriptor: Descriptor) -> None:
        """Note that a repository has a blob."""
        self._heads.put((repository, descriptor.digest), descriptor)
        self._source.amend({_about(Kind.SIZE, repository, descriptor.digest): descriptor.size})

    def wrote_manifest(self, repository: Repository, document: Document) -> None:
        """Note that a repository has a manifest, which may be its first."""
        described = self._documents.wrote(repository, document)
        self._repositories.wrote(repository)
        self._refers_anew(repository, document)
        self._changed()
        self._source.amend(
            {
                _about(Kind.MANIFEST, repository, document.digest): document,
                _about(Kind.DESCRIPTION, repository, document.digest): described,
            }
        )

    def wrote_tag(self, repository: Repository, tag: Tag, digest: Digest) -> None:
        """Note that a tag names a manifest, since now if it did not before."""
        self.has_tagged = True
        since = self._history.since(repository, tag, digest)
        self._resolved.put((repository, tag), Resolved(digest, since))
        self._referrers.retagged(repository, tag)
        self._repositories.wrote(repository, tag)
        described = self._documents.known_description(repository, digest)
        name = _about(Kind.DESCRIPTION, repository, tag)
        if described is None:
            self._source.amend({}, [name])
        else:
            self._source.amend({name: described})

    def removed_blob(self, repository: Repository, digest: Digest) -> None:
        """Note that a repository no longer has a blob."""
        absent = NotFound(f"the blob {digest} was deleted from {repository}")
        self._documents.removed_blob(repository, digest, absent)
        self._heads.put_absent((repository, digest), absent)
        about = (Kind.SIZE, Kind.CONTENT)
        self._source.amend({}, [_about(kind, repository, digest) for kind in about])

    def removed_manifest(self, repository: Repository, digest: Digest) -> None:
        """Note that a repository no longer has a manifest, nor the tags that named it."""
        absent = NotFound(f"the manifest {digest} was deleted from {repository}")
        document = self._documents.removed_manifest(repository, digest, absent)
        if document is not None:
            self._refers_anew(repository, document)
        about = (Kind.MANIFEST, Kind.DESCRIPTION)
        gone = [_about(kind, repository, digest) for kind in about]
        for tag in self._repositories.last_tags(repository):
            resolved = self._resolved.last((repository, tag))
            if resolved is not None and resolved.digest == digest:
                self._resolved.expire((repository, tag))
                self._referrers.retagged(repository, tag)
                gone.append(_about(Kind.DESCRIPTION, repository, tag))
        self._repositories.removed(repository)
        self._changed()
        self._source.amend({}, gone)

    def removed_tag(self, repository: Repository, tag: Tag) -> None:
        """Note that a repository no longer has a tag."""
        absent = NotFound(f"the tag {tag} was deleted from {repository}")
        self._resolved.put_absent((repository, tag), absent)
        self._referrers.retagged(repository, tag)
        self._repositories.removed(repository, tag)
        self._source.amend({}, [_about(Kind.DESCRIPTION, repository, tag)])

    def _refers_anew(self, repository: Repository, document: Document) -> None:
        """Have the referrers of a manifest's subject asked for anew."""
        view = document.readable_view
        if view is not None and view.subject is not None:
            subject = view.subject.digest
            self._referrers.changed(repository, subject)
            self._source.amend({}, [_about(Kind.REFERRERS, repository, subject)])


def _about(kind: Kind, repository: Repository, name: Reference) -> Question:
    return Question(kind, repository.name, str(name))
