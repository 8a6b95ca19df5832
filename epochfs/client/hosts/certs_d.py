"""The path of a registry's file below a certs.d directory.

The directory that `--hosts-dir` names holds one directory for each registry, called after the
registry's **namespace**: its host, and its port if the URL has one. The first of these that exists
is used, whatever is in it: `host_port_`, `host:port`, `_default`. In it, `hosts.toml` names mirrors
and the registry's own address; without that file, `*.crt` are CAs, and `*.cert` with `*.key` the
client's certificates, as in Docker's layout.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from epochfs.client.hosts.host import DOCKER_HUB, DOCKER_HUB_NAMES, Host, RegistryHosts
from epochfs.client.hosts.hosts_toml import parse
from epochfs.config import RegistryUrl
from epochfs.errors import UsageError, printable

DEFAULT_DIRECTORY = Path("/etc/containerd/certs.d")
"""Where containerd looks."""

_FILE_LIMIT = 1024 * 1024


def find(directory: Path | None, url: RegistryUrl) -> RegistryHosts:
    """Return the hosts of the registry at `url`, as the `directory` has them, if one is given.

    Raises UsageError for what cannot be read.
    """
    address = urlsplit(url.base).netloc
    namespace = DOCKER_HUB if address in DOCKER_HUB_NAMES else address
    plain = RegistryHosts(namespace, Host.at(url.base))
    if directory is None:
        return plain
    try:
        for name in _directory_names(dict.fromkeys((address, namespace))):
            if (directory / name).exists():
                return _load(directory / name, plain)
    except OSError as error:
        raise UsageError(f"cannot read '{printable(error.filename)}': {error.strerror}") from None
    return plain


def _directory_names(names: Iterable[str]) -> list[str]:
    """Return what a registry's directory may be called, the first choice first."""
    found = []
    for name in names:
        host, colon, port = name.rpartition(":")
        if colon and port.isdigit():
            found.append(f"{host}_{port}_")
        found.append(name)
    return [*found, "_default"]


def _load(directory: Path, plain: RegistryHosts) -> RegistryHosts:
    file = directory / "hosts.toml"
    raw = b""
    if file.exists():
        with file.open("rb") as opened:
            raw = opened.read(_FILE_LIMIT + 1)
    if not raw:
        return replace(plain, origin=_with_certificates(plain.origin, directory))
    if len(raw) > _FILE_LIMIT:
        raise UsageError(f"'{printable(file)}' is over {_FILE_LIMIT} bytes")
    try:
        document = tomllib.loads(raw.decode())
    except RecursionError:
        raise UsageError(f"'{printable(file)}' is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"'{printable(file)}' is not TOML: {printable(error)}") from None
    return parse(file, document, plain)


def _with_certificates(origin: Host, directory: Path) -> Host:
    """Return the registry's own host with the certificates of Docker's layout."""
    files = sorted(file for file in directory.iterdir() if file.is_file())
    pairs = [(file, file.with_suffix(".key")) for file in files if file.suffix == ".cert"]
    return replace(
        origin,
        ca_certs=tuple(file for file in files if file.suffix == ".crt"),
        client_certs=tuple((file, key if key in files else None) for file, key in pairs),
    )
