"""`epochfs doctor`: what works here, what does not, and how to fix it."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

import click

from epochfs.cache.directory import CacheDirectory, cache_errors
from epochfs.cli import system
from epochfs.cli.option_kinds import cache_dir_option
from epochfs.cli.options import connection_options, registry_url
from epochfs.cli.output import shown_size
from epochfs.client import MirrorState, RegistryClient
from epochfs.config import MAX_READ, RegistryUrl
from epochfs.errors import Denied, EpochfsError, InvalidName, NotFound, Unsupported
from epochfs.fuse.passthrough import obstacle
from epochfs.layers import decoders
from epochfs.oci.closure import named_blobs
from epochfs.oci.manifests import Descriptor, Index
from epochfs.oci.names import Repository
from epochfs.session import Connection, opening, push_check
from epochfs.session.environment import server_in_environment

_ENOUGH_SPACE = 1024**3
_MAX_PAGES = Path("/proc/sys/fs/fuse/max_pages_limit")
_READ_AHEAD = Path("/sys/class/bdi")
_TRIED = 3

_OPTIONAL = frozenset({"allow-other", "max-read", "passthrough", "updatedb"})
"""Checks that only warn, since a mount can do without."""

Row = tuple[str, str, str]
"""A line of the table: ok, warn or FAIL; the subject; a note, which ends with how to fix it."""


class Limited(Exception):
    """Something works less well than it could; the text says how, and how to fix it."""


Check = tuple[str, Callable[[], str]]
"""A subject, and a function that returns a note, or raises Limited or an EpochfsError."""


@click.command("doctor")
@click.argument("text", metavar="[URL]", required=False)
@connection_options
@cache_dir_option
def command(text: str | None, connection: Connection, cache_dir: Path) -> int:
    """Check what a mount needs of this machine and of a registry.

    The registry is the one at URL, or else that of EPOCH_SERVER. Takes the options of 'mount' that
    say how to reach it. Exit code 1 if anything FAILs.
    """
    rows = _run(_machine_checks(cache_dir))
    if text is not None or server_in_environment():
        rows = itertools.chain(rows, _registry_rows(registry_url(text), connection))
    failed = False
    for state, subject, note in rows:
        click.echo(f"{state:<5} {subject:<12} {note}")
        failed |= state == "FAIL"
    return int(failed)


def _run(checks: Iterable[Check]) -> Iterator[Row]:
    for subject, check in checks:
        try:
            yield "ok", subject, check()
        except Limited as limit:
            yield "warn", subject, str(limit)
        except EpochfsError as error:
            yield "warn" if subject in _OPTIONAL else "FAIL", subject, str(error)


def _machine_checks(cache: Path) -> list[Check]:
    return [
        ("python", lambda: f"{platform.python_version()}, {sys.executable}"),
        ("kernel", platform.release),
        ("/dev/fuse", system.device),
        ("libfuse", system.library),
        ("binding", _binding),
        ("fusermount3", _helper),
        ("allow-other", system.user_allow_other),
        ("max-read", _max_read),
        ("read-ahead", _read_ahead),
        ("passthrough", _passthrough),
        ("updatedb", system.spared_by_updatedb),
        ("cache", lambda: _cache(cache)),
        ("rootfs", _rootfs),
    ]


def _binding() -> str:
    for name in ("mfusepy", "fusepy"):
        with suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    raise Unsupported("no FUSE binding for Python: install it (pip install mfusepy)")


def _helper() -> str:
    try:
        return system.helper()
    except EpochfsError as error:
        if os.geteuid() == 0:
            raise Limited(f"{error}; root mounts without it") from None
        raise


def _max_read() -> str:
    if system.library_version() < (3, 0):
        raise Limited("128 KiB: install libfuse 3 (Debian, Ubuntu: apt-get install fuse3)")
    try:
        pages = int(_MAX_PAGES.read_text())
    except (OSError, ValueError):  # settable since Linux 6.13
        pages = 256
    page = os.sysconf("SC_PAGE_SIZE")
    if pages * page < MAX_READ:
        cure = f"sysctl fs.fuse.max_pages_limit={MAX_READ // page}"
        raise Limited(f"{pages * page // 1024} KiB: raise it ({cure})")
    return f"{MAX_READ // 1024} KiB"


def _read_ahead() -> str:
    devices = list(_READ_AHEAD.glob("*/read_ahead_kb"))
    if devices and all(os.access(device, os.W_OK) for device in devices):
        return f"can be raised to {MAX_READ // 1024} KiB"
    cure = "make /sys writable" if os.geteuid() == 0 else "mount as root"
    raise Limited(f"cannot be raised, so the kernel reads 128 KiB ahead: {cure}")


def _passthrough() -> str:
    reason = obstacle(system.library_version())
    if reason:
        raise Limited(f"off, so cached blobs are read through epochfs: {reason}")
    return "the kernel reads cached blobs by itself"


def _cache(directory: Path) -> str:
    """Check the nearest directory that exists: nothing is created before a mount needs it."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        raise Unsupported(
            f"{directory} cannot be written ({error.strerror}): choose another --cache-dir"
        ) from None
    if existing == directory:
        with cache_errors(f"{directory} cannot be used"):
            CacheDirectory(directory).check()
    note = f"{directory}, {shown_size(free)} free"
    if free < _ENOUGH_SPACE:
        raise Limited(f"{note}: free some space, or choose another --cache-dir")
    return note


