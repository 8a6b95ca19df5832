"""Manifests, and the listings made of them.

Source: specification, "Pulling manifests", "Pushing manifests", "Content discovery"; `_catalog` is
Docker's, which the specification only reserves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

from epochfs.demo.registry.behaviour import Behaviour
from epochfs.demo.registry.messages import OciError, Request, Response, Route, json_response
from epochfs.demo.registry.parsing import parse_digest, parse_reference
from epochfs.demo.registry.storage import Storage
from epochfs.errors import InvalidName, ProtocolViolation
from epochfs.oci.manifests import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Document,
    Index,
    Manifest,
    load_json,
)
from epochfs.oci.names import Digest, Tag


class ManifestEndpoints:
    """Manifests by tag and digest, referrers, tags, and the catalog."""

    def __init__(self, behaviour: Behaviour, storage: Storage) -> None:
        self._behaviour = behaviour
        self._storage = storage

    def routes(self) -> Iterator[Route]:
        """Yield what the behaviour offers."""
        yield Route(r"/v2/?()()", GET=self._ping)
        if self._behaviour.catalog:
            yield Route(r"/v2/_catalog()()", GET=self._list_repositories)
        yield Route(r"/v2/(.+)/tags/list()", GET=self._list_tags)
        if self._behaviour.referrers:
            yield Route(r"/v2/(.+)/referrers/([^/]+)", GET=self._list_referrers)
        yield Route(
            r"/v2/(.+)/manifests/([^/]+)",
            GET=self._get_manifest,
            PUT=self._put_manifest,
            DELETE=self._delete_manifest if self._behaviour.deletes else None,
        )

    def _ping(self, _request: Request, _name: str, _reference: str) -> Response:
        return json_response({}).having(Docker_Distribution_API_Version="registry/2.0")

    def _list_repositories(self, request: Request, _name: str, _reference: str) -> Response:
        page, link = self._page(request, self._storage.repositories())
        return json_response({"repositories": page}).having(**link)

    def _list_tags(self, request: Request, name: str, _reference: str) -> Response:
        tags = self._storage.tags(name)
        if tags is None:
            raise OciError(404, "NAME_UNKNOWN", "no such repository")
        page, link = self._page(request, tags)
        return json_response({"name": name, "tags": page}).having(**link)

    def _page(self, request: Request, names: list[str]) -> tuple[list[str], dict[str, str]]:
        """Return the page of sorted `names` that was asked for, and the Link to the next one."""
        if not self._behaviour.paging:
            return names, {}
        asked = request.query.get("n", str(self._behaviour.page_size))
        if not asked.isdecimal():
            raise OciError(400, "PAGINATION_NUMBER_INVALID", "n is not a number")
        size = min(int(asked), self._behaviour.page_size)
        rest = [name for name in names if name > request.query.get("last", "")]
        page = rest[:size]
        if not page or len(rest) == len(page):
            return page, {}
        query = urlencode({"n": size, "last": page[-1]})
        return page, {"Link": f'<{quote(request.path)}?{query}>; rel="next"'}

    def _list_referrers(self, request: Request, name: str, reference: str) -> Response:
        subject = parse_digest(reference, sha512=self._behaviour.sha512)
        wanted = request.query.get("artifactType", "")
        descriptors = [
            descriptor
            for document in self._storage.manifests(name)
            if _subject(document) == subject
            and (descriptor := _referrer(document))
            and wanted in ("", descriptor["artifactType"])
        ]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}
        response = json_response(index, OCI_INDEX)
        return response.having(OCI_Filters_Applied="artifactType") if wanted else response

    def _get_manifest(self, _request: Request, name: str, reference: str) -> Response:
        target = self._known_reference(reference)
        document = self._storage.manifest(name, target) if target is not None else None
        if document is None:
            raise _unknown()
        return Response(
            200,
            {"Content-Type": document.media_type, "Docker-Content-Digest": str(document.digest)},
            document.raw,
        )

    def _put_manifest(self, request: Request, name: str, reference: str) -> Response:
        target = self._reference(reference)
        digest = Digest.of(request.body, "sha256" if isinstance(target, str) else target.algorithm)
        if isinstance(target, Digest) and digest != target:
            raise OciError(400, "DIGEST_INVALID", "the manifest does not have this digest")
        document = Document(digest, self._media_type(request), request.body)
        parameters = request.every("tag") if self._behaviour.tag_parameters else []
        tags = [target] if isinstance(target, str) else parameters
        if self._behaviour.validates:
            self._check(name, tags, document)
        self._storage.put_manifest(name, document, *tags)
        location = f"/v2/{quote(name)}/manifests/{quote(reference, safe=':')}"
        response = Response(201, {"Location": location, "Docker-Content-Digest": str(digest)})
        if isinstance(target, Digest) and tags:
            response = response.having(OCI_Tag=", ".join(tags))
        subject = _subject(document) if self._behaviour.referrers else None
        return response.having(OCI_Subject=str(subject)) if subject else response

    def _delete_manifest(self, _request: Request, name: str, reference: str) -> Response:
        target = self._known_reference(reference)
        deleted = target is not None and self._storage.delete_manifest(name, target)
        if not deleted and not (self._behaviour.bucket and isinstance(target, str)):
            raise _unknown()
        return Response(202)

    def _media_type(self, request: Request) -> str:
        """Return the type a pushed manifest is stored with; raises OciError for a false one."""
        try:
            document = load_json(request.body)
        except ProtocolViolation as error:
            raise _invalid(str(error)) from None
        declared = document.get("mediaType") if isinstance(document, dict) else None
        given = request.headers.get("content-type", "").partition(";")[0].rstrip()
        if not self._behaviour.validates:
            # Epoch never looks at the Content-Type, so an index without mediaType loses its type.
            return declared if declared and isinstance(declared, str) else OCI_MANIFEST
        if not given or declared not in (None, given):
            raise _invalid("Content-Type is not the manifest's mediaType")
        return given

    def _check(self, name: str, tags: Iterable[str], document: Document) -> None:
        """Raise OciError for a tag out of the grammar, or a reference the repository lacks."""
        try:
            if not all(Tag.parse(tag).conforms for tag in tags):
                raise _invalid("not a tag")
            view = document.view
        except (InvalidName, ProtocolViolation) as error:
            raise _invalid(str(error)) from None
        if missing := next(self._missing(name, view), None):
            raise OciError(400, "MANIFEST_BLOB_UNKNOWN", f"{missing.digest} was not pushed")

    def _missing(self, name: str, view: Manifest | Index) -> Iterator[Descriptor]:
        """Yield what must be pushed before a manifest that names it."""
        if self._behaviour.sparse == "all":
            return
        if isinstance(view, Manifest):
            for blob in (view.config, *view.layers):
                if blob and not _lies_elsewhere(blob) and not self._holds(name, blob):
                    yield blob
        elif self._behaviour.sparse != "indexes":
            for child in view.manifests:
                if self._storage.manifest(name, child.digest) is None:
                    yield child

    def _holds(self, name: str, blob: Descriptor) -> bool:
        return self._storage.blob(name, blob.digest) is not None

    def _reference(self, text: str) -> str | Digest:
        return parse_reference(text, sha512=self._behaviour.sha512)

    def _known_reference(self, text: str) -> str | Digest | None:
        """Return what text refers to; None for nonsense where nothing is checked."""
        try:
            return self._reference(text)
        except OciError:
            if self._behaviour.validates:
                raise
            return None


def _invalid(message: str) -> OciError:
    return OciError(400, "MANIFEST_INVALID", message)


def _unknown() -> OciError:
    return OciError(404, "MANIFEST_UNKNOWN", "no such manifest")


def _lies_elsewhere(layer: Descriptor) -> bool:
    """Whether a layer may not be pushed (Image specification, "Non-Distributable Layers")."""
    return ".nondistributable." in layer.media_type or ".foreign." in layer.media_type


def _subject(document: Document) -> Digest | None:
    """Return the digest of the manifest that a document refers to, if it does."""
    try:
        subject = document.view.subject
    except ProtocolViolation:
        return None
    return subject.digest if subject else None


def _referrer(document: Document) -> dict[str, Any]:
    """Return the descriptor of a referrer (specification, "Listing Referrers")."""
    view = document.view
    config = None if isinstance(view, Index) else view.config
    descriptor: dict[str, Any] = {
        "mediaType": document.media_type,
        "digest": str(document.digest),
        "size": document.size,
        "artifactType": view.artifact_type or (config.media_type if config else ""),
    }
    if view.annotations:
        descriptor["annotations"] = dict(view.annotations)
    return descriptor
