"""The OCI specifications as values: names, manifests, kinds of artifacts, what refers to what.

Pure: it parses and decides, and does no I/O. Uses `errors` alone.
Used by everything that reads a name, a digest or a manifest.
"""
