"""Parsers of clients' paths, queries and headers, which refuse what is malformed."""

from __future__ import annotations

import re

from epochfs.demo.registry.messages import OciError
from epochfs.errors import InvalidName
from epochfs.oci.names import Digest

_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z", re.ASCII)


_CHUNK = re.compile(r"(\d+)-\d+\Z", re.ASCII)


def parse_digest(text: str, *, sha512: bool = True) -> Digest:
    """Return the digest; raises OciError 400 for no digest, or an algorithm not offered."""
    try:
        digest = Digest.parse(text)
    except InvalidName as error:
        raise OciError(400, "DIGEST_INVALID", str(error)) from None
    if digest.algorithm == "sha512" and not sha512:
        raise OciError(400, "DIGEST_INVALID", "only sha256 is known here")
    return digest


def parse_reference(text: str, *, sha512: bool = True) -> str | Digest:
    """Return a digest for text with a colon, and the text itself, a tag, for all other.

    Without `sha512` only `sha256:` begins a digest. Raises OciError 400 for a digest of nonsense.
    """
    is_digest = ":" in text if sha512 else text.startswith("sha256:")
    return parse_digest(text, sha512=sha512) if is_digest else text


def parse_chunk(header: str) -> int | None:
    """Return where a chunk begins by its Content-Range, in bytes; None if that does not say."""
    match = _CHUNK.match(header)
    return int(match[1]) if match else None


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the `[start, stop)` that a Range header selects of `size` bytes.

    None stands for the whole: no header, one in another form, or several ranges, all of which a
    server may ignore (RFC 9110, 14.2). Raises OciError 416 for a range with no byte in it.
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
        raise OciError(
            416, "BLOB_UNKNOWN", "no byte in this range", Content_Range=f"bytes */{size}"
        )
    return start, stop
