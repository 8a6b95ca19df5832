"""What registries do differently, as switches."""

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

    validates: bool = True
    """Names, media types and the references of a pushed manifest are checked."""

    sha512: bool = True
    """sha512 digests are understood, beside sha256."""

    auth: Literal["", "basic", "bearer"] = ""
    """How clients must authenticate; empty means not at all."""

    anonymous_reads: bool = False
    """With `auth`, every GET and HEAD but `/v2/` itself is open to all."""

    empty_token: bool = False
    """The token server answers `"token": ""` to everyone, and writes need none."""


SPECIFICATION = Behaviour()
"""A registry that does all the specification offers, without authentication."""

EPOCH = Behaviour(
    ranges=False,
    paging=False,
    referrers=False,
    blob_deletes=False,
    single_put=True,
    global_blobs=True,
    validates=False,
    sha512=False,
    auth="bearer",
    anonymous_reads=True,
    empty_token=True,
)
"""Epoch as it is found: `/v2/` answers 401, everything else is open. With `empty_token` replaced
by False it is an Epoch whose writes need the registry token (here: the password)."""
