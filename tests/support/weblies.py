"""Lies in HTTP: where to go next, whom to show the password to, and when an answer ends."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import partial

from support.lies import (
    APP,
    BLOB,
    CATALOG,
    MANIFEST,
    SEEN_BLOB,
    SEEN_CATALOG,
    SEEN_MANIFEST,
    SEEN_TAG,
    SEEN_TAGS,
    TAG,
    TAGS,
    Answer,
    Lie,
    manifest_reply,
)
from support.scripted import Close, Seen, Step, reply

READS = {
    "tags": (SEEN_TAGS, TAGS),
    "catalog": (SEEN_CATALOG, CATALOG),
    "manifest": (SEEN_MANIFEST, MANIFEST),
    "blob": (SEEN_BLOB, BLOB),
}

LOCATIONS = {
    "a file": "file:///etc/passwd",
    "a file of this host": "file://{here}/etc/passwd",
    "ftp": "ftp://{here}/x",
    "gopher": "gopher://{here}/x",
    "a script": "javascript:alert(1)",
    "data": "data:,x",
    "user information": "http://me:secret@{here}/x",
    "user information that looks like the host": "http://{here}@elsewhere.example/",
    "a backslash": "http://{here}\\@elsewhere.example/",
    "a tab": "/v2/\tx",
    "no host": "https:///x",
    "a port over 65535": "http://127.0.0.1:99999/",
    "a port in hexadecimal": "http://127.0.0.1:0x50/",
    "brackets that do not close": "http://[::1/",
    "nowhere": "",
    "60 KB": "ftp://" + "x" * 60_000,
}


def redirects() -> Iterator[Lie]:
    """A redirect is followed to http(s) only, never down from https, and not for ever."""
    for what, (see, path) in READS.items():
        for title, location in LOCATIONS.items():
            answers = {path: reply(307, Location=location)}
            yield Lie("redirect", f"{what}: to {title}", see, errno.EIO, answers)
        for title, answers in {
            "to itself": {path: reply(302, Location=path)},
            "in circles": {path: reply(302, Location="/a"), "/a": reply(307, Location=path)},
        }.items():
            yield Lie("redirect", f"{what}: {title}", see, errno.EIO, answers)
        for location in ("http://{here}/x", "http://elsewhere.example/", "HTTP://127.0.0.1/"):
            answers = {path: reply(307, Location=location)}
            title = f"{what}: from https to {location}"
            yield Lie("redirect", title, see, errno.EIO, answers, tls=True)


UNSAFE_REALMS = (
    "http://me:secret@{here}/token",
    "http://me@{here}/token",
    "http://169.254.169.254/token",
    "http://0xa9fea9fe/token",
    "http://0xa9.254.0xa9.254/token",
    "http://0251.0376.0251.0376/token",
    "http://2852039166/token",
    "http://169.254.43518/token",
    "http://[fe80::1]/token",
    "http://[fe80::1%25eth0]/token",
    "http://[::ffff:169.254.169.254]/token",
    "http://[::ffff:a9fe:a9fe]/token",
    "ftp://{here}/token",
    "file:///etc/passwd",
    "//{here}/token",
    "/token",
    "javascript:alert(1)",
    "http://[broken/token",
    "http://",
    "",
)

UNSAFE_FOR_HTTPS = ("http://{here}/token", "http://elsewhere.example/token", "HTTP://127.0.0.1/t")

UNUSABLE_CHALLENGES = {
    "Bearer without a realm": ("Bearer", errno.EIO),
    "Bearer with a realm that never ends": ('Bearer realm="http://{here}/token', errno.EIO),
    "a scheme nobody has": ('Digest realm="x", nonce="y"', errno.EACCES),
    "Negotiate": ("Negotiate YWJj", errno.EACCES),
    "nothing but commas": (",,,,", errno.EACCES),
    "bytes that are not strings": ("\xff\x80", errno.EACCES),
    "60 KB of backslashes": ('Digest a="' + "\\" * 60_000, errno.EACCES),
    "60 KB of schemes": ("a " * 30_000, errno.EACCES),
    "60 KB of parameters": ("Digest " + "a=b," * 15_000, errno.EACCES),
}


def challenges() -> Iterator[Lie]:
    """No credential goes to a token server that must not see it."""
    for realm in UNSAFE_REALMS:
        challenge = f'Bearer realm="{realm}",service="x",scope="repository:app:pull"'
        answers = {TAGS: reply(401, WWW_Authenticate=challenge)}
        yield Lie("realm", f"'{realm}'", SEEN_TAGS, errno.EIO, answers)
    for realm in (*UNSAFE_FOR_HTTPS, *UNSAFE_REALMS):
        answers = {TAGS: reply(401, WWW_Authenticate=f'Bearer realm="{realm}"')}
        yield Lie("realm", f"https: '{realm}'", SEEN_TAGS, errno.EIO, answers, tls=True)
    for title, (challenge, expected) in UNUSABLE_CHALLENGES.items():
        answers = {TAGS: reply(401, WWW_Authenticate=challenge)}
        yield Lie("realm", f"challenge: {title}", SEEN_TAGS, expected, answers)
    refused = {TAGS: reply(401)}
    yield Lie("realm", "no challenge", SEEN_TAGS, errno.EACCES, refused)


BAD_TOKENS = {
    "nothing": b"",
    "HTML": b"<html>",
    "no UTF-8": b"\xff",
    "a list": b"[]",
    "text": b'"token"',
    "no token": b"{}",
    "a token that is null": b'{"token": null}',
    "a token that is a number": b'{"token": 7}',
    "a token that is a list": b'{"token": ["t"]}',
    "a token with a header behind": b'{"token": "a\\r\\nHost: evil"}',
    "a token of two words": b'{"token": "two words"}',
    "a token that is no ASCII": b'{"token": "t\\u00e9"}',
    "a token of 100 KB": b'{"token": "%s"}' % (b"t" * 100_000),
    "lists nested 100,000 deep": b"[" * 100_000,
    "a 10,000-digit number": b'{"token": "t", "x": %s}' % (b"9" * 10_000),
    "5 MB": b'{"token": "t", "x": "%s"}' % (b"x" * 5_000_000),
}

TOKEN_ANSWERS: dict[str, tuple[Answer, int]] = {
    "gzip": (reply(200, b'{"token": "t"}', Content_Encoding="gzip"), errno.EIO),
    "a redirect to a file": (reply(302, Location="file:///etc/passwd"), errno.EIO),
    "a redirect to itself": (reply(302, Location="/token"), errno.EIO),
    "204": (reply(204), errno.EIO),
    "404": (reply(404), errno.EIO),
    "500": (reply(500), errno.EIO),
    "401": (reply(401, WWW_Authenticate='Bearer realm="http://{here}/token"'), errno.EACCES),
    "403": (reply(403), errno.EACCES),
    "a token that does not help": (reply(200, b'{"token": "t"}'), errno.EACCES),
    "an empty token": (reply(200, b'{"token": ""}'), errno.EACCES),
    "a life of -1 s": (reply(200, b'{"token": "t", "expires_in": -1}'), errno.EACCES),
    "a life of NaN": (reply(200, b'{"token": "t", "expires_in": NaN}'), errno.EACCES),
}


def tokens() -> Iterator[Lie]:
    """A token server that talks nonsense ends the one request that asked it."""
    challenge = reply(401, WWW_Authenticate='Bearer realm="http://{here}/token"')
    nonsense = {title: (reply(200, raw), errno.EIO) for title, raw in BAD_TOKENS.items()}
    for title, (found, expected) in {**nonsense, **TOKEN_ANSWERS}.items():
        answers = {TAGS: challenge, "/token": found}
        yield Lie("token server", title, SEEN_TAGS, expected, answers)


_PIECE = b"10000\r\n" + b"a" * 65536 + b"\r\n"

ENDLESS_ERRORS = {
    400: errno.EIO,
    401: errno.EACCES,
    403: errno.EACCES,
    405: errno.EIO,
    410: errno.EIO,
    429: errno.EIO,
    500: errno.EIO,
    503: errno.EIO,
    599: errno.EIO,
}


def endless_error(status: int, headers: str, request: Seen) -> Iterator[Step]:
    """Answer with an error whose body never ends."""
    yield f"HTTP/1.1 {status} No\r\nTransfer-Encoding: chunked\r\n{headers}\r\n".encode()
    while request.method == "GET":
        yield _PIECE


def errors() -> Iterator[Lie]:
    """Of an error's body 64 KiB are read, and what it says is not believed further than that."""
    kind = "endless error body"
    for what, (see, path) in READS.items():
        for status, expected in ENDLESS_ERRORS.items():
            # For the catalog a denial means that there is none.
            if what != "catalog" or (expected == errno.EIO and status != 405):
                answers = {f"GET {path}": partial(endless_error, status, "")}
                yield Lie(kind, f"{what}: {status}", see, expected, answers)
    for title, headers in {
        "302": f"Location: {MANIFEST}\r\n",
        "401": 'WWW-Authenticate: Basic realm="x"\r\n',
    }.items():
        answers = {f"GET {MANIFEST}": partial(endless_error, int(title), headers)}
        expected = errno.EIO if title == "302" else errno.EACCES
        yield Lie(kind, f"{title} with {headers.split(':')[0]}", SEEN_MANIFEST, expected, answers)
    for title, body in {
        "no JSON": b"\xff\0",
        "lists nested 100,000 deep": b"[" * 100_000,
        "errors that are a number": b'{"errors": 7}',
        "errors of errors": b'{"errors": [[], 7, null, {"code": {}, "message": []}]}',
        "a code that is 60 KB long": b'{"errors": [{"code": "%s"}]}' % (b"A" * 60_000),
        "a message in colours": b'{"errors": [{"code": "X", "message": "\\u001b[31m\\n\\u0000"}]}',
    }.items():
        for status, expected in ((400, errno.EIO), (403, errno.EACCES), (404, errno.ENOENT)):
            answers = {MANIFEST: reply(status, body)}
            yield Lie("error body", f"{status}: {title}", SEEN_MANIFEST, expected, answers)


