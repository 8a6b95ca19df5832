"""Lists a pushed manifest among its subject's referrers, where the registry does not do it itself.

The list is an index under a tag made of the subject's digest (OCI Distribution Specification 1.1,
"Pushing Manifests with Subject", "Referrers Tag Schema").

Changes of one list are made in turn, as the next must begin with what the last has pushed; those of
other lists do not wait. Whoever waits does so no longer than the client's time limit.

Locks: that of the turns (`single_flight`) guards nothing else; no I/O happens under it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from epochfs.client.host import Host
from epochfs.client.single_flight import SingleFlight
from epochfs.errors import NotFound, ProtocolViolation, Unavailable
from epochfs.oci.manifests import OCI_INDEX, Document, Index, described_referrer, load_json
from epochfs.oci.names import Digest, Repository, Tag, referrers_tag

_ATTEMPTS = 5
_LARGEST = 4 * 1024 * 1024
"""Limit of a list in bytes: what every registry should take."""


class ReferrersTags:
    """The lists of one registry; thread-safe. `put` stores an index, of some type, under a tag."""

    def __init__(
        self, registry: Host, put: Callable[[Repository, Tag, bytes, str], object]
    ) -> None:
        self._registry = registry
        self._put = put
        self._turns = SingleFlight[tuple[Repository, Tag], None](
            threading.Lock(),
            lambda *_: None,
            lambda key: f"the list of referrers {key[1]} in {key[0]} is being changed by others",
            in_turn=True,
        )

    def add(self, repository: Repository, document: Document, subject: Digest) -> None:
        """List a manifest among the referrers of `subject`, unless it is listed already.

        It is looked for again once it was added, since another client may have pushed an older list
        meanwhile. Raises what the client does; ProtocolViolation if the tag names no index.
        """
        tag = referrers_tag(subject)
        change = partial(self._change, repository, tag, document)
        deadline = time.monotonic() + self._registry.transport.timeout
        self._turns.do((repository, tag), lambda: None, change, deadline)

    def _change(self, repository: Repository, tag: Tag, document: Document) -> None:
        for _ in range(_ATTEMPTS):
            index, view = self._read(repository, tag)
            if any(one.digest == document.digest for one in view.manifests):
                return
            index["manifests"] = [*(index.get("manifests") or ()), described_referrer(document)]
            kind = str(index.get("mediaType", OCI_INDEX))
            self._put(repository, tag, json.dumps(index).encode(), kind)
        raise Unavailable(
            f"{document.digest} in {repository} is not listed as a referrer: others keep changing "
            f"the tag {tag}; push it again"
        )

    def _read(self, repository: Repository, tag: Tag) -> tuple[dict[str, Any], Index]:
        """Return a list as it stands, and its view; an empty one if there is none."""
        registry = self._registry
        try:
            found = registry.manifest(registry.transport.timeout, repository, tag, _LARGEST)
        except NotFound:
            empty = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
            return empty, Index((), None, "", {})
        view = found.view
        if not isinstance(view, Index):
            raise ProtocolViolation(f"the tag {tag} in {repository} is no index of referrers")
        index: dict[str, Any] = load_json(found.raw)
        return index, view
