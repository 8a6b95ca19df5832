"""What a registry, or an OCI image layout on disk, says of its names and digests, remembered.

Uses `client` to ask and `cache` to remember over an outage.
Used by `vfs`, which asks nothing of a registry but through here.
"""
