"""Listings: all pages of a catalog, of a repository's tags, of referrers, within bounds.

OCI Distribution Specification 1.1, "Listing Tags" and "Listing Referrers"; RFC 8288 for the `Link`
between pages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from epochfs.client.transport import Reply, Request, Transport, Url
from epochfs.errors import EpochfsError, NotFound, ProtocolViolation, TooLarge, Unsupported
from epochfs.oci.manifests import OCI_INDEX, Descriptor, Index, load_json, parse

log = logging.getLogger(__name__)

_PAGE_NAMES = 1000
"""How many names to ask for at a time: the most that registries commonly allow."""

PAGE_LIMIT = 32 * 1024 * 1024
"""Limit of one page, in bytes."""

_MOST_PAGES = 10_000
_MOST_NAMES = 1_000_000
_MOST_REFERRERS = 100_000


def names(transport: Transport, path: str, scope: str, key: str) -> list[str]:
    """Return the names under `key` in all pages of the listing at `path`, as the server sent
    them, within one time limit. What is no text is left out, with one warning.

    Raises ProtocolViolation for pages that never end, are too large or are no listing.
    """
    listing = transport.url(path)
    what = f"{listing.site}{listing.path}"
    found: list[str] = []
    left_out = 0
    for reply in _pages(transport, listing, scope, listing.with_parameter("n", str(_PAGE_NAMES))):
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
        log.warning("%s: left out %d names that are no text", what, left_out)
    return found


def referrers(transport: Transport, path: str, scope: str) -> list[Descriptor]:
    """Return the descriptors in all pages of the listing at `path`, each of which is an index.

    Raises Unsupported, from the error itself, where the call is refused or answered by something
    else: registries without it say so in many ways. Raises ProtocolViolation for pages that never
    end, are too large or are malformed, as part of the referrers must not pass for all.
    """
    listing = transport.url(path)
    found: list[Descriptor] = []
    pages = _pages(transport, listing, scope, listing, refused=_uncalled)
    for number, reply in enumerate(pages):
        if number == 0 and not _is_of_an_index(reply):
            raise _uncalled(ProtocolViolation(f"{reply.what}: the answer is no index"))
        page = parse(reply.body)
        if not isinstance(page, Index):
            raise ProtocolViolation(f"{reply.what}: the referrers are not an index")
        found += page.manifests
        if len(found) > _MOST_REFERRERS:
            raise ProtocolViolation(f"{reply.what}: over {_MOST_REFERRERS} referrers")
    return found


def _uncalled(error: EpochfsError) -> Unsupported:
    """Return what the refusal of a call means that a registry need not have."""
    uncalled = Unsupported(f"{error}: the registry has no referrers")
    uncalled.__cause__ = error
    return uncalled


def _is_of_an_index(reply: Reply) -> bool:
    """Whether an answer is meant for an index, by its type or its JSON, be it malformed."""
    if reply.media_type.lower() == OCI_INDEX:
        return True
    try:
        document = load_json(reply.body)
    except ProtocolViolation:
        return False
    return isinstance(document, dict) and isinstance(document.get("manifests", 0), list | None)


def _pages(
    transport: Transport,
    listing: Url,
    scope: str,
    first: Url,
    refused: Callable[[EpochfsError], EpochfsError] = lambda error: error,
) -> Iterator[Reply]:
    """Yield the pages of a listing, which begins at `first`, or where that is refused as it is.

    `refused` makes what is raised of the error that a refusal of the whole listing means.
    """
    with transport.watch() as watch:
        url: Url | None = first
        seen: set[Url] = set()
        begun = False
        while url is not None:
            if url in seen or len(seen) == _MOST_PAGES:
                raise ProtocolViolation(f"{listing}: the pages never end")
            seen.add(url)
            try:
                reply = transport.fetch(Request("GET", url, scope), PAGE_LIMIT, watch)
            except TooLarge as error:
                raise ProtocolViolation(str(error)) from error
            if reply.status == 400 and url == first != listing:
                url = listing  # it allows fewer names in a page: let it choose
                continue
            if not reply.ok:
                refusal = transport.refusal(reply)
                if begun and isinstance(refusal, NotFound | Unsupported):
                    # Nobody may take the listing for one that does not exist.
                    raise ProtocolViolation(f"{refusal}: a listing names this as its next page")
                raise refusal if begun else refused(refusal)
            # All but the first name in a list stand behind a comma. Counted before they are parsed,
            # as an empty list of three bytes becomes sixty in memory.
            if reply.body.count(b",") > _MOST_NAMES:
                raise ProtocolViolation(f"{reply.what}: over {_MOST_NAMES} names")
            begun = True
            yield reply
            url = transport.next_page(reply)
