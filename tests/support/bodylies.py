"""Lies in bodies: JSON that is none, sizes nobody can have, documents of the wrong shape."""

from __future__ import annotations

import errno
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from epochfs.demo.samples import encode
from epochfs.oci.manifests import CREATED, MAX_SIZE, OCI_ARTIFACT, OCI_MANIFEST
from epochfs.oci.names import Digest
from epochfs.vfs.node import CONSTANT_TIME_NS
from support.lies import (
    APP,
    BLOB,
    CATALOG,
    LAYER,
    LAYER_DIGEST,
    MANIFEST,
    SEEN_BLOB,
    SEEN_CATALOG,
    SEEN_MANIFEST,
    SEEN_TAG,
    SEEN_TAGS,
    TAG,
    TAGS,
    Lie,
    malformed_manifest,
    manifest_lie,
    manifest_reply,
)
from support.nameslies import PLACES, document_with
from support.scripted import Close, Seen, Step, reply

ENDPOINTS = {
    TAGS: (SEEN_TAGS, encode({"tags": ["v1"]})),
    CATALOG: (SEEN_CATALOG, encode({"repositories": ["app"]})),
}


def _with(value: bytes) -> Callable[[bytes], bytes]:
    """Return what adds a member of this value to a document that is good."""
    return lambda good: good[:-1] + b',"x":' + value + b"}"


