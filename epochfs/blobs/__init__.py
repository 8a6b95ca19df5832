"""Blobs to read at random: one download per digest, hashed as it arrives, followed by its readers.

Uses `client` for streams and `cache` for what is kept.
Used by `layers`, `vfs` and `session`; the tree's shape is not known here.
"""
