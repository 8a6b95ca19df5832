"""Lies about names: in listings, in the links between their pages, in paths and in digests."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from functools import partial

from epochfs.demo.samples import encode
from epochfs.oci.manifests import OCI_INDEX, OCI_MANIFEST
from epochfs.oci.names import NAME_MAX, Digest
from support.lies import (
    APP,
    BLOB,
    CATALOG,
    LAYER,
    MANIFEST,
    SEEN_BLOB,
    SEEN_CATALOG,
    SEEN_MANIFEST,
    SEEN_TAG,
    SEEN_TAGS,
    TAG,
    TAGS,
    Lie,
    json_reply,
    listing_reply,
    malformed_manifest,
    manifest_reply,
)
from support.scripted import Seen, reply

UNUSABLE_NAMES: dict[str, str] = {
    "a dot": ".",
    "dot-dot": "..",
    "nothing": "",
    "a slash": "/",
    "an absolute path": "/x",
    "a path that ends with a slash": "x/",
    "two slashes": "a//b",
    "a way out": "../../etc/passwd",
    "a way out from below": "a/../../b",
    "a dot below": "a/./b",
    "a NUL": "a\0b",
    "a newline": "a\nb",
    "a carriage return": "a\rb",
    "a tab": "a\tb",
    "ESC": "a\x1b[2Jb",
    "a bell": "\x07",
    "a backspace": "a\x08",
    "DEL": "a\x7f",
    "a C1 control": "a\x9b31mb",
    "next line": "a\x85b",
    "a right-to-left override": "a\u202eb",
    "a zero-width space": "a\u200bb",
    "a byte order mark": "\ufeffa",
    "a soft hyphen": "a\u00adb",
    "a line separator": "a\u2028b",
    "a paragraph separator": "a\u2029b",
    "a no-break space": "a\u00a0b",
    "a tag character": "a\U000e0041",
    "a private character": "a\ue000",
    "a noncharacter": "a\uffff",
    "a high surrogate": "a\ud800b",
    "a low surrogate": "a\udcffb",
    "255 bytes": "a" * 255,
    "256 bytes": "a" * 256,
    "256 bytes in 64 characters": "\U0001f600" * 64,
    "1 MiB": "a" * 2**20,
    "1 MiB of newlines": "\n" * 2**20,
}
"""What is left out of listings, as repository and as tag."""

UNUSABLE_AS_TAG = {"two segments": "a/b", "a segment and a control": "a/\x1b"}
UNUSABLE_AS_REPOSITORY = {
    "2,049 bytes": "a/" * 1024 + "a",
    "a million segments": "a/" * 2**20 + "a",
}

ODD_NAMES: dict[str, str] = {
    "a backslash": "..\\x",
    "a percent-encoded way out": "%2e%2e%2fx",
    "a query": "a?n=1",
    "a fragment": "a#b",
    "an option": "--help",
    "a glob": "*",
    "a command": "$(reboot)",
    "quotes": "'\"`",
    "a space": " ",
    "a home": "~root",
    "three dots": "...",
    "254 bytes": "a" * 254,
}
"""What is harmless in a path, and shown as it is: Epoch does not validate names."""

NOT_NAMES: dict[str, object] = {
    "null": None,
    "a number": 7,
    "a boolean": True,
    "a list": ["v2"],
    "an object": {"name": "v2"},
}

NOT_LISTS: dict[str, object] = {
    "a number": 7,
    "text": "v1",
    "an object": {"v1": "v1"},
    "true": True,
    "zero": 0,
    "nothing but text": "",
}


def names() -> Iterator[Lie]:
    """Names that could not be paths are left out; their neighbours stay listed."""
    for title, name in (UNUSABLE_NAMES | UNUSABLE_AS_TAG | NOT_NAMES).items():
        answers = {TAGS: listing_reply(TAGS, ["v1", name, "v2"])}
        yield Lie("name left out", f"a tag that is {title}", SEEN_TAGS, ["v1", "v2"], answers)
    for title, name in (UNUSABLE_NAMES | UNUSABLE_AS_REPOSITORY | NOT_NAMES).items():
        answers = {CATALOG: listing_reply(CATALOG, ["app", name, "honest"])}
        found = ["app", "honest"]
        yield Lie("name left out", f"a repository that is {title}", SEEN_CATALOG, found, answers)
    for title, name in ODD_NAMES.items():
        answers = {TAGS: listing_reply(TAGS, ["v1", name])}
        found = sorted(["v1", name])
        yield Lie("odd name", f"a tag that is {title}", SEEN_TAGS, found, answers)
    for word in ("tags", "manifests", "blobs", "layout", ".epochfs", "_catalog"):
        answers = {CATALOG: listing_reply(CATALOG, [word])}
        yield Lie("odd name", f"a repository called {word}", SEEN_CATALOG, [f"_{word}"], answers)


def listings() -> Iterator[Lie]:
    """A listing that is none is an error, never a shorter listing."""
    for path, see in ((TAGS, SEEN_TAGS), (CATALOG, SEEN_CATALOG)):
        where = path.rpartition("/")[2]
        for title, value in NOT_LISTS.items():
            yield Lie(
                "listing", f"{where}: {title}", see, errno.EIO, {path: listing_reply(path, value)}
            )
        for title, document in {
            "a list": ["v1"],
            "null": None,
            "a number": 7,
            "text": "v1",
        }.items():
            answers = {path: json_reply(document)}
            yield Lie("listing", f"{where}: a document that is {title}", see, errno.EIO, answers)
        for title, (item, count) in MILLIONS.items():
            answers = {path: partial(millions, item, count)}
            yield Lie("listing", f"{where}: {title}", see, errno.EIO, answers)
    for title, body in {"null": {"tags": None}, "no key": {}, "empty": {"tags": []}}.items():
        yield Lie("listing", f"tags: {title}", SEEN_TAGS, [], {TAGS: json_reply(body)})


MILLIONS = {
    "ten million names": (b'"a"', 10_000_000),
    "ten million lists": (b"[]", 10_000_000),
    "ten million numbers": (b"1", 10_000_000),
    "two million names": (b'"ab"', 2_000_000),
}


def millions(item: bytes, count: int, request: Seen) -> list[bytes]:
    """Answer with a listing of `count` times the same item, in JSON."""
    key = b"repositories" if request.path == CATALOG else b"tags"
    return [reply(200, b'{"%s":[%s]}' % (key, b",".join([item] * count)))]


LINKS: dict[str, str] = {
    "another host": "<https://elsewhere.example/v2/x>; rel=next",
    "another host without a scheme": '<//elsewhere.example/v2/x>; rel="next"',
    "another port": '<http://127.0.0.1:9/v2/x>; rel="next"',
    "https for http": '<https://{here}/v2/x>; rel="next"',
    "user information": '<http://me:secret@{here}/v2/x>; rel="next"',
    "user information that looks like the host": '<http://{here}@elsewhere.example/>; rel="next"',
    "a file": '<file:///etc/passwd>; rel="next"',
    "ftp": '<ftp://{here}/v2/x>; rel="next"',
    "a script": '<javascript:alert(1)>; rel="next"',
    "data": '<data:application/json,{}>; rel="next"',
    "a link-local address": '<http://169.254.169.254/v2/x>; rel="next"',
    "outside of /v2/": '</admin>; rel="next"',
    "out of /v2/": '</v2/../admin>; rel="next"',
    "itself": '<?n=1000>; rel="next"',
    "a tab": '</v2/\tx>; rel="next"',
    "brackets that do not close": "<http://[::1/v2/x>; rel=next",
    "no closing bracket": "</v2/x; rel=next",
    "no brackets": '/v2/x; rel="next"',
    "60 KB of semicolons": "</v2/x>" + ";" * 60_000,
    "60 KB of quotes": '</v2/x>; rel="' + '\\"' * 30_000,
    "a second link that cannot be read": "</v2/x>; rel=prev, <broken",
}


SITES: dict[str, str] = {
    "another host": "https://elsewhere.example",
    "another host without a scheme": "//elsewhere.example",
    "another port": "http://127.0.0.1:9",
    "https for http": "https://{here}",
    "user information": "http://me:secret@{here}",
    "user information that looks like the host": "http://{here}@elsewhere.example",
    "a link-local address": "http://169.254.169.254",
    "a file": "file://",
}
"""What a Link may name as the server of a next page, which is asked for where the first was."""


def links() -> Iterator[Lie]:
    """A next page is asked for only under /v2/ of the same server, and not for ever."""
    for path, see in ((TAGS, SEEN_TAGS), (CATALOG, SEEN_CATALOG)):
        key = "tags" if path == TAGS else "repositories"
        for title, link in LINKS.items():
            answers = {path: reply(200, encode({key: ["v1"]}), Link=link)}
            yield Lie("Link", f"{key}: {title}", see, errno.EIO, answers)
        for title, site in SITES.items():
            pages = {path: partial(_two_pages, key, site)}
            yield Lie("Link", f"{key}: followed at home: {title}", see, ["app", "v1"], pages)

        title = f"{key}: pages that never end"
        yield Lie("Link", title, see, errno.ETIMEDOUT, {path: _endless_pages}, timeout=0.5)


def _two_pages(key: str, site: str, request: Seen) -> list[bytes]:
    if "last" in request.target:
        return [json_reply({key: ["v1"]})]
    site = site.replace("{here}", request.headers["host"])
    link = f'<{site}{request.path}?last=app>; rel="next"'
    return [reply(200, encode({key: ["app"]}), Link=link)]


def _endless_pages(request: Seen) -> list[bytes]:
    number = int(request.target.rpartition("=")[2]) + 1
    page = encode({"repositories": ["app"], "tags": ["v1"]})
    return [reply(200, page, Link=f'<{request.path}?last={number}>; rel="next"')]


MALFORMED_DIGESTS: dict[str, str] = {
    "a path": "sha256:../../x",
    "a path of the right length": "sha256:" + "../" * 21 + "x",
    "nothing": "",
    "no colon": "0" * 64,
    "no algorithm": ":" + "0" * 64,
    "nothing behind the colon": "sha256:",
    "one digit short": "sha256:" + "0" * 63,
    "one digit long": "sha256:" + "0" * 65,
    "upper case": "sha256:" + "A" * 64,
    "an algorithm in upper case": "SHA256:" + "0" * 64,
    "no hexadecimal": "sha256:" + "g" * 64,
    "other digits": "sha256:" + "\u0660" * 64,
    "a space in front": " sha256:" + "0" * 64,
    "a newline behind": "sha256:" + "0" * 64 + "\n",
    "a NUL behind": "sha256:" + "0" * 64 + "\0",
    "md5": "md5:" + "0" * 32,
    "sha1": "sha1:" + "0" * 40,
    "blake3": "blake3:" + "0" * 64,
    "base64": "sha256+b64:" + "0" * 64,
    "sha512 as long as sha256": "sha512:" + "0" * 64,
    "an algorithm that is a path": "../sha256:" + "0" * 64,
    "two algorithms": "sha256:sha256:" + "0" * 64,
    "a query": "sha256:" + "0" * 64 + "?x",
    "1 MB": "sha256:" + "0" * 1_000_000,
}

OTHER = Digest.of(b"other")


def document_with(place: str, descriptor: dict[str, object]) -> bytes:
    """Return a manifest, or an index, with this descriptor in its place."""
    honest = {"mediaType": "x/y", "digest": str(Digest.of(LAYER)), "size": len(LAYER)}
    entry = {**honest, **descriptor}
    if place == "index entry":
        return encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [honest, entry]})
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": honest, "layers": [honest]}
    return encode({**manifest, place: [honest, entry] if place == "layers" else entry})


PLACES = ("layers", "config", "subject", "index entry")


def digests() -> Iterator[Lie]:
    """A malformed digest is refused before a path or a URL is made of it."""
    for title, digest in {**MALFORMED_DIGESTS, "10 MB": "sha256:" + "0" * 10_000_000}.items():
        if digest:
            fits = len(os.fsencode(digest)) <= NAME_MAX
            expected = errno.ENOENT if fits else errno.ENAMETOOLONG
            for see in (f"ls /app/manifests/{digest}", f"cat /app/blobs/{digest}"):
                yield Lie("digest in a path", f"{see.split()[1][5:9]}: {title}", see, expected)
    for place in PLACES:
        for title, text in (MALFORMED_DIGESTS | NOT_NAMES).items():
            raw = document_with(place, {"digest": text})
            yield from malformed_manifest("digest in a manifest", f"{place}: {title}", raw)
    for title, digest in MALFORMED_DIGESTS.items():
        if digest.isascii() and digest.isprintable() and digest.strip() == digest[:60_000]:
            # A tag's own digest can still be known: the manifest is fetched, and hashed.
            answers = {TAG: manifest_reply(APP.raw, Docker_Content_Digest=digest)}
            link = f"../manifests/{APP.digest}"
            yield Lie("digest in a header", f"malformed: {title}", SEEN_TAG, link, answers)
    yield from _false_digests()


def _false_digests() -> Iterator[Lie]:
    kind = "false digest"
    sha512 = str(Digest.of(b"other", "sha512"))
    for title, headers in {
        "in the header": {"Docker_Content_Digest": str(OTHER)},
        "in the header, as sha512": {"Docker_Content_Digest": sha512},
        "in a header of 10 MB": {"Docker_Content_Digest": "0" * 10_000_000},
    }.items():
        answers = {MANIFEST: manifest_reply(APP.raw, **headers)}
        yield Lie(kind, title, SEEN_MANIFEST, errno.EIO, answers)
    lied = APP.raw.replace(b"amd64", b"arm64") + b"\n"
    for title, body in {
        "another manifest": lied,
        "no bytes": b"",
        "one byte less": APP.raw[:-1],
        "one byte more": APP.raw + b"\n",
    }.items():
        unnamed = reply(200, body, Content_Type=OCI_MANIFEST)
        yield Lie(kind, f"{title}, unnamed", SEEN_MANIFEST, errno.EIO, {MANIFEST: unnamed})
        claimed = manifest_reply(body, Docker_Content_Digest=str(APP.digest))
        yield Lie(kind, f"{title}, claimed", SEEN_MANIFEST, errno.EIO, {MANIFEST: claimed})
        other = manifest_reply(body)
        yield Lie(kind, f"{title}, admitted", SEEN_MANIFEST, errno.EIO, {MANIFEST: other})
    for title, body in {
        "one byte flipped": LAYER[:-1] + bytes([LAYER[-1] ^ 1]),
        "one byte less": LAYER[:-1],
        "one byte more": LAYER + b"\0",
        "no bytes": b"",
        "zeros": bytes(len(LAYER)),
    }.items():
        yield Lie(kind, f"a blob: {title}", SEEN_BLOB, errno.EIO, {BLOB: reply(200, body)})


LIES = (*names(), *listings(), *links(), *digests())
