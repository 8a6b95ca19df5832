"""`epochfs://HOST[:PORT]/<path in the tree>`: the registry, and the path in it. Pure."""

from __future__ import annotations

import posixpath

PROTOCOL = "epochfs"

_SCHEME = f"{PROTOCOL}://"


def split_url(text: str) -> tuple[str, str]:
    """Return the host with its port, "" where there is none, and the path.

    Nothing in the path is decoded: `%`, `?`, `#`, `:` and `@` mean themselves.
    """
    if not text.startswith(_SCHEME):
        return "", normal_path(text)
    host, _, path = text.removeprefix(_SCHEME).partition("/")
    return host, normal_path(path)


def normal_path(text: str) -> str:
    """Return a path as the tree has it: absolute, without `.`, `..`, or slashes that say nothing.

    `..` at the root is the root.
    """
    return posixpath.normpath(f"/{text.lstrip('/')}")


def join_url(host: str, path: str) -> str:
    """Return the URL of a path; without a host, it says which file system only by its protocol."""
    return f"{_SCHEME}{host}{path}"
