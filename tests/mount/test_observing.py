"""What an operator sees of a mount and can tell it: status, metrics, SIGHUP."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import CHECKOUT
from support.builders import image, load, random_bytes
from support.commandline import run, start
from support.mounts import Mount, Mounts, names_in, status
from support.registries import EmbeddedRegistry
from support.scripted import until

from epochfs.blobs.store import BlobCounters
from epochfs.client import MirrorState
from epochfs.config import Address
from epochfs.counters import counter, gauge, readings
from epochfs.demo.registry import Request, Response
from epochfs.errors import UsageError
from epochfs.fuse.passthrough import PassthroughStatus
from epochfs.session.status import CacheStatus, HealthStatus, Status
from epochfs.vfs.writing.writable import WritingStatus

STATUS = Status(
    version="1",
    registry="http://registry",
    mountpoint='/mnt/"quoted"\\',
    pid=7,
    started=1000.5,
    requests=3,
    bytes_received=4,
    retries=5,
    token_expires=2000.5,
    health=HealthStatus(up=True, down_since=None, reason="", recalled=6),
    mirrors=(MirrorState("http://mirror", ("pull",), healthy=True, since=1000.5, trouble=""),),
    blobs=BlobCounters(hits=1, misses=2, downloads=3, bytes_present=4, connections=5),
    cache=CacheStatus(directory="/cache", held=10, limit=20, free=30),
    passthrough=PassthroughStatus(on=False, reason="no", open=0),
    writing=WritingStatus(waiting=8, local=9, sent=11, reasons=("one waits",)),
)


def numbers(tree: object) -> Iterator[tuple[str, object]]:
    """Every number in a tree of dataclasses or of JSON, by its path."""
    content: Any = tree if isinstance(tree, dict) else dataclasses.asdict(tree)
    for name, value in content.items():
        if isinstance(value, dict):
            yield from ((f"{name}_{below}", one) for below, one in numbers(value))
        elif isinstance(value, int | float):
            yield name, value


class TestReadings:
    def test_every_number_of_a_status_is_a_reading_but_the_process(self) -> None:
        shown = {name: float(value) for name, value in numbers(STATUS) if name != "pid"}
        assert {one.name: one.value for one in readings(STATUS)} == shown

    def test_what_is_none_at_the_moment_is_no_reading(self) -> None:
        names = {one.name for one in readings(STATUS)}
        assert "health_down_since" not in names
        down = dataclasses.replace(STATUS.health, up=False, down_since=12.5)
        found = {one.name: one.value for one in readings(dataclasses.replace(STATUS, health=down))}
        assert (found["health_down_since"], found["health_up"]) == (12.5, 0)

    def test_a_reading_says_what_it_is(self) -> None:
        @dataclasses.dataclass(frozen=True)
        class Tree:
            words: str
            grows: int = dataclasses.field(metadata=counter("Grows."))
            moves: float = dataclasses.field(metadata=gauge("Moves."))

        found = [(one.name, one.kind, one.about) for one in readings(Tree("x", 1, 2))]
        assert found == [("grows", "counter", "Grows."), ("moves", "gauge", "Moves.")]


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("9100", "127.0.0.1:9100"),
            (":9100", "127.0.0.1:9100"),
            ("0.0.0.0:9100", "0.0.0.0:9100"),
            ("localhost:0", "localhost:0"),
            ("[::1]:9100", "[::1]:9100"),
        ],
    )
    def test_without_a_host_it_is_loopback(self, text: str, shown: str) -> None:
        assert str(Address.parse(text)) == shown

    @pytest.mark.parametrize(
        "text", ["", "host", "host:", "1:65536", "x:-1", "9" * 99, "0000070000", "1:²"]
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="not an address"):
            Address.parse(text)


def metrics_url(mount: Mount) -> str:
    found = re.search(r"metrics are served on (\S+)", mount.log.read_text())
    assert found is not None
    return found[1]


def scraped(mount: Mount) -> dict[str, float]:
    """The metrics of a mount, by their names with labels."""
    with urllib.request.urlopen(metrics_url(mount), timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def test_metrics_and_status_show_the_same_numbers(
    mounts: Mounts, embedded: EmbeddedRegistry
) -> None:
    load(embedded, "team/app", "latest", image(random_bytes(1 << 20)))
    mount = mounts(embedded.url, "--metrics=0")
    assert metrics_url(mount).startswith("http://127.0.0.1:")
    (mount.path / "team/app/tags/latest/layers/00").read_bytes()
    until(lambda: status(mount.path)["blobs"]["downloads"] == 0)
    shown, found = status(mount.path), scraped(mount)
    shown.pop("pid")
    for name, value in numbers(shown):
        exported = found.get(f"epochfs_{name}", found.get(f"epochfs_{name}_total"))
        # What is free on the disk is not ours alone to change, between the one look and the other.
        assert exported == (pytest.approx(value, rel=0.01) if name == "cache_free" else value), name
    assert shown["blobs"]["misses"] == 1
    assert shown["bytes_received"] > 1 << 20
    assert shown["cache"]["held"] >= 1 << 20
    labels = f'mountpoint="{mount.path}",registry="{embedded.url}"'
    assert any(labels in name for name in found if name.startswith("epochfs_mount{"))
    assert all(name.startswith("epochfs_") for name in found)


@pytest.mark.fuse
def test_an_address_that_is_taken_is_one_line(tmp_path: Path, embedded: EmbeddedRegistry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = (f"--cache-dir={tmp_path / 'cache'}", f"--metrics={address}")
        (tmp_path / "mnt").mkdir()
        code, _, errors = run("mount", *options, embedded.url, tmp_path / "mnt")
    assert code == 1
    assert errors == (
        f"epochfs: cannot serve metrics on {address}: Address already in use: "
        "choose another --metrics\n"
    )


@pytest.mark.fuse
def test_without_the_extra_one_line_says_what_to_install(
    tmp_path: Path, embedded: EmbeddedRegistry
) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError(name=__name__)\n")
    (tmp_path / "mnt").mkdir()
    here = str(CHECKOUT)
    options = (f"--cache-dir={tmp_path / 'cache'}", "--metrics=0")
    code, _, errors = run(
        "mount", *options, embedded.url, tmp_path / "mnt", PYTHONPATH=f"{tmp_path}:{here}"
    )
    assert code == 1
    assert errors == (
        "epochfs: --metrics needs prometheus-client: install it beside epochfs "
        "(the extra 'metrics')\n"
    )


def test_downloads_in_flight_are_seen(mounts: Mounts) -> None:
    passing = threading.Event()

    class Slow(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            if "/blobs/" in request.path and request.method == "GET":
                passing.wait(20)
            return super().respond(request)

    with Slow() as registry:
        load(registry, "team/app", "latest", image())
        mount = mounts(registry.url)
        reader = threading.Thread(
            target=(mount.path / "team/app/tags/latest/layers/00").read_bytes, daemon=True
        )
        reader.start()
        until(lambda: status(mount.path)["blobs"]["connections"] == 1)
        assert status(mount.path)["blobs"]["downloads"] == 1
        passing.set()
        reader.join(10)
        until(lambda: status(mount.path)["blobs"]["downloads"] == 0)


def test_a_hangup_drops_cached_listings_and_the_mount_stays(
    mounts: Mounts, embedded: EmbeddedRegistry
) -> None:
    load(embedded, "team/app", "old", image())
    mount = mounts(embedded.url, "--metadata-ttl=1h")
    tags = mount.path / "team/app/tags"
    assert names_in(tags) == {"old"}
    load(embedded, "team/app", "new", image())
    assert names_in(tags) == {"old"}
    mount.process.send_signal(signal.SIGHUP)
    until(lambda: names_in(tags) == {"new", "old"})
    mount.process.send_signal(signal.SIGHUP)
    assert (tags / "new").is_symlink()
    assert "SIGHUP: dropping cached listings" in mount.log.read_text()


@pytest.mark.fuse
def test_a_hangup_before_the_mount_stands_does_not_end_it(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    asked, go_on = threading.Event(), threading.Event()

    class Waiting(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            asked.set()
            go_on.wait(20)
            return super().respond(request)

    with Waiting() as registry:
        options = ("-f", f"--cache-dir={tmp_path / 'cache'}")
        with start("mount", *options, registry.url, tmp_path / "mnt") as process:
            assert asked.wait(20)
            process.send_signal(signal.SIGHUP)
            go_on.set()
            until(lambda: os.path.ismount(tmp_path / "mnt"))
            process.terminate()
            assert process.wait(10) == 0
