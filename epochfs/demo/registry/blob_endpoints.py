"""Blobs and the sessions that upload them (specification, "Pulling blobs", "Pushing blobs")."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from epochfs.demo.registry.behaviour import Behaviour
from epochfs.demo.registry.messages import OciError, Request, Response, Route
from epochfs.demo.registry.parsing import parse_chunk, parse_digest, parse_range
from epochfs.demo.registry.storage import Storage
from epochfs.oci.names import Digest


class BlobEndpoints:
    """The endpoints below `/v2/<name>/blobs/`."""

    def __init__(self, behaviour: Behaviour, storage: Storage) -> None:
        self._behaviour = behaviour
        self._storage = storage

    def routes(self) -> Iterator[Route]:
        """Yield what the behaviour offers."""
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
        whole = Response(
            200,
            {"Content-Type": "application/octet-stream", "Docker-Content-Digest": str(digest)},
            data,
        )
        if not self._behaviour.ranges:
            return whole
        whole = whole.having(Accept_Ranges="bytes")
        asked = request.headers.get("range", "") if request.method == "GET" else ""
        selected = parse_range(asked, len(data))
        if selected is None:
            return whole
        start, stop = selected
        headers = {**whole.headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        return Response(206, headers, memoryview(data)[start:stop])

    def _blob(self, name: str, reference: str) -> tuple[Digest, bytes]:
        """Return a blob and its digest; raises OciError for one that is not there."""
        try:
            digest = self._digest(reference)
            data = self._storage.blob(name, digest)
        except OciError:
            if self._behaviour.validates:
                raise
            data = None
        if data is None:
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
            if self._storage.mount_blob(name, query["from"], digest):
                return _stored(name, digest)
        return _upload_status(202, name, self._storage.begin_upload(), 0)

    def _get_upload(self, _request: Request, name: str, upload: str) -> Response:
        size = self._storage.upload_size(upload)
        if size is None:
            raise _unknown_upload()
        return _upload_status(204, name, upload, size)

    def _append_upload(self, request: Request, name: str, upload: str) -> Response:
        size = self._storage.append_upload(upload, request.body, self._offset(request))
        if size is None:
            raise self._not_taken(upload)
        return _upload_status(202, name, upload, size)

    def _finish_upload(self, request: Request, name: str, upload: str) -> Response:
        if "digest" not in request.query:
            if not self._behaviour.strict_uploads:
                self._storage.end_upload(upload)
            raise OciError(400, "DIGEST_INVALID", "the digest is missing")
        received = self._storage.end_upload(upload, self._offset(request))
        if received is None:
            raise self._not_taken(upload)
        return self._store(name, request.query["digest"], received + request.body)

    def _offset(self, request: Request) -> int | None:
        """Return where the chunk of a request must begin, in bytes; None where that is the same."""
        if not self._behaviour.strict_uploads:
            return None
        return parse_chunk(request.headers.get("content-range", ""))

    def _not_taken(self, upload: str) -> OciError:
        """Return why a chunk was not taken (specification, "Pushing a blob in chunks")."""
        if self._storage.upload_size(upload) is None:
            return _unknown_upload()
        return OciError(416, "BLOB_UPLOAD_INVALID", "the chunk is out of order")

    def _cancel_upload(self, _request: Request, _name: str, upload: str) -> Response:
        if self._storage.end_upload(upload) is None:
            raise _unknown_upload()
        return Response(204)

    def _store(self, name: str, digest_text: str, data: bytes) -> Response:
        digest = self._digest(digest_text)
        if not digest.matches(data):
            raise OciError(400, "DIGEST_INVALID", "the blob does not have this digest")
        self._storage.put_blob(name, digest, data)
        return _stored(name, digest)

    def _digest(self, text: str) -> Digest:
        return parse_digest(text, sha512=self._behaviour.sha512)


def _stored(name: str, digest: Digest) -> Response:
    location = f"/v2/{quote(name)}/blobs/{digest}"
    return Response(201, {"Location": location, "Docker-Content-Digest": str(digest)})


def _upload_status(status: int, name: str, upload: str, size: int) -> Response:
    return Response(
        status,
        {
            "Location": f"/v2/{quote(name)}/blobs/uploads/{upload}",
            "Docker-Upload-UUID": upload,
            "Range": f"0-{max(size - 1, 0)}",
        },
    )


def _unknown_upload() -> OciError:
    return OciError(404, "BLOB_UPLOAD_UNKNOWN", "no such upload")
