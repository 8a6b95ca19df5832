"""Files composed of blobs: how many are open, and what a wrong one comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from epochfs.errors import ProtocolViolation
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Digest, Repository
from epochfs.vfs.composed import Joined, JoinedFile


def joined(count: int) -> Joined:
    """Return a file of parts of two bytes, which are their numbers."""
    return Joined(tuple(Descriptor("", Digest.of(b"%02d" % n), 2) for n in range(count)))


class Counted:
    """Blobs of which it is counted how many are open. `meanwhile` is done within the first read."""

    def __init__(self) -> None:
        self.count = self.now = self.most = 0
        self.meanwhile: Callable[[], object] | None = None

    def open(self, repository: Repository, digest: Digest, size: int) -> CountedHandle:
        self.count += 1
        self.now += 1
        self.most = max(self.most, self.now)
        return CountedHandle(self, digest)


class CountedHandle:
    def __init__(self, blobs: Counted, digest: Digest) -> None:
        self.blobs = blobs
        self.data = next(b"%02d" % n for n in range(100) if digest.matches(b"%02d" % n))
        self.closed = False

    def read_into(self, view: memoryview, offset: int) -> int:
        meanwhile, self.blobs.meanwhile = self.blobs.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        assert not self.closed
        found = self.data[offset : offset + len(view)]
        view[: len(found)] = found
        return len(found)

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.blobs.now -= 1


def test_a_disk_of_very_many_parts_holds_few_of_them_open() -> None:
    blobs, file = Counted(), joined(30)
    handle = JoinedFile(blobs, Repository("app"), file)
    whole = bytearray(file.size)
    assert handle.read_into(memoryview(whole), 0) == file.size
    assert whole == b"".join(b"%02d" % n for n in range(30))
    assert blobs.most <= 9
    handle.read_into(memoryview(bytearray(2)), 58)
    assert blobs.count == 30  # the last one is open still
    handle.close()
    assert blobs.now == 0


def test_a_part_that_is_read_stays_open() -> None:
    blobs, file = Counted(), joined(30)
    handle = JoinedFile(blobs, Repository("app"), file)
    blobs.meanwhile = lambda: handle.read_into(memoryview(bytearray(56)), 4)
    handle.read_into(memoryview(bytearray(2)), 0)
    handle.close()
    assert blobs.now == 0


def test_a_part_that_ends_too_early_is_an_error() -> None:
    part = replace(joined(1).blobs[0], size=5)
    handle = JoinedFile(Counted(), Repository("app"), Joined((part,)))
    with pytest.raises(ProtocolViolation, match="ends within"):
        handle.read_into(memoryview(bytearray(5)), 0)
