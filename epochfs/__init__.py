"""epochfs mounts an OCI Distribution registry as a directory."""

__version__ = "0.1.0"
