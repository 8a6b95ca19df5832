"""The kernel's side of a mount: FUSE operations, errno, libfuse, passthrough, the table of mounts.

`operations` and `write_operations` only translate, with the errno table of `errnos`; `libfuse`
alone imports the binding. Uses `vfs`.
Used by `session`, whose status shows passthrough, and by `cli` to serve a mount.
"""
