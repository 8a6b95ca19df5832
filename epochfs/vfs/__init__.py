"""What a registry looks like as a directory, here and only here; the filesystem without FUSE.

Uses `metadata`, `blobs` and `layers`; every method takes a path and raises `errors`.
Used by `fuse` and `session`: a front end translates, and decides nothing.
"""
