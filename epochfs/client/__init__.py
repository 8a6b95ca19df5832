"""The client of a registry: one method per endpoint, listings page by page, blobs pushed."""

from epochfs.client.client import RegistryClient
from epochfs.client.mirrors import MirrorState
from epochfs.transport import BlobStream

__all__ = ["BlobStream", "MirrorState", "RegistryClient"]
