"""The kernel's side of a mount: FUSE operations, errno, libfuse, passthrough, the table of mounts.

`operations` only translates: errors by `errnos`, and all else by what `libfuse` offers, which alone
imports the binding. Uses `vfs`.
Used by `session` for what a mount can do here, and by `cli` to serve one.
"""
