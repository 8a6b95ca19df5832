"""The root filesystem of a container image: its layers, merged as they are looked at.

::

    nodes      what the tree shows of one place in a root filesystem
    merge      which layer a path is seen in: whiteouts, opaque directories, hard links
    store      the index of a layer: found in the cache, or built once for all who wait
    build      a layer's index from its table of contents, or else from the walk of its tar stream
    tarwalk    the entries of a tar stream (`tarstream`, `tarheaders`, `tarsparse`)
    content    the bytes of one file: from the tar stream, or from the chunks of a table of contents
    archive    a layer's tar stream at random: as it is, by a gzip index, or from a copy

An index is made from a blob and named by its digest, so it never has to be invalidated. It is on
disk and merged at lookup: memory does not grow with the size of an image.
"""
