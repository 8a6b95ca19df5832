"""Everything on the wire: `RegistryClient`, what it pushes (`pushing`, `uploads`, `referrers_tag`),
one `Host` per endpoint, `Mirrors` that choose among hosts, `hosts` (containerd's hosts.toml),
`auth/` and `transport/`.

Uses `oci` and `config`. `single_flight` is here, as this is the lowest folder that needs it.
Used by `cache`, `metadata`, `blobs`, `layers` and `session`, and by programs as a library.
"""

from epochfs.client.mirrors import MirrorState
from epochfs.client.registry_client import RegistryClient
from epochfs.client.transport import BlobStream

__all__ = ["BlobStream", "MirrorState", "RegistryClient"]
