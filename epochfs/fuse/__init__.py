"""The kernel's side of a mount: FUSE operations, errno, passthrough, the table of mounts.

The only importer of the binding and of errno numbers. Uses `vfs`.
Used by `session` for what a mount can do here, and by `cli` to serve one.
"""
