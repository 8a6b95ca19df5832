"""The local disk as a boundary: blobs, files being written, answers, tag history, quota, users.

Treats its own directory as hostile. Uses `oci`, and of `client` the identity of a login alone.
Used by `metadata` and `blobs`, which fill it, and by `cli`, which looks after it.
"""
