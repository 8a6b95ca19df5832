"""containerd's `hosts.toml`: which hosts a registry's content is had from, and how to reach them.

From the bottom up: `host` (what it all comes to), `hosts_toml` (what one file says), `certs_d`
(which file is a registry's). The format and its rules are containerd's (docs/hosts.md there).
Where this differs:

- A file that cannot be read as it was meant is a UsageError, where containerd goes on without it.
  What is merely unknown is left out, with a warning. A `proxy` is refused, for without it requests
  would go where the file does not want them.
- The file is read once, when the mount begins.
- `http://` is plain http, also with a port and with `skip_verify` or `ca`, where containerd tries
  https first.
- `header` goes to its host, and not to the token server that this names.
- An entry that names the registry's own address is no mirror: it says how to speak to the registry,
  and what it does not say stands at the top of the file.
- The registry itself is trusted with everything, whatever the file's `capabilities` are.
- `docker.io`, `index.docker.io` and `registry-1.docker.io` are one registry, whose namespace is the
  first and whose address the last.
"""

from epochfs.client.hosts.certs_d import DEFAULT_DIRECTORY, find
from epochfs.client.hosts.host import ALL_CAPABILITIES, Capability, Host, RegistryHosts

__all__ = [
    "ALL_CAPABILITIES",
    "DEFAULT_DIRECTORY",
    "Capability",
    "Host",
    "RegistryHosts",
    "find",
]