ODDITIES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda good: b"",
    "half of it": lambda good: good[: len(good) // 2],
    "no end": lambda good: good[:-1],
    "every key twice": lambda good: good[:-1] + b"," + good[1:],
    "a key twice, deeper": _with(b'{"a":1,"a":2}'),
    "a key twice, spelt otherwise": _with(b'{"a":1,"\\u0061":2}'),
    "NaN": _with(b"NaN"),
    "Infinity": _with(b"Infinity"),
    "-Infinity": _with(b"-Infinity"),
    "a 10,000-digit number": _with(b"9" * 10_000),
    "a 1,000,000-digit number": _with(b"-" + b"9" * 1_000_000),
    "lists nested 100,000 deep": _with(b"[" * 100_000 + b"]" * 100_000),
    "objects nested 100,000 deep": _with(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "100,000 opening brackets": lambda good: b"[" * 100_000,
    "a byte order mark": lambda good: b"\xef\xbb\xbf" + good,
    "UTF-16": lambda good: good.decode().encode("utf-16"),
    "UTF-32": lambda good: good.decode().encode("utf-32-le"),
    "a byte that is no UTF-8": _with(b'"\xff"'),
    "an overlong slash": _with(b'"\xc0\xaf"'),
    "a surrogate in UTF-8": _with(b'"\xed\xa0\x80"'),
    "a NUL in text": _with(b'"\0"'),
    "a newline in text": _with(b'"\n"'),
    "an unknown escape": _with(b'"\\x41"'),
    "half an escape": _with(b'"\\u12"'),
    "a comma too many": lambda good: good[:-1] + b",}",
    "a comment": lambda good: b"/* */" + good,
    "single quotes": lambda good: good.replace(b'"', b"'"),
    "a leading zero": _with(b"01"),
    "a hexadecimal number": _with(b"0x10"),
    "a plus sign": _with(b"+1"),
    "True": _with(b"True"),
    "two documents": lambda good: good + good,
    "a NUL behind": lambda good: good + b"\0",
    "HTML": lambda good: b"<html><body>Sign in</body></html>",
    "gzip that nobody declared": gzip.compress,
}


def oddities() -> Iterator[Lie]:
    """JSON that is not quite JSON is refused, wherever it comes from."""
    for title, spoil in ODDITIES.items():
        for path, (see, good) in ENDPOINTS.items():
            where = path.rpartition("/")[2]
            yield Lie("JSON", f"{where}: {title}", see, errno.EIO, {path: reply(200, spoil(good))})
        yield from malformed_manifest("JSON", f"manifest: {title}", spoil(APP.raw))


SIZES: dict[str, bytes] = {
    "-1": b"-1",
    "-2^63": str(-(2**63)).encode(),
    "2^63": str(2**63).encode(),
    "2^64": str(2**64).encode(),
    "10^100": str(10**100).encode(),
    "1 EiB": str(2**60).encode(),
    "1 PiB": str(MAX_SIZE + 1).encode(),
    "1.5": b"1.5",
    "1e3": b"1e3",
    "1e999": b"1e999",
    "-0.0": b"-0.0",
    "text": b'"7"',
    "null": b"null",
    "true": b"true",
    "a list": b"[]",
    "an object": b"{}",
}

LENGTHS = ("-1", "2^63", str(2**63), str(2**60), str(MAX_SIZE + 1), "1.5", "1e3", "0x10", "+7")
MORE_LENGTHS = ("seven", "7 7", "7, 8", "\xb2", "9" * 5000)

FALSE_SIZES = {
    "one byte less": len(LAYER) - 1,
    "one byte more": len(LAYER) + 1,
    "none": 0,
    "1 MiB": 2**20,
    "1 TiB": 2**40,
    "the largest believed": MAX_SIZE,
}


def sizes() -> Iterator[Lie]:
    """A size that is none is refused; one that is false is found out, and nothing allocated."""
    for place in PLACES:
        for title, text in SIZES.items():
            raw = document_with(place, {"size": "here"}).replace(b'"here"', text)
            yield from malformed_manifest("size in a manifest", f"{place}: {title}", raw)
    for length in LENGTHS + MORE_LENGTHS:
        title = length[:20]
        for see, path in ((SEEN_BLOB, BLOB), (SEEN_TAG, TAG)):
            answers = {path: reply(200, b"", Content_Length=length)}
            yield Lie("size in a header", f"{see.split()[0]}: {title}", see, errno.EIO, answers)
    for title, size in FALSE_SIZES.items():
        head = {f"HEAD {BLOB}": reply(200, b"", Content_Length=str(size))}
        yield Lie("false size", f"of the HEAD: {title}", SEEN_BLOB, errno.EIO, head)
        raw = document_with("layers", {}).replace(b'"size":%d' % len(LAYER), b'"size":%d' % size)
        see = f"ls {{}} && {SEEN_BLOB}"
        yield manifest_lie("false size", f"of the layer: {title}", raw, errno.EIO, see)


BLOB_DESCRIPTOR = {"mediaType": "x/y", "digest": str(LAYER_DIGEST), "size": len(LAYER)}

WRONG_SHAPES: dict[str, object] = {
    "null": None,
    "a list": [],
    "a number": 7,
    "text": "manifest",
    "an empty object": {},
    "schema 1 whose layers are text": {"schemaVersion": 1, "fsLayers": "abc"},
    "schema 1 with a layer that is a digest": {"schemaVersion": 1, "fsLayers": [str(LAYER_DIGEST)]},
    "schema 1 with a layer of no digest": {"schemaVersion": 1, "fsLayers": [{"blobSum": "../x"}]},
    "a manifest and an index": {"layers": [], "manifests": []},
    "a config and manifests": {"config": BLOB_DESCRIPTOR, "manifests": []},
    "layers that are an object": {"layers": {}},
    "layers that are text": {"layers": "abc"},
    "layers that are true": {"layers": True},
    "manifests that are a number": {"manifests": 3},
    "manifests that are text": {"manifests": "x"},
    "a layer that is null": {"layers": [None]},
    "a layer that is a list": {"layers": [[]]},
    "a layer that is a digest": {"layers": [str(LAYER_DIGEST)]},
    "an entry that is a number": {"manifests": [7]},
    "a config that is text": {"config": "sha256:", "layers": []},
    "a config that is a list": {"config": [BLOB_DESCRIPTOR], "layers": []},
    "a subject that is a number": {"layers": [], "subject": 1},
    "an artifactType that is a list": {"layers": [], "artifactType": []},
    "annotations that are a list": {"layers": [], "annotations": []},
    "annotations that are text": {"layers": [], "annotations": "x"},
    "an annotation that is a number": {"layers": [], "annotations": {"a": 1}},
    "an artifact manifest and another": {"mediaType": OCI_ARTIFACT, "blobs": [], "layers": []},
    "an artifact manifest's blobs that are text": {"mediaType": OCI_ARTIFACT, "blobs": "x"},
    "an annotation that is an object": {"layers": [], "annotations": {"a": {}}},
    "a platform that is text": {"manifests": [{**BLOB_DESCRIPTOR, "platform": "linux/amd64"}]},
    "a platform that is a list": {"manifests": [{**BLOB_DESCRIPTOR, "platform": []}]},
    "a layer's mediaType that is a number": {"layers": [{**BLOB_DESCRIPTOR, "mediaType": 1}]},
    "a layer's annotations that are text": {"layers": [{**BLOB_DESCRIPTOR, "annotations": "x"}]},
}


def shapes() -> Iterator[Lie]:
    """A document of the wrong shape is no manifest."""
    for title, document in WRONG_SHAPES.items():
        raw = json.dumps(document).encode()
        yield from malformed_manifest("manifest's shape", title, raw)


CREATED_LIES = {
    "nothing": "",
    "no time": "yesterday",
    "a date of no calendar": "2024-13-45T00:00:00Z",
    "no time zone": "2024-01-01T00:00:00",
    "before 1970": "1900-01-01T00:00:00Z",
    "the year 0": "0000-01-01T00:00:00Z",
    "the year 1, of another zone": "0001-01-01T00:00:00+23:59",
    "the year 9999": "9999-12-31T23:59:59-23:59",
    "the year 10000": "10000-01-01T00:00:00Z",
    "a number": "1e18",
    "other digits": "\u0662\u0660\u0662\u0664-01-01T00:00:00Z",
    "a lone surrogate": "\ud800",
    "1 MB": "2" * 1_000_000,
}

ANNOTATION_KEYS = {
    "nothing but a NUL": "\0",
    "a newline": "a\nb",
    "ESC": "a\x1bb",
    "a lone surrogate": "a\ud800",
    "300 bytes": "a" * 300,
    "1 MB": "a" * 1_000_000,
}


def annotations() -> Iterator[Lie]:
    """An annotation that cannot be a time, or a name, is none."""
    for title, text in CREATED_LIES.items():
        raw = json.dumps({"layers": [], "annotations": {CREATED: text}}).encode()
        yield manifest_lie("annotation", f"created: {title}", raw, CONSTANT_TIME_NS, "mtime {}")
    for title, key in ANNOTATION_KEYS.items():
        raw = json.dumps({"layers": [], "annotations": {key: "x", "good": "\ud800y"}}).encode()
        expected = {
            "user.oci.digest": str(Digest.of(raw)).encode(),
            "user.oci.mediaType": OCI_MANIFEST.encode(),
            "user.oci.annotation.good": b"\\ud800y",
            "user.epochfs.kind": b"artifact",
        }
        yield manifest_lie("annotation", f"key: {title}", raw, expected, "xattrs {}")


def urls() -> Iterator[Lie]:
    """Where a layer says that it can also be had is nowhere we go."""
    absent = Digest.of(b"nowhere here")
    for place, url in {
        "http": "http://elsewhere.example/layer",
        "https": "https://elsewhere.example/layer",
        "a file": "file:///etc/passwd",
        "a link-local address": "http://169.254.169.254/latest/meta-data/",
        "a port of this machine": "http://127.0.0.1:9/",
    }.items():
        for media_type in ("image.layer.v1.tar", "image.layer.nondistributable.v1.tar+gzip"):
            layer = {
                "mediaType": f"application/vnd.oci.{media_type}",
                "digest": str(absent),
                "size": 12,
                "urls": [url],
            }
            raw = encode({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [layer]})
            see = f"ls {{}} && cat /app/blobs/{absent}"
            title = f"{place}, {media_type}"
            yield manifest_lie("a layer's urls", title, raw, errno.EIO, see)


def _endless(head: bytes, piece: bytes, request: Seen) -> Iterator[Step]:
    yield b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n"
    while request.method == "GET":
        yield piece


_CHUNK = b"10000\r\n" + b" " * 65536 + b"\r\n"

LARGE = encode({"layers": [], "annotations": {"padding": "x" * 5_000_000}})

ENDLESS: dict[str, partial[Iterable[Step]]] = {
    "in chunks": partial(_endless, b"Transfer-Encoding: chunked", _CHUNK),
    "of unknown length": partial(_endless, b"Connection: close", b" " * 65536),
    "of 10^18 bytes less one": partial(_endless, b"Content-Length: " + b"9" * 18, b" " * 65536),
}


def limits() -> Iterator[Lie]:
    """A manifest over the limit is too large, however it says so."""
    digest = Digest.of(LARGE)
    see = f"cat /app/manifests/{digest}/manifest.json"
    for title, script in {
        "5 MB": manifest_reply(LARGE),
        "5 MB of unknown length": partial(_closing, manifest_reply(LARGE, Content_Length=None)),
    }.items():
        answers = {f"/v2/app/manifests/{digest}": script}
        yield Lie("over the limit", title, see, errno.EFBIG, answers)
    for title, script in ENDLESS.items():
        answers = {MANIFEST: script}
        yield Lie("over the limit", f"a body {title}", SEEN_MANIFEST, errno.EFBIG, answers)
    for path, (see, _) in ENDPOINTS.items():
        for title, script in ENDLESS.items():
            title = f"{path.rpartition('/')[2]}: a body {title}"
            yield Lie("over the limit", title, see, errno.EIO, {path: script})


def _closing(whole: bytes, _: Seen) -> Iterator[Step]:
    yield whole
    raise Close


ENCODINGS = (
    "gzip",
    "GZIP",
    "x-gzip",
    "deflate",
    "br",
    "zstd",
    "compress",
    "identity, gzip",
    "gzip, gzip",
    "aes128gcm",
    "nonsense",
)


def encodings() -> Iterator[Lie]:
    """What is encoded in spite of our asking is not decoded; what only says so has its digest."""
    for encoding in ENCODINGS:
        for see, path, body in (
            (SEEN_TAGS, TAGS, encode({"tags": ["v1"]})),
            (SEEN_CATALOG, CATALOG, encode({"repositories": ["app"]})),
            (SEEN_MANIFEST, MANIFEST, APP.raw),
            (SEEN_BLOB, BLOB, LAYER),
        ):
            answers = {path: reply(200, gzip.compress(body), Content_Encoding=encoding)}
            title = f"{encoding} of {path.split('/')[-2]}"
            yield Lie("Content-Encoding", title, see, errno.EIO, answers)
        for see, path, true, expected in (
            (SEEN_TAGS, TAGS, reply(200, encode({"tags": ["v1"]})), errno.EIO),
            (SEEN_CATALOG, CATALOG, reply(200, encode({"repositories": ["a"]})), errno.EIO),
            (SEEN_MANIFEST, MANIFEST, manifest_reply(APP.raw), APP.raw),
            (SEEN_TAG, TAG, manifest_reply(APP.raw), f"../manifests/{APP.digest}"),
            (SEEN_BLOB, BLOB, reply(200, LAYER), LAYER),
        ):
            said = true.replace(b"\r\n", f"\r\nContent-Encoding: {encoding}\r\n".encode(), 1)
            title = f"{encoding}, said of {see.split()[0]} {path.split('/')[-2]}"
            yield Lie("Content-Encoding", title, see, expected, {path: said})


LIES = (
    *oddities(),
    *sizes(),
    *shapes(),
    *annotations(),
    *urls(),
    *limits(),
    *encodings(),
)
