"""The lies that could cost a mount its memory or its life, told to a real one."""

from __future__ import annotations

import errno
import gzip
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from support.bodylies import ENDLESS
from support.lies import APP, BLOB, HONEST, MANIFEST, TAGS, Answer, answer
from support.mounts import Mount, Mounts
from support.nameslies import millions
from support.scripted import ScriptedServer, reply
from support.weblies import endless_error

from epochfs.demo.samples import encode

MIB = 1 << 20

Tell = Callable[[Mapping[str, Answer]], Mount]


@pytest.fixture
def tell(mounts: Mounts) -> Iterator[Tell]:
    """Mounts a registry that lies as it is told to."""
    with ScriptedServer(lambda seen: answer(told, seen)) as server:
        told: dict[str, Answer] = {}

        def mount(answers: Mapping[str, Answer]) -> Mount:
            told.update(answers)
            return mounts(server.url, "--timeout", "60")

        yield mount


def peak(mount: Mount, act: Callable[[], None]) -> int:
    """Return by how much the memory of a mount's process rose at most, in bytes, during an act."""
    process = Path(f"/proc/{mount.process.pid}")
    (process / "clear_refs").write_text("5")

    def high_water() -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    before = high_water()
    act()
    return high_water() - before


def fails(number: int, act: Callable[[], object]) -> None:
    """Do it; it must end in this errno."""
    with pytest.raises(OSError) as refused:
        act()
    assert refused.value.errno == number


def lives(mount: Mount) -> None:
    """Make sure that what nobody lies about can still be read, to its end."""
    manifest = mount.path / HONEST.lstrip("/") / "manifest.json"
    assert manifest.read_bytes() == APP.raw


def manifest_file(mount: Mount) -> Path:
    return mount.path / f"app/manifests/{APP.digest}/manifest.json"


@pytest.mark.expects_log("EFBIG")
@pytest.mark.parametrize("how", ENDLESS)
def test_an_endless_manifest_takes_little_memory(tell: Tell, how: str) -> None:
    mount = tell({MANIFEST: ENDLESS[how]})
    lives(mount)
    grown = peak(mount, lambda: fails(errno.EFBIG, manifest_file(mount).read_bytes))
    assert grown <= 32 * MIB
    lives(mount)


@pytest.mark.expects_log("EIO")
@pytest.mark.parametrize("item", [b'"a"', b"[]", b"1"])
def test_ten_million_tags_take_bounded_memory(tell: Tell, item: bytes) -> None:
    mount = tell({TAGS: partial(millions, item, 10_000_000)})
    lives(mount)
    tags = mount.path / "app/tags"
    grown = peak(mount, lambda: fails(errno.EIO, lambda: list(tags.iterdir())))
    assert grown <= 96 * MIB
    lives(mount)


@pytest.mark.expects_log("EIO|EACCES|left out")
def test_a_mount_outlives_what_could_end_it(tell: Tell) -> None:
    deep = b'{"tags":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    names = ["v1", "a" * MIB, "\n" * MIB, "..", "\x1b[2J", "\ud800"]
    mount = tell(
        {
            TAGS: reply(200, encode({"tags": names})),
            MANIFEST: reply(200, deep),
            f"GET {BLOB}": reply(200, gzip.compress(bytes(MIB)), Content_Encoding="gzip"),
            "/v2/denied/tags/list": partial(endless_error, 403, ""),
            "/v2/failing/tags/list": partial(endless_error, 500, ""),
            "/v2/zipped/tags/list": reply(200, gzip.compress(b"{}"), Content_Encoding="gzip"),
        }
    )
    lives(mount)

    def act() -> None:
        assert [tag.name for tag in (mount.path / "app/tags").iterdir()] == ["v1"]
        fails(errno.EIO, manifest_file(mount).read_bytes)
        fails(errno.EIO, (mount.path / BLOB.removeprefix("/v2/")).read_bytes)
        fails(errno.EACCES, lambda: list((mount.path / "denied/tags").iterdir()))
        fails(errno.EIO, lambda: list((mount.path / "failing/tags").iterdir()))
        fails(errno.EIO, lambda: list((mount.path / "zipped/tags").iterdir()))

    assert peak(mount, act) <= 32 * MIB
    lives(mount)
    assert all(line.isascii() and len(line) < 2000 for line in mount.log.read_text().splitlines())
