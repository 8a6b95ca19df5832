"""What `scripts/bench` runs: epochfs measured beside what people use today.

::

    rows         what a row of the table is: its bar, its samples, its result
    blobrows     whole blobs from a fast registry, cold and warm
    touchedrows  the same on memory that was touched, beside rivals that verify; the machine itself
    linkrows     slow links, and how soon the first byte comes
    sharedrows   random reads and many readers
    namerows     listings, tags, mounting
    walkrows     walks through many repositories, and through a directory of very many files
    volumerows   models, read by the libraries that people read them with
    layerrows    one small file of a large layer
    writerows    writing: one large blob, and a backup of very many small ones
    lab          the scratch directory and all that stands in it, made when a row first asks
    content      the blobs and repositories the rows read
    images       images whose layers are gzip
    soci         the SOCI index of such a layer
    tensors      files of tensors, and programs that read them
    origins      docker-registry, and nginx in front of it
    shaper       a proxy that is a slow or distant link (a program of its own)
    tagserver    a registry of nothing but names (a program of its own)
    mounts       epochfs and rclone, mounted
    programs     commands timed, servers started and stopped
    report       the table, for people and for a page, and the JSON file
    chart        the picture

The rules of fair play. A row alternates epochfs and its rival in one run, and they take turns at
going first. Before each, all writes are on disk (`sync`), so that neither pays for the other's.
"Cold" is a cache directory that did not exist. Everything is served from the page cache of this
machine over loopback, so ratios say more than seconds do.
"""
