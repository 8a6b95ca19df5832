"""Routing: paths are matched to endpoints here; the modules below make the answers.

A HEAD is answered as the GET would be; the server leaves its body out. Patterns match greedily, so
a repository name may have any number of segments, `blobs` and `tags` among them.
"""

from __future__ import annotations

from epochfs.demo.registry.behaviour import Behaviour
from epochfs.demo.registry.blob_endpoints import BlobEndpoints
from epochfs.demo.registry.manifest_endpoints import ManifestEndpoints
from epochfs.demo.registry.messages import OciError, Request, Response, text_response
from epochfs.demo.registry.storage import Storage
from epochfs.errors import InvalidName
from epochfs.oci.names import Repository


class Endpoints:
    """All endpoints that a behaviour offers, over one storage."""

    def __init__(self, behaviour: Behaviour, storage: Storage) -> None:
        self._behaviour = behaviour
        self._routes = (
            *BlobEndpoints(behaviour, storage).routes(),
            *ManifestEndpoints(behaviour, storage).routes(),
        )

    def answer(self, request: Request) -> Response:
        """Answer one request; raises OciError for one that is refused."""
        method = "GET" if request.method == "HEAD" else request.method
        for route in self._routes:
            match = route.pattern.fullmatch(request.path)
            if match is None:
                continue
            endpoint = route.endpoints.get(method)
            if endpoint is None:
                return self._no_endpoint(request, 405, f"{request.method} is not offered here")
            name, reference = match.groups()
            if name and self._behaviour.validates and not _conforms(name):
                raise OciError(400, "NAME_INVALID", "not a repository name")
            return endpoint(request, name, reference)
        return self._no_endpoint(request, 404, "no such endpoint")

    def _no_endpoint(self, request: Request, status: int, why: str) -> Response:
        if not self._behaviour.plain_errors:
            raise OciError(status, "UNSUPPORTED", why)
        # Epoch's web pages are behind all of its API, for GET alone.
        if request.method == "GET":
            return text_response(404, "404 page not found\n")
        return Response(405)


def _conforms(name: str) -> bool:
    try:
        return Repository.parse(name).conforms
    except InvalidName:
        return False
