"""Remembers what a registry, or an OCI image layout on disk, says of its names and digests.

Uses `client` to ask and `cache` to remember over an outage.
Used by `vfs`, which asks nothing of a registry except through here.
"""
