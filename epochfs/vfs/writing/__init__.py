"""Writing: what was written and waits in front of the tree, and how it gets into the registry.

May use: what `vfs` may use, and the tree. A mount that is read-only has none of it.
Used by: `fuse`, `session`.
"""
