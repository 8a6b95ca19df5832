"""The command line of `scripts/calls`."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

import epochfs
from epochfs.config import (
    BlobOptions,
    CacheOptions,
    Credentials,
    ListingOptions,
    RegistryUrl,
    TransportOptions,
)
from epochfs.demo.registry import EmbeddedRegistry
from epochfs.demo.samples import descriptor, encode
from epochfs.oci.manifests import OCI_MANIFEST
from epochfs.oci.platforms import Platform
from epochfs.session import Connection, SessionSettings
from epochfs.session.opening import open_session

_PACKAGE = str(Path(epochfs.__file__).parent) + "/"
_REGISTRY = f"{_PACKAGE}demo/"
_BLOB = b"0123456789" * 1024


class _Profile:
    """Counts the calls of functions of epochfs by file: the caller's, and its background threads'.

    To be made before any thread whose calls are to be counted. What imports run is not counted.
    """

    def __init__(self) -> None:
        self._mine: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._counting = False
        self._caller = threading.get_ident()
        threading.setprofile(self._saw)

    @contextlib.contextmanager
    def count(self) -> Iterator[tuple[Counter[str], Counter[str]]]:
        """Count within the block: the calls of this thread, and those of all other threads."""
        self._mine, self._others = Counter(), Counter()
        self._counting = True
        sys.setprofile(self._saw)
        try:
            yield self._mine, self._others
        finally:
            sys.setprofile(None)
            self._counting = False

    def _saw(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if not self._counting or event != "call" or code.co_name == "<module>":
            return
        if code.co_filename.startswith(_PACKAGE) and not code.co_filename.startswith(_REGISTRY):
            is_mine = threading.get_ident() == self._caller
            counted = self._mine if is_mine else self._others
            counted[code.co_filename.removeprefix(_PACKAGE)] += 1


def _settings(url: str, directory: Path) -> SessionSettings:
    return SessionSettings(
        url=RegistryUrl.parse(url),
        connection=Connection(TransportOptions(), Credentials(), ()),
        cache=CacheOptions(directory),
        listings=ListingOptions(),
        blobs=BlobOptions(),
        offline_ok=False,
        platform=Platform.of_machine(),
    )


def _fill(registry: EmbeddedRegistry) -> str:
    """Put a blob under a manifest, tagged; return the blob's digest."""
    config = b"{}"
    registry.put_blob("library/app", config)
    digest = registry.put_blob("library/app", _BLOB)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(_BLOB, "application/octet-stream")],
    }
    registry.put_manifest("library/app", "latest", encode(manifest), OCI_MANIFEST)
    return str(digest)


def _show(what: str, mine: Counter[str], others: Counter[str], *, verbose: bool) -> None:
    both = mine + others
    click.echo(
        f"{what}: {len(mine)} files, {mine.total()} calls; "
        f"with what other threads do for it: {len(both)} files, {both.total()} calls"
    )
    for name, calls in both.most_common() if verbose else ():
        click.echo(f"  {calls:4} {name} ({mine[name]} in the asking thread)")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Show the calls of each file too.")
def main(*, verbose: bool) -> None:
    """Count the calls of a cold readlink of a tag, and of the first read of a blob of 10 KiB."""
    with contextlib.ExitStack() as closing:
        registry = closing.enter_context(EmbeddedRegistry())
        blob = f"/library/app/blobs/{_fill(registry)}"
        scratch = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        profile = _Profile()
        closing.callback(threading.setprofile, None)
        filesystem = open_session(_settings(registry.url, scratch), closing).filesystem
        with profile.count() as counted:
            link = filesystem.readlink("/library/app/tags/latest")
        _show("cold readlink of a tag", *counted, verbose=verbose)
        # What came before, for a program that followed the link: manifest.json, then stat(2).
        filesystem.getattr(f"/library/app/{link.removeprefix('../')}/manifest.json")
        filesystem.getattr(blob)
        buffer = memoryview(bytearray(1 << 17))
        with profile.count() as counted:
            handle = filesystem.open(blob).handle
            count = filesystem.read_into(handle, buffer, 0)
            filesystem.release(handle)
        assert buffer[:count] == _BLOB
        _show("first read of a blob of 10 KiB", *counted, verbose=verbose)


if __name__ == "__main__":
    main()
