"""Kill a mount that is being written to, again and again, and look at what the registry has.

    python -m support.killwrites [CYCLES]

Each cycle mounts a real docker-registry with `-o rw`; threads write blobs, manifests and tags, in
any order; the mount is killed (SIGKILL) in the midst. What was acknowledged must be in the
registry: a blob whose close(2) returned 0, a manifest whose close did when all it names had been
acknowledged, a tag whose link was made or moved when its manifest had been. A tag may name nothing
else than what was written to it last, and what that names is whole. The cache keeps no staged file
and no wrong one, and the next mount starts clean, with the cache and the registry that were left.
"""

from __future__ import annotations

import random
import sys
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from epochfs.client import RegistryClient
from epochfs.errors import NotFound
from epochfs.oci.names import Digest, Tag
from support.builders import Content, image
from support.integrity import defects
from support.mounts import Mount, Mounts
from support.standalone import run_cycles

_LONGEST_SECONDS = 2.5
_WRITERS = 4


@dataclass
class Tally:
    """What was seen in all cycles."""

    kills: int = 0
    blobs: int = 0
    manifests: int = 0
    tags: int = 0
    cut: int = 0
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    severe: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.torn or self.left or self.severe)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.cut} writes cut; acknowledged: {self.blobs} blobs, "
            f"{self.manifests} manifests, {self.tags} tags; {len(self.lost)} of these lost, "
            f"{len(self.torn)} tags torn, {len(self.left)} files left, "
            f"{len(self.severe)} warnings"
        )


@dataclass
class Writer:
    """Writes to a repository of its own until the mount is gone; knows what was acknowledged.

    `tag` is what the tag was last acknowledged to name; `tried` what it may name by now, and that.
    """

    repository: str
    top: Path
    chance: random.Random
    blobs: set[bytes] = field(default_factory=set)
    manifests: list[Content] = field(default_factory=list)
    tag: Content | None = None
    tried: set[Digest] = field(default_factory=set)
    cut: bool = False

    def run(self) -> None:
        with suppress(OSError):
            for name in ("blobs", "manifests", "tags"):
                (self.top / name).mkdir(parents=True)
            for _ in range(1000):
                self._write_image()
        self.cut = True

    def _write_image(self) -> None:
        chance = self.chance
        one = image(*(chance.randbytes(chance.choice((10, 3000, 300_000))) for _ in range(2)))
        steps = [*one.every_blob(), one]
        chance.shuffle(steps)
        for step in steps:
            self._write_manifest(step) if isinstance(step, Content) else self._write_blob(step)
        # Once all is there, all that waited is there.
        self.manifests.append(one)
        self._retag(one)

    def _write_blob(self, blob: bytes) -> None:
        path = self.top / "blobs" / str(Digest.of(blob))
        if self.chance.random() < 0.5:
            path.write_bytes(blob)
        else:
            temporary = path.with_name(f".{path.name}.Xy12Ab")
            temporary.write_bytes(blob)
            temporary.rename(path)
        self.blobs.add(blob)

    def _write_manifest(self, one: Content) -> None:
        directory = self.top / "manifests" / str(one.digest)
        directory.mkdir()
        (directory / "manifest.json").write_bytes(one.raw)

    def _retag(self, one: Content) -> None:
        link, target = self.top / "tags/latest", f"../manifests/{one.digest}"
        self.tried.add(one.digest)
        if self.tag is None:
            link.symlink_to(target)
        else:
            temporary = link.with_name(".latest.Xy12Ab")
            temporary.symlink_to(target)
            temporary.rename(link)
        self.tag, self.tried = one, {one.digest}

    def look(self, client: RegistryClient, tally: Tally) -> None:
        """Hold what was acknowledged against what the registry has."""
        tally.blobs += len(self.blobs)
        tally.manifests += len(self.manifests)
        tally.tags += self.tag is not None
        tally.cut += self.cut
        for blob in self.blobs:
            if not _has_blob(client, self.repository, blob):
                tally.lost.append(f"a blob of {len(blob)} bytes in {self.repository}")
        for one in self.manifests:
            if not client.has_manifest(self.repository, one.digest):
                tally.lost.append(f"{one.digest} in {self.repository}")
        try:
            named = client.resolve(self.repository, Tag("latest")).digest
        except NotFound:
            if self.tag is not None:
                tally.lost.append(f"the tag of {self.repository}")
            return
        if named not in self.tried:
            tally.lost.append(f"the tag of {self.repository} is {named}")
        view = client.get_manifest(self.repository, named).view
        for descriptor in (view.config, *view.layers):  # type: ignore[union-attr]
            if not client.blob_exists(self.repository, descriptor.digest, descriptor.size):
                tally.torn.append(f"{self.repository} lacks {descriptor.digest}")


def _has_blob(client: RegistryClient, repository: str, blob: bytes) -> bool:
    with suppress(NotFound):
        return client.read_blob(repository, Digest.of(blob), len(blob)) == blob
    return False


def _write(mount: Mount, cycle: int, seconds: float, seed: int) -> list[Writer]:
    """Have threads write, and kill the mount."""
    writers = []
    for number in range(_WRITERS):
        name = f"killed/c{cycle}-{number}"
        chance = random.Random(f"{seed}/{cycle}/{number}")
        writers.append(Writer(name, mount.path / name, chance))
    threads = [threading.Thread(target=writer.run) for writer in writers]
    for thread in threads:
        thread.start()
    threading.Event().wait(seconds)
    mount.kill()
    for thread in threads:
        thread.join()
    return writers


def _left(cache: Path) -> list[str]:
    """Return what is wrong in a cache directory, or was staged in it."""
    staged = [path for path in (cache / "v1" / "partial").rglob("*") if path.is_file()]
    return [*defects(cache, {}), *(f"{path.name} was staged" for path in staged)]


def run(host: str, directory: Path, cycles: int, seed: int = 1) -> Tally:
    """Kill mounts of the registry at `host` while they are written to."""
    tally, chance, cache = Tally(), random.Random(seed), directory / "cache"
    url = f"http://{host}"
    with closing(RegistryClient(url)) as client, closing(Mounts(directory)) as mounts:
        for cycle in range(cycles):
            mount = mounts(url, "-o", "rw", cache=cache)
            tally.left += _staged_at_start(cache)
            writers = _write(mount, cycle, chance.uniform(0.2, _LONGEST_SECONDS), seed)
            tally.kills += 1
            for writer in writers:
                writer.look(client, tally)
            tally.left += _left(cache)
            tally.severe += [line for line in mount.severe() if "cannot be" not in line]
            if (cycle + 1) % 10 == 0:
                print(f"after cycle {cycle + 1}: {tally}", flush=True)
        last = mounts(url, cache=cache)
        for writer in writers:
            if writer.tag is not None:
                target = (last.path / writer.repository / "tags/latest").readlink()
                if Digest.parse(target.name) not in writer.tried:
                    tally.lost.append(f"{writer.repository} shows {target}")
    for line in (*tally.lost, *tally.torn, *tally.left, *tally.severe):
        print(line)
    return tally


def _staged_at_start(cache: Path) -> list[str]:
    return [line for line in _left(cache) if "staged" in line]


if __name__ == "__main__":
    sys.exit(run_cycles("kill-writes", run))
