"""A registry of nothing but names: as many repositories and tags as one likes, at once.

docker-registry would take most of an hour to be given 200,000 tags. A program of its own, so that
it does not share an interpreter with what is measured::

    python -m scripts.benchmark.tagserver PORT REPOSITORIES TAGS

The repositories are `app0`, `app1`, …, the tags of each `v0`, `v1`, …; every tag has a manifest of
its own, without a config or layers. Listings come in one page.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys

_TAGS = re.compile(r"/v2/(app\d+)/tags/list")
_MANIFEST = re.compile(r"/v2/(app\d+)/manifests/(\S+)")
_TYPE = "application/vnd.oci.image.manifest.v1+json"


class Names:
    """What the registry holds; a manifest is made when its tag is first asked for."""

    def __init__(self, repositories: int, tags: int) -> None:
        self._catalog = _json(repositories=[f"app{number}" for number in range(repositories)])
        self._tags = _json(tags=[f"v{number}" for number in range(tags)])
        self._manifests: dict[str, bytes] = {}

    def answer(self, path: str) -> tuple[bytes, str]:
        """Return the body for a path, and its digest; both empty for what is not there."""
        if path in ("/v2/", "/v2/_catalog"):
            return self._catalog, ""
        if _TAGS.fullmatch(path):
            return self._tags, ""
        found = _MANIFEST.fullmatch(path)
        if found is None:
            return b"", ""
        name, reference = found.groups()
        if reference.startswith("sha256:"):
            return self._manifests.get(reference, b""), reference
        manifest = _json(schemaVersion=2, layers=[], annotations={"name": f"{name}:{reference}"})
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        self._manifests[digest] = manifest
        return manifest, digest


def _json(**members: object) -> bytes:
    return json.dumps(members).encode()


class Connection(asyncio.Protocol):
    """Answers GET and HEAD, which have no body, one after the other."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        *requests, self._received = (self._received + data).split(b"\r\n\r\n")
        for request in requests:
            method, target, _ = request.decode("latin-1").split(" ", 2)
            body, digest = self._names.answer(target.partition("?")[0])
            head = f"HTTP/1.1 {200 if body else 404} \r\nContent-Length: {len(body)}\r\n"
            if digest:
                head += f"Content-Type: {_TYPE}\r\nDocker-Content-Digest: {digest}\r\n"
            self._transport.write(f"{head}\r\n".encode() + (b"" if method == "HEAD" else body))


async def _serve(port: int, names: Names) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(names), "127.0.0.1", port, backlog=256)
    await server.serve_forever()


def main() -> None:
    """Run until killed."""
    port, repositories, tags = map(int, sys.argv[1:])
    asyncio.run(_serve(port, Names(repositories, tags)))


if __name__ == "__main__":
    main()
