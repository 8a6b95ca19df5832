"""A command's credentials: its options, the environment, and the files of other tools.

The order is that of skopeo and podman: what is given on the command line, else
EPOCH_REGISTRY_TOKEN, else the files that containers-auth.json(5) names.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from epochfs.client.auth import read_password
from epochfs.config import Credentials, RegistryUrl
from epochfs.errors import MountFailure, UsageError, printable


def credentials(username: str, password_file: Path | None, token_file: Path | None) -> Credentials:
    """Return the credentials of the command line, or else those of the environment.

    The files go along, for hosts that the credentials given were not given for. The variable is
    removed, so that no process we start inherits the token. With EPOCH_SERVER set, the token is
    for the registry that it names. A password is read now, as its file may be a pipe, and again
    when it is refused.
    """
    token = os.environ.pop("EPOCH_REGISTRY_TOKEN", "").strip()
    if bool(username) != (password_file is not None):
        raise UsageError("--username and --password-file need each other")
    if password_file is not None and token_file is not None:
        raise UsageError("--password-file and --token-file exclude each other")
    files = auth_files()
    if password_file is not None:
        password = read_password(password_file)
        return Credentials(username, password, password_file, auth_files=files)
    if token_file is not None:
        return Credentials(token_file=readable(token_file, "--token-file"), auth_files=files)
    return Credentials(token=token, token_for=_server() if token else "", auth_files=files)


def _server() -> str:
    """Return the base URL that EPOCH_SERVER names, "" if it is not set; raises UsageError."""
    text = os.environ.get("EPOCH_SERVER", "").strip()
    try:
        return RegistryUrl.parse(text).base if text else ""
    except UsageError as error:
        raise UsageError(f"EPOCH_SERVER: {error}") from None


def auth_files() -> tuple[Path, ...]:
    """Return where `docker login`, `podman login` and `skopeo login` may have kept credentials.

    REGISTRY_AUTH_FILE stands for all the others. DOCKER_CONFIG, which somebody has set on purpose,
    comes before the places that are the same for everyone. None of them need exist.
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
    with suppress(RuntimeError):  # nobody's home, as in some containers
        home = Path.home()
        configuration = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        files.append(configuration / "containers" / "auth.json")
        if not docker:
            files.append(home / ".docker" / "config.json")
    return tuple(file.absolute() for file in files)


def readable(file: Path | None, option: str) -> Path | None:
    """Return `file`; raises MountFailure now rather than at its first use."""
    try:
        if file is not None:
            file.open("rb").close()
    except OSError as error:
        raise MountFailure(
            f"cannot read '{printable(file)}' ({option}): {error.strerror}"
        ) from None
    return file
