"""The differences between registries, as switches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a registry behaves where registries differ; the defaults are the specification's ways."""

    ranges: bool = True
    """`Range` of a blob is honoured with 206; otherwise every GET answers the whole blob."""

    paging: bool = True
    """`n`, `last` and `Link` work in listings; otherwise every listing is whole."""

    page_size: int = 1000
    """The most names in one page, and how many there are without `n`. Only with `paging`."""

    catalog: bool = True
    """`/v2/_catalog` exists."""

    referrers: bool = True
    """`/v2/<name>/referrers/<digest>` exists."""

    deletes: bool = True
    """Manifests and tags can be deleted."""

    blob_deletes: bool = True
    """Blobs can be deleted."""

    uploads: bool = True
    """The specification's upload sessions (POST, PATCH, PUT) exist."""

    single_put: bool = False
    """`PUT /v2/<name>/blobs/<digest>` stores a blob in one request: Epoch's own way."""

    global_blobs: bool = False
    """A blob pushed to one repository can be pulled from every other."""

    strict_uploads: bool = True
    """A chunk out of order is answered 416, and an upload can be looked at and cancelled; otherwise
    what arrives is appended, and that is all."""

    validates: bool = True
    """Names, media types and the references of a pushed manifest are checked."""

    sparse: Literal["", "indexes", "all"] = "indexes"
    """Which manifests may name what is not there: none, an index its manifests, or all. Only with
    `validates`; without it, all may."""

    tag_parameters: bool = True
    """A manifest that is pushed by its digest gets the tags of `?tag=` (specification 1.1+dev)."""

    sha512: bool = True
    """sha512 digests are understood, beside sha256; otherwise such a digest is the name of a tag,
    and of no blob."""

    bucket: bool = False
    """Tags are keys in a bucket, `<repository>/<tag>.json`: a repository is there while one of its
    tags is, an unknown one has no tags, and deleting what is not there succeeds."""

    plain_errors: bool = False
    """What is no endpoint is answered as a web server does, without an error code: by 404 to a GET,
    by 405 to all else."""

    auth: Literal["", "basic", "bearer"] = ""
    """How clients must authenticate; empty means not at all."""

    anonymous_reads: bool = False
    """With `auth`, every GET and HEAD but `/v2/` itself is open to all."""

    scopes: bool = True
    """A challenge names the scope to ask for."""

    empty_token: bool = False
    """The token server answers the password to whoever gives it, and "" to who gives none."""


SPECIFICATION = Behaviour()
"""A registry that does all the specification offers, without authentication."""

EPOCH = Behaviour(
    ranges=False,
    paging=False,
    referrers=False,
    blob_deletes=False,
    single_put=True,
    global_blobs=True,
    strict_uploads=False,
    validates=False,
    tag_parameters=False,
    sha512=False,
    bucket=True,
    plain_errors=True,
    auth="bearer",
    anonymous_reads=True,
    scopes=False,
    empty_token=True,
)
"""Epoch, as its sources of 24 April 2026 (commit fcafc2d, `server/` and `registry/`) have it.

Everyone may read, but `/v2/` itself asks for a token, and so does every write: the registry token,
which is the password here, sent as it is or fetched for any user name; without a password nobody
can write. Nothing is checked but that a manifest is JSON and, pushed under `sha256:`, has that
digest. One without `mediaType` is served as an image manifest, whatever it was pushed as."""
