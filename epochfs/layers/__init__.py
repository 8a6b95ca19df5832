"""A tar layer as an archive: indexed once, bounded, read at random.

`tar` reads its entries from a `tar_stream`, which `decoders` decompress (gzip, zstd); `toc` reads
those of eStargz and zstd:chunked, and `soci`, with `flatbuffers`, those of gzip layers that have a
SOCI index. `indexing` has them written by `index_writer` to an `index`, stored in the cache.
`archive`, `chunks` with the chunk cache, and `spans` read the files; `layer_store` is the front
door. With `--unverified-layers`, `arriving` shows what has passed of a layer that is still being
indexed, and `gzip_reader` reads it. An index is named by its blob's digest, so it never has to be
invalidated, and it is on disk, so memory does not grow with the size of an image.

A layer is hostile. Bounds on sizes, counts and depth are constants, MAX_..., of the module that
enforces them: `tar_stream` (headers), `tar` (attributes), `entry` (paths), `index_writer` (entries,
links), `decoders` (decompressed size: `size_limit`), `gzip_reader` (points), `toc` and `soci`
(tables, chunks, spans), `flatbuffers` (sharing), `chunks` (decoders).

Uses `blobs` to read, `cache` to keep indexes, and `metadata` to find those of SOCI. Used by `vfs`,
which merges layers into a root filesystem.
"""
