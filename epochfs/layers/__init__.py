"""A tar layer as an archive: indexed once, bounded, read at random.

Plain tar, gzip, zstd, eStargz and zstd:chunked. An index is named by its blob's digest, so it never
has to be invalidated; it is on disk, and memory does not grow with the size of an image. Uses
`blobs` to read and `cache` to keep indexes.
Used by `vfs`, which merges layers into a root filesystem.
"""
