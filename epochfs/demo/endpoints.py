"""The registry's endpoints: manifests and the listings made of them, blobs and their uploads.

A HEAD is answered as the GET would be; the server leaves its body out. Patterns match greedily, so
a repository name may have any number of segments, `blobs` and `tags` among them.

Source: specification, "Pulling manifests", "Pulling blobs", "Pushing manifests", "Pushing blobs",
"Content discovery"; `_catalog` is Docker's, which the specification only reserves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote, urlencode

from epochfs.demo.http_server import OciError, Request, Response, json_response
from epochfs.demo.storage import Behaviour, Storage
from epochfs.errors import InvalidName, ProtocolViolation
from epochfs.oci.closure import is_distributed, named_blobs
from epochfs.oci.manifests import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Document,
    Index,
    Manifest,
    described_referrer,
    load_json,
)
from epochfs.oci.names import Digest, Tag

_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z", re.ASCII)
_CHUNK = re.compile(r"(\d+)-\d+\Z", re.ASCII)

Endpoint = Callable[[Request, str, str], Response]
"""Answers a request on a repository name and a reference; each is "" where the path has none."""


class Route:
    """A pattern of paths, with two groups (name, reference), and the endpoint of each method."""

    def __init__(self, pattern: str, **endpoints: Endpoint | None) -> None:
        self.pattern = re.compile(pattern, re.DOTALL)
        self.endpoints = {method: found for method, found in endpoints.items() if found}


class _Endpoints:
    def __init__(self, behaviour: Behaviour, storage: Storage) -> None:
        self._behaviour = behaviour
        self._storage = storage

    def _digest(self, text: str) -> Digest:
        """Parse a digest; raises OciError 400 for nonsense, or an algorithm not offered."""
        try:
            digest = Digest.parse(text)
        except InvalidName as error:
            raise OciError(400, "DIGEST_INVALID", str(error)) from None
        if digest.algorithm == "sha512" and not self._behaviour.sha512:
            raise OciError(400, "DIGEST_INVALID", "only sha256 is known here")
        return digest

    def _known_digest(self, text: str) -> Digest | None:
        """Parse a digest; None for nonsense if nothing is checked."""
        try:
            return self._digest(text)
        except OciError:
            if self._behaviour.validates:
                raise
            return None


class ManifestEndpoints(_Endpoints):
    """Manifests by tag and digest, referrers, tags, and the catalog."""

    def routes(self) -> Iterator[Route]:
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
        subject = self._digest(reference)
        wanted = request.query.get("artifactType", "")
        descriptors = [
            descriptor
            for document in self._storage.manifests(name)
            if _subject(document) == subject
            and (descriptor := described_referrer(document))
            and wanted in ("", descriptor.get("artifactType"))
        ]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}
        response = json_response(index, OCI_INDEX)
        return response.having(OCI_Filters_Applied="artifactType") if wanted else response

    def _get_manifest(self, _request: Request, name: str, reference: str) -> Response:
        target = self._known(reference)
        document = self._storage.manifest(name, target) if target is not None else None
        if document is None:
            raise _unknown()
        return Response(
            200,
            {"Content-Type": document.media_type, "Docker-Content-Digest": str(document.digest)},
            document.raw,
        )

    def _put_manifest(self, request: Request, name: str, reference: str) -> Response:
        target = self._digest(reference) if self._is_digest(reference) else reference
        digest = Digest.of(request.body, "sha256" if isinstance(target, str) else target.algorithm)
        if isinstance(target, Digest) and digest != target:
            raise OciError(400, "DIGEST_INVALID", "the manifest does not have this digest")
        document = Document(digest, self._media_type(request), request.body)
        tags = [target] if isinstance(target, str) else []
        if isinstance(target, Digest) and self._behaviour.tag_parameters:
            tags = [value for parameter, value in request.parameters if parameter == "tag"]
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
        target = self._known(reference)
        if isinstance(target, str) and not self._behaviour.tag_deletes:
            raise OciError(405, "UNSUPPORTED", "a tag cannot be deleted by itself")
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
        for blob in named_blobs(view):
            if is_distributed(blob) and self._storage.blob(name, blob.digest) is None:
                yield blob
        if isinstance(view, Index) and self._behaviour.sparse != "indexes":
            for child in view.manifests:
                if self._storage.manifest(name, child.digest) is None:
                    yield child

    def _is_digest(self, reference: str) -> bool:
        """Whether a reference is a digest, be it a nonsensical one; all other are tags."""
        return ":" in reference if self._behaviour.sha512 else reference.startswith("sha256:")

    def _known(self, reference: str) -> str | Digest | None:
        """Return a tag or a digest; None for nonsense if nothing is checked."""
        return self._known_digest(reference) if self._is_digest(reference) else reference


def _invalid(message: str) -> OciError:
    return OciError(400, "MANIFEST_INVALID", message)


def _unknown() -> OciError:
    return OciError(404, "MANIFEST_UNKNOWN", "no such manifest")


def _subject(document: Document) -> Digest | None:
    """Return the digest of the manifest that a document refers to, if it does."""
    view = document.readable_view
    return view.subject.digest if view and view.subject else None


class BlobEndpoints(_Endpoints):
    """The endpoints below `/v2/<name>/blobs/`."""

    def routes(self) -> Iterator[Route]:
        if self._behaviour.uploads:
            yield Route(r"/v2/(.+)/blobs/uploads/()", POST=self._begin_upload)
            yield Route(
                r"/v2/(.+)/blobs/uploads/([^/]+)",
                GET=self._get_upload if self._behaviour.strict_uploads else None,
                PATCH=self._append_upload,
                PUT=self._finish_upload,
                DELETE=self._cancel_upload if self._behaviour.strict_uploads else None,
            )
        yield Route(
            r"/v2/(.+)/blobs/([^/]+)",
            GET=self._get_blob,
            PUT=self._put_blob if self._behaviour.single_put else None,
            DELETE=self._delete_blob if self._behaviour.blob_deletes else None,
        )

    def _get_blob(self, request: Request, name: str, reference: str) -> Response:
        digest, data = self._blob(name, reference)
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": str(digest)}
        if not self._behaviour.ranges:
            return Response(200, headers, data)
        headers["Accept-Ranges"] = "bytes"
        asked = request.headers.get("range", "") if request.method == "GET" else ""
        selected = _selected(asked, len(data))
        if selected is None:
            return Response(200, headers, data)
        start, stop = selected
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return Response(206, headers, memoryview(data)[start:stop])

    def _blob(self, name: str, reference: str) -> tuple[Digest, bytes]:
        """Return a blob and its digest; raises OciError for one that is not there."""
        digest = self._known_digest(reference)
        data = self._storage.blob(name, digest) if digest else None
        if digest is None or data is None:
            raise OciError(404, "BLOB_UNKNOWN", "no such blob")
        return digest, data

    def _put_blob(self, request: Request, name: str, reference: str) -> Response:
        return self._store(name, reference, request.body)

    def _delete_blob(self, _request: Request, name: str, reference: str) -> Response:
        if not self._storage.delete_blob(name, self._digest(reference)):
            raise OciError(404, "BLOB_UNKNOWN", "no such blob")
        return Response(202)

    def _begin_upload(self, request: Request, name: str, _reference: str) -> Response:
        query = request.query
        if "digest" in query:
            return self._store(name, query["digest"], request.body)
        if "mount" in query and "from" in query and not self._behaviour.global_blobs:
            digest = self._digest(query["mount"])
            data = self._storage.blob(query["from"], digest)
            if data is not None:
                self._storage.put_blob(name, digest, data)
                return _stored(name, digest)
        return self._progress(202, name, self._storage.begin_upload(), 0)

    def _get_upload(self, _request: Request, name: str, upload: str) -> Response:
        return self._progress(204, name, upload, self._storage.append_upload(upload, b""))

    def _append_upload(self, request: Request, name: str, upload: str) -> Response:
        size = self._storage.append_upload(upload, request.body, self._offset(request))
        return self._progress(202, name, upload, size)

    def _finish_upload(self, request: Request, name: str, upload: str) -> Response:
        if "digest" not in request.query:
            if not self._behaviour.strict_uploads:
                self._storage.end_upload(upload)
            raise OciError(400, "DIGEST_INVALID", "the digest is missing")
        received = self._storage.end_upload(upload, self._offset(request))
        if received is None:
            raise self._refusal(upload)
        return self._store(name, request.query["digest"], received + request.body)

    def _progress(self, status: int, name: str, upload: str, size: int | None) -> Response:
        """Return how far an upload has come; raises OciError if that is unknown."""
        if size is None:
            raise self._refusal(upload)
        location = f"/v2/{quote(name)}/blobs/uploads/{upload}"
        received = f"0-{max(size - 1, 0)}"
        headers = {"Location": location, "Docker-Upload-UUID": upload, "Range": received}
        return Response(status, headers)

    def _offset(self, request: Request) -> int | None:
        """Return where the chunk of a request begins, in bytes; None if unknown or unchecked."""
        if not self._behaviour.strict_uploads:
            return None
        match = _CHUNK.match(request.headers.get("content-range", ""))
        return int(match[1]) if match else None

    def _refusal(self, upload: str) -> OciError:
        """Return why an upload refused something (specification, "Pushing a blob in chunks")."""
        if self._storage.append_upload(upload, b"") is None:
            return OciError(404, "BLOB_UPLOAD_UNKNOWN", "no such upload")
        return OciError(416, "BLOB_UPLOAD_INVALID", "the chunk is out of order")

    def _cancel_upload(self, _request: Request, _name: str, upload: str) -> Response:
        if self._storage.end_upload(upload) is None:
            raise self._refusal(upload)
        return Response(204)

    def _store(self, name: str, digest_text: str, data: bytes) -> Response:
        digest = self._digest(digest_text)
        if not digest.matches(data):
            raise OciError(400, "DIGEST_INVALID", "the blob does not have this digest")
        self._storage.put_blob(name, digest, data)
        return _stored(name, digest)


def _stored(name: str, digest: Digest) -> Response:
    location = f"/v2/{quote(name)}/blobs/{digest}"
    return Response(201, {"Location": location, "Docker-Content-Digest": str(digest)})


def _selected(header: str, size: int) -> tuple[int, int] | None:
    """Return the `[start, stop)` that a Range header selects of `size` bytes.

    None stands for the whole: a server may ignore what is no single range (RFC 9110, 14.2). Raises
    OciError 416 for a range with no byte in it.
    """
    match = _RANGE.match(header)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= stop:
        whole = f"bytes */{size}"
        raise OciError(416, "BLOB_UNKNOWN", "no byte in this range", Content_Range=whole)
    return start, stop
