"""Writing: what was written and waits in front of the tree, and how it gets into the registry.

Uses what `vfs` uses, and the tree. A read-only mount does not even import it.
Used by `fuse`, `session` and `cli`.
"""
