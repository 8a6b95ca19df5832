"""An OCI Distribution registry in memory: what `epochfs demo` serves, and what the tests break.

It speaks the specification's pull, push, discovery and deletion on the wire, well enough for
`skopeo copy` in both directions, and Epoch's ways where `Behaviour` says so. Nothing outlives the
process. A program that needs one wrong answer overrides the one method every request goes through::

    class WithoutDigest(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            response = super().respond(request)
            return response.without("Docker-Content-Digest")

    with WithoutDigest() as registry:
        ...  # registry.url, registry.requests

Source: OCI Distribution specification 1.1.
"""

from epochfs.demo.registry.behaviour import EPOCH, SPECIFICATION, Behaviour
from epochfs.demo.registry.embedded import EmbeddedRegistry
from epochfs.demo.registry.messages import Request, Response

__all__ = ["EPOCH", "SPECIFICATION", "Behaviour", "EmbeddedRegistry", "Request", "Response"]