def _cut(data: bytes) -> Callable[[Seen], Iterator[Step]]:
    """Return a script that sends these bytes and closes the connection."""

    def script(_: Seen) -> Iterator[Step]:
        yield data
        raise Close

    return script


MALFORMED = {
    "no HTTP": b"nonsense\r\n\r\n",
    "HTTP/0.9": b"the body\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/3": b"HTTP/3 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "a status that is no number": b"HTTP/1.1 many OK\r\n\r\n",
    "status 99": b"HTTP/1.1 99 OK\r\n\r\n",
    "status 1000": b"HTTP/1.1 1000 OK\r\n\r\n",
    "status 999": b"HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n",
    "status 204": b"HTTP/1.1 204 OK\r\n\r\n",
    "status 304": b"HTTP/1.1 304 OK\r\n\r\n",
    "a status line of 100 KB": b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n",
    "1,000 headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    "a header of 100 KB": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    "a length that is negative": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a chunk of no length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a chunk of negative length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
    "a chunk of 2^100 bytes": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1"
    + b"0" * 25
    + b"\r\nx",
    "a chunk's length of 100 KB": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"0" * 100_000,
}


def answers() -> Iterator[Lie]:
    """What is no HTTP is no answer."""
    for title, raw in MALFORMED.items():
        for what, (see, path) in READS.items():
            yield Lie("HTTP", f"{what}: {title}", see, errno.EIO, {path: _cut(raw)})
    # What stands behind the answer to a HEAD must not pass for the answer to the next request.
    smuggled = manifest_reply(APP.raw).partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + reply(404)
    yield Lie(
        "HTTP",
        "a body behind the answer to HEAD",
        SEEN_TAG,
        f"../manifests/{APP.digest}",
        {f"HEAD {TAG}": smuggled},
    )


LIES = (*redirects(), *challenges(), *tokens(), *errors(), *answers())
