"""The tree for programs: an fsspec file system, `epochfs://HOST[:PORT]/<path in the tree>`.

Uses `session` to open a registry and `vfs` to read it; needs no FUSE. Importing it imports neither
`requests` nor what a session is made of: that happens at the first use.
Used by programs, through fsspec's table of protocols (the entry point in pyproject.toml).
"""

from epochfs.fsspec.registry_file_system import RegistryFileSystem

__all__ = ["RegistryFileSystem"]
