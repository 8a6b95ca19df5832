"""The views: directories that show content once more, as people want it.

One rule holds in all of them: a link where the bytes already have a path, a regular file only
where they do not. `layout` is the view of a repository; the others are views of a manifest.
Uses `node` and `composed`. Used by `tree` and `manifest_directory`, which lists them.
"""
