"""Reads the environment: the registry, its token, logins, proxies and mirrors."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from epochfs.client import hosts
from epochfs.config import Credentials, Proxies, RegistryUrl
from epochfs.errors import UsageError, printable


def server_in_environment() -> RegistryUrl | None:
    """Return the registry that EPOCH_SERVER names, if it is set; raises UsageError."""
    text = os.environ.get("EPOCH_SERVER", "").strip()
    try:
        return RegistryUrl.parse(text) if text else None
    except UsageError as error:
        raise UsageError(f"EPOCH_SERVER: {error}") from None


def default_server() -> RegistryUrl:
    """Return the registry of EPOCH_SERVER, or without it Epoch's default; raises UsageError."""
    return server_in_environment() or RegistryUrl.parse("")


def token_in_environment(*, remove: bool = False) -> str:
    """Return EPOCH_REGISTRY_TOKEN; `remove` it, so that no child process inherits it."""
    token = os.environ.get("EPOCH_REGISTRY_TOKEN", "")
    if remove:
        os.environ.pop("EPOCH_REGISTRY_TOKEN", None)
    return token.strip()


def default_credentials(token: str = "") -> Credentials:
    """Return what is used where nothing else was given: a `token` of the environment, or logins.

    The token is only for the registry that EPOCH_SERVER names, if it names one. Raises UsageError.
    """
    server = server_in_environment() if token else None
    return Credentials(
        token=token, token_for=server.base if server else "", auth_files=auth_files()
    )


def authority_in_environment() -> str:
    """Return the file of certificates to trust that EPOCH_CA_CERT names, or ""."""
    return os.environ.get("EPOCH_CA_CERT", "")


def auth_files() -> tuple[Path, ...]:
    """Return where `docker login`, `podman login` and `skopeo login` may have kept credentials.

    These are the files of containers-auth.json(5), in their order. REGISTRY_AUTH_FILE replaces all
    others. DOCKER_CONFIG, set on purpose, comes before the default places. None of them need exist.
    """
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        return (Path(named).absolute(),)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        files = [Path(runtime, "containers", "auth.json")]
    else:
        files = [Path("/run/containers", str(os.getuid()), "auth.json")]
    docker = os.environ.get("DOCKER_CONFIG")
    if docker:
        files.insert(0, Path(docker, "config.json"))
    with suppress(RuntimeError):  # no home directory, as in some containers
        home = Path.home()
        configuration = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        files.append(configuration / "containers" / "auth.json")
        if not docker:
            files.append(home / ".docker" / "config.json")
    return tuple(file.absolute() for file in files)


def proxies() -> Proxies:
    """Return the proxies that the environment names, in upper or lower case."""
    http, https, exempt = (
        os.environ.get(name) or os.environ.get(name.lower(), "")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    )
    return Proxies(http, https, tuple(exempt.replace(",", " ").split()))


def mirrors_directory(directory: Path | None) -> Path | None:
    """Return where mirrors are looked up, if anywhere."""
    if directory is None:
        return hosts.DEFAULT_DIRECTORY if hosts.DEFAULT_DIRECTORY.is_dir() else None
    if not directory.is_dir():
        raise UsageError(f"mirror configuration '{printable(directory)}' is not a directory")
    return directory