def _rootfs() -> str:
    """Check for decompressors of layers, without which only rootfs/ and the like are missing."""
    if lacking := decoders.missing():
        raise Limited(
            f"most layers cannot be opened without {' and '.join(lacking)}: {decoders.NEEDED}"
        )
    return "layers compressed with gzip or zstd can be opened"


def _registry_rows(url: RegistryUrl, connection: Connection) -> Iterator[Row]:
    client = opening.connect(url, connection)
    try:
        checks: list[Check] = [
            ("registry", lambda: _reach(client, connection)),
            ("access", lambda: _access(client, connection)),
            ("catalog", lambda: _catalog(client)),
            ("range", lambda: _range(client, connection)),
            ("push", lambda: _push(client, connection)),
        ]
        for row in _run(checks):
            yield row
            if row[:2] in (("FAIL", "registry"), ("FAIL", "access")):
                break  # the other checks would only blame something else
        client.ping_mirrors()
        yield from _run(("mirror", partial(_mirror, mirror)) for mirror in client.mirrors)
    finally:
        client.close()


def _reach(client: RegistryClient, connection: Connection) -> str:
    try:
        opening.check(client, connection)
    except opening.NoApiRoot as error:
        raise Limited(str(error)) from None
    except Denied:
        pass  # an answer all the same: the next row tells it
    return f"{client.base_url} answers"


def _access(client: RegistryClient, connection: Connection) -> str:
    with suppress(opening.NoApiRoot):
        opening.check(client, connection)
    home = os.environ.get("HOME")
    account = client.account.replace(f"{home}/", "~/") if home else client.account
    if client.unused_login:
        raise Limited(f"{account}; {client.unused_login}")
    return account


def _mirror(mirror: MirrorState) -> str:
    if not mirror.healthy:
        raise Limited(
            f"{mirror.host} is skipped: unavailable ({mirror.trouble}); see its hosts.toml"
        )
    if not mirror.capabilities:
        raise Limited(f"{mirror.host} is never asked: give it capabilities in its hosts.toml")
    return f"{mirror.host} answers, for {' and '.join(mirror.capabilities)}"


def _catalog(client: RegistryClient) -> str:
    try:
        return f"{len(client.catalog())} repositories"
    except (Denied, NotFound, Unsupported) as error:
        raise Limited(f"not offered ({error}): name repositories with --repo") from None


def _range(client: RegistryClient, connection: Connection) -> str:
    """Ask for part of a small blob: only a 206 with the right Content-Range proves it."""
    found = next(_blobs(client, connection), None)
    if found is None:
        raise Limited("not tested, as no blob was found: name a repository with --repo")
    repository, blob = found
    with client.get_blob(repository, blob.digest, 1, 2) as stream:
        ranged = stream.ranged
    if not ranged:
        raise Limited("not honoured: blobs are sent whole, so a read far into one waits for it")
    return f"honoured, for a blob of {repository}"


def _push(client: RegistryClient, connection: Connection) -> str:
    """Begin to push to a repository, and end that at once: whether mounts may have -o rw."""
    repository = next(_repositories(client, connection), None)
    if repository is None:
        raise Limited("not tested, as there is no repository: name one with --repo")
    try:
        push_check.check_push(client, repository)
    except (Denied, Unsupported) as error:
        raise Limited(str(error)) from None
    lacking = push_check.undeletable(client, repository)
    note = f"permitted, to {repository}"
    return f"{note}; the registry does not delete {lacking}" if lacking else note


def _blobs(
    client: RegistryClient, connection: Connection
) -> Iterator[tuple[Repository, Descriptor]]:
    """Yield blobs of some length that the first tags of the first repositories name."""
    for repository in itertools.islice(_repositories(client, connection), _TRIED):
        with suppress(NotFound, Denied):
            for tag in client.list_tags(repository)[:_TRIED]:
                view = client.get_manifest(repository, tag).view
                if isinstance(view, Index) and view.manifests:
                    view = client.get_manifest(repository, view.manifests[0].digest).view
                yield from ((repository, blob) for blob in named_blobs(view) if blob.size > 2)


def _repositories(client: RegistryClient, connection: Connection) -> Iterator[Repository]:
    yield from connection.repositories
    with suppress(Denied, NotFound, Unsupported):
        for name in client.catalog():
            with suppress(InvalidName):
                yield Repository.parse(name)
