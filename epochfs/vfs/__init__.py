"""The tree of a registry, defined here and only here: the file system without FUSE.

Uses `metadata`, `blobs` and `layers`; every method takes a path and raises `errors`.
Used by `fuse`, `session` and `fsspec`: a front end translates, and decides nothing.
"""
