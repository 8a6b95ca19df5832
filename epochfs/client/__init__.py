"""Everything on the wire: `RegistryClient`, its mirrors, `auth/`, `hosts/`, `transport/`.

One method per endpoint of the specification. Uses `oci` and `config`. `single_flight` is here, as
the lowest that needs it: whoever makes something slow for many uses it.
Used by `cache`, `metadata`, `blobs`, `layers` and `session`, and by programs as a library.
"""

from epochfs.client.mirrors import MirrorState
from epochfs.client.registry_client import RegistryClient
from epochfs.client.transport import BlobStream

__all__ = ["BlobStream", "MirrorState", "RegistryClient"]
