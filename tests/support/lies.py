"""A registry that lies: one lie, the honest registry around it, and what a mount makes of it.

A `Lie` replaces answers of a registry that is honest otherwise, and says what reading one path must
come to. The tables of them are in `nameslies.py`, `bodylies.py` and `weblies.py`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from epochfs.demo.samples import encode
from epochfs.oci.manifests import OCI_MANIFEST
from epochfs.oci.names import Digest
from epochfs.vfs.filesystem import FileSystem
from support.builders import Content, image, random_bytes
from support.operations import operations_on
from support.scripted import Seen, Step, reply

APP: Content = image(random_bytes(3000, 5))
LAYER = APP.blobs[1]
LAYER_DIGEST = Digest.of(LAYER)

HONEST = "/honest/tags/v1"
"""A link of the repository nobody lies about."""

CATALOG = "/v2/_catalog"
TAGS = "/v2/app/tags/list"
BLOB = f"/v2/app/blobs/{LAYER_DIGEST}"
MANIFEST = f"/v2/app/manifests/{APP.digest}"
TAG = "/v2/app/manifests/v1"

SEEN_CATALOG = "ls /"
SEEN_TAGS = "ls /app/tags"
SEEN_TAG = "readlink /app/tags/v1"
SEEN_BLOB = f"cat /app/blobs/{LAYER_DIGEST}"
SEEN_MANIFEST = f"cat /app/manifests/{APP.digest}/manifest.json"

Answer = bytes | Callable[[Seen], Iterable[Step]]


@dataclass(frozen=True)
class Lie:
    """What the registry sends in place of the truth, and what is to be seen of it.

    `see` is what is done, and to which path: `ls`, `cat`, `readlink`, `mtime` or `xattrs`; one
    after the other, with `&&` between them.
    `expected` is the errno, or else what is seen. `answers` are by path, or by method and path;
    `{here}` in their heads becomes the registry's own host.
    """

    kind: str
    title: str
    see: str
    expected: object
    answers: Mapping[str, Answer] = field(default_factory=dict, repr=False)
    tls: bool = False
    timeout: float = 60.0

    def __str__(self) -> str:
        return f"{self.kind}: {self.title}"


def manifest_reply(raw: bytes, **headers: str | None) -> bytes:
    """Return a true answer about a manifest; `headers` add to it or make it a lie."""
    true = {"Content_Type": OCI_MANIFEST, "Docker_Content_Digest": str(Digest.of(raw))}
    return reply(200, raw, **{**true, **headers})


def json_reply(document: object) -> bytes:
    return reply(200, encode(document), Content_Type="application/json")


def listing_reply(path: str, names: object) -> bytes:
    """Return a whole catalog or list of tags."""
    return json_reply({"repositories" if path == CATALOG else "tags": names})


def malformed_manifest(kind: str, title: str, raw: bytes) -> Iterator[Lie]:
    """Yield what a manifest that cannot be parsed comes to: its bytes, and no view of them."""
    yield manifest_lie(kind, title, raw, errno.EIO, "ls {}")
    yield manifest_lie(kind, f"{title}: layers", raw, errno.EIO, "ls {}/layers")
    yield manifest_lie(kind, f"{title}: bytes", raw, raw, "cat {}/manifest.json")


def manifest_lie(kind: str, title: str, raw: bytes, expected: object, see: str) -> Lie:
    """Return the lie that a manifest of its own, true digest is."""
    digest = Digest.of(raw)
    answers = {f"/v2/app/manifests/{digest}": manifest_reply(raw)}
    return Lie(kind, title, see.format(f"/app/manifests/{digest}"), expected, answers)


def _truth() -> dict[str, bytes]:
    answers = {
        "/v2/": json_reply({}),
        CATALOG: listing_reply(CATALOG, ["app", "honest"]),
    }
    for name in ("app", "honest"):
        answers[f"/v2/{name}/tags/list"] = listing_reply(TAGS, ["v1"])
        for reference in ("v1", APP.digest):
            answers[f"/v2/{name}/manifests/{reference}"] = manifest_reply(APP.raw)
        for blob in APP.blobs:
            answers[f"/v2/{name}/blobs/{Digest.of(blob)}"] = reply(200, blob)
    return answers


_TRUTH = _truth()


def answer(answers: Mapping[str, Answer], request: Seen) -> Iterable[Step]:
    """Answer as the lie has it, else honestly. HEAD has the head only, unless the lie is on it."""
    by_method = answers.get(f"{request.method} {request.path}")
    found = by_method or answers.get(request.path) or _TRUTH.get(request.path) or reply(404)
    if not isinstance(found, bytes):
        return found(request)
    head, _, body = found.partition(b"\r\n\r\n")
    head = head.replace(b"{here}", request.headers["host"].encode()) + b"\r\n\r\n"
    return [head if request.method == "HEAD" and by_method is None else head + body]


class Seeing:
    """What the kernel would be told, of a file system that is not mounted."""

    def __init__(self, filesystem: FileSystem) -> None:
        self._operations = operations_on(filesystem)

    def see(self, what: str) -> object:
        """Do what a `Lie.see` says; return what is seen last, or the first errno."""
        seen: object = None
        try:
            for step in what.split(" && "):
                action, _, path = step.partition(" ")
                seen = getattr(self, f"_{action}")(path)
        except OSError as error:
            return error.errno
        return seen

    def _ls(self, path: str) -> list[str]:
        names = [name for name, _, _ in self._operations.readdir(path, 0)]
        assert names[:2] == [".", ".."]
        return sorted(names[2:])

    def _readlink(self, path: str) -> str:
        return str(self._operations.readlink(path))

    def _mtime(self, path: str) -> int:
        return int(self._operations.getattr(path).time_ns)

    def _xattrs(self, path: str) -> dict[str, bytes]:
        names = self._operations.listxattr(path)
        return {name: self._operations.getxattr(path, name) for name in names}

    def _cat(self, path: str) -> bytes:
        info: Any = SimpleNamespace(flags=os.O_RDONLY, fh=0, direct_io=0, keep_cache=0)
        self._operations.getattr(path)
        self._operations.open(path, info)
        try:
            content, buffer = bytearray(), memoryview(bytearray(65536))
            while count := self._operations.read(path, buffer, len(content), info):
                content += buffer[:count]
            return bytes(content)
        finally:
            self._operations.release(path, info)


class Destinations:
    """The hosts this process resolved or connected to, by Python's own audit of sockets."""

    _active: list[set[object]] = []  # noqa: RUF012 - a hook can never be taken out again

    def __init__(self) -> None:
        self.seen: set[object] = set()

    def __enter__(self) -> set[object]:
        if not self._active:
            sys.addaudithook(self._audit)
        self._active[:] = [self.seen]
        return self.seen

    def __exit__(self, *_: object) -> None:
        self._active[:] = [set()]

    @classmethod
    def _audit(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            cls._active[0].add(arguments[1][:2])
        elif event == "socket.getaddrinfo":
            cls._active[0].add(arguments[:2])
