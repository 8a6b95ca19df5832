"""The hosts of a registry, as values."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from epochfs.config import TransportOptions

API_ROOT = "/v2"

DOCKER_HUB = "docker.io"
"""The namespace of Docker Hub."""

DOCKER_HUB_SERVER = "registry-1.docker.io"
DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", DOCKER_HUB_SERVER})


class Capability(enum.Enum):
    """What a host is trusted with. There is `push` too, but nothing is ever pushed to a mirror.

    `PULL`: content, which its digest verifies. `RESOLVE`: statements that nothing verifies, such as
    which digest a tag has now.
    """

    PULL = "pull"
    RESOLVE = "resolve"


ALL_CAPABILITIES = frozenset(Capability)


@dataclass(frozen=True, slots=True)
class Host:
    """A host and how to speak to it: `base` is its URL without path, `root` where its API begins.

    `headers` may hold credentials, and are for this host only. `skip_verify` None: nothing is said.
    """

    base: str
    root: str = API_ROOT
    capabilities: frozenset[Capability] = ALL_CAPABILITIES
    ca_certs: tuple[Path, ...] = ()
    client_certs: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    connect_timeout: float | None = None

    @classmethod
    def at(cls, base: str, root: str = API_ROOT) -> Host:
        """Return a host of which no more is said; Docker Hub's, whichever of its names is given."""
        scheme, _, address = base.partition("://")
        return cls(f"{scheme}://{DOCKER_HUB_SERVER}" if address in DOCKER_HUB_NAMES else base, root)

    @property
    def url(self) -> str:
        """The host as it is shown: with the path in front of its API, if there is one."""
        return f"{self.base}{self.root.removesuffix(API_ROOT)}"

    def options(self, given: TransportOptions, namespace: str) -> TransportOptions:
        """Return `given`, which takes precedence, completed by what is said of this host.

        The `namespace` is to be told to a host of another name, which may serve many registries.
        """
        address = urlsplit(self.base).netloc
        same = address == (DOCKER_HUB_SERVER if namespace == DOCKER_HUB else namespace)
        verify = given.tls_verify
        if verify is None and self.skip_verify is not None:
            verify = not self.skip_verify
        return replace(
            given,
            ca_certs=given.ca_certs + self.ca_certs,
            client_certs=given.client_certs or self.client_certs,
            tls_verify=verify,
            connect_timeout=self.connect_timeout or given.connect_timeout,
            root=self.root,
            namespace="" if same else namespace,
            headers=self.headers,
        )


@dataclass(frozen=True, slots=True)
class RegistryHosts:
    """The hosts of one registry: `mirrors` in the order to try them, then `origin`, its own.

    `elsewhere` says that the file has another server for it than the user's URL, or has plain http
    for https: then what the user gave to log in with is not meant for it.
    """

    namespace: str
    origin: Host
    mirrors: tuple[Host, ...] = ()
    elsewhere: bool = False
