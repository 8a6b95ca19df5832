"""A real mount whose bytes come from a real pull-through cache: docker-registry before another."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import DockerRegistry, Skopeo, serve_docker_registry
from support.builders import image, load, random_bytes
from support.commandline import run
from support.mounts import Mounts, status
from support.registries import EmbeddedRegistry

from epochfs.oci.names import Digest

MIB = 1 << 20
LAYER = random_bytes(24 * MIB + 5, 1)
IMAGE = image(LAYER, b"small")
BLOB = f"library/app/blobs/{Digest.of(LAYER)}"
_ASKED_BY_US = re.compile(r'"(GET|HEAD) (\S+) HTTP/1.1" \d+ \d+ "" "epochfs/')


def asked_by_us(registry: DockerRegistry) -> list[str]:
    """Return the paths that epochfs itself has asked a registry for, as its log has them."""
    return [match[2] for match in _ASKED_BY_US.finditer(registry.log.read_text())]


def hosts_dir(directory: Path, *urls: str) -> str:
    """Write the `hosts.toml` of every registry, which names these mirrors."""
    (directory / "certs.d" / "_default").mkdir(parents=True)
    tables = "\n".join(f'[host."{url}"]' for url in urls)
    (directory / "certs.d" / "_default" / "hosts.toml").write_text(tables)
    return str(directory / "certs.d")


@pytest.fixture
def cached(tmp_path: Path, skopeo: Skopeo) -> Iterator[tuple[DockerRegistry, DockerRegistry]]:
    """A registry that holds an image, and a pull-through cache of it."""
    for name in ("origin", "cache"):
        (tmp_path / name).mkdir()
    with serve_docker_registry(tmp_path / "origin") as origin:
        skopeo.push(IMAGE, origin.host, "library/app")
        with serve_docker_registry(tmp_path / "cache", cache_of=origin.url) as cache:
            yield origin, cache


@contextlib.contextmanager
def relay(target: DockerRegistry, limit: int, then: Callable[[], None]) -> Iterator[str]:
    """Pass connections on to a registry until it has sent so many bytes; then end them all."""
    listener = socket.create_server(("127.0.0.1", 0))
    host, _, port = target.host.partition(":")
    sockets = [listener]
    lock = threading.Lock()
    left = limit

    def end() -> None:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def pump(source: socket.socket, sink: socket.socket, *, counted: bool) -> None:
        nonlocal left
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
                if counted:
                    with lock:
                        over = left > 0 >= left - len(data)
                        left -= len(data)
                    if over:
                        then()
                        end()
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                inner, _ = listener.accept()
                outer = socket.create_connection((host, int(port)))
                sockets.extend((inner, outer))
                for ends, counted in (((inner, outer), False), ((outer, inner), True)):
                    threading.Thread(
                        target=pump, args=ends, kwargs={"counted": counted}, daemon=True
                    ).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        end()
        for one in sockets:
            one.close()


def test_a_mount_reads_through_a_pull_through_cache(
    cached: tuple[DockerRegistry, DockerRegistry], mounts: Mounts, tmp_path: Path
) -> None:
    origin, cache = cached
    mount = mounts(origin.url, "--hosts-dir", hosts_dir(tmp_path, cache.url))
    tag = mount.path / "library/app/tags/latest"
    assert (tag / "manifest.json").read_bytes() == IMAGE.raw
    assert (tag / "layers/00").read_bytes() == LAYER
    assert [entry.name for entry in (mount.path / "library/app/tags").iterdir()] == ["latest"]
    at_the_cache, at_the_origin = asked_by_us(cache), asked_by_us(origin)
    for kind in ("/manifests/latest", f"/manifests/{IMAGE.digest}", f"/blobs/{Digest.of(LAYER)}"):
        assert any(kind in path for path in at_the_cache), kind
    assert all("?ns=127.0.0.1%3A" in path for path in at_the_cache)
    assert not any("/manifests/" in path or "/blobs/" in path for path in at_the_origin)
    assert not any("/tags/list" in path or "_catalog" in path for path in at_the_cache)


def test_a_cache_that_is_killed_in_the_middle_of_a_blob_is_not_missed(
    cached: tuple[DockerRegistry, DockerRegistry], mounts: Mounts, tmp_path: Path
) -> None:
    origin, cache = cached
    with relay(cache, 8 * MIB, then=cache.process.kill) as url:
        mount = mounts(origin.url, "--hosts-dir", hosts_dir(tmp_path, url))
        assert (mount.path / BLOB).read_bytes() == LAYER
        assert cache.process.wait(5) < 0
        assert any("/blobs/" in path for path in asked_by_us(origin))
        shown = status(mount.path)
        (mirror,) = shown["mirrors"]
        assert (mirror["host"], mirror["healthy"]) == (url, False)
        assert mirror["since"] >= shown["started"]


def test_without_its_registry_a_mount_still_reads_from_the_cache(
    cached: tuple[DockerRegistry, DockerRegistry], mounts: Mounts, tmp_path: Path
) -> None:
    origin, cache = cached
    options = ["--hosts-dir", hosts_dir(tmp_path, cache.url)]
    first = mounts(origin.url, *options)
    assert (first.path / BLOB).read_bytes() == LAYER
    second = mounts(origin.url, *options, cache=tmp_path / "another")
    assert [entry.name for entry in second.path.iterdir()] == ["library"]
    origin.process.kill()
    origin.process.wait(5)
    assert (second.path / BLOB).read_bytes() == LAYER


def test_doctor_has_a_row_for_each_mirror(tmp_path: Path) -> None:
    with EmbeddedRegistry() as origin, EmbeddedRegistry() as mirror:
        load(origin, "library/app", "latest", IMAGE)
        directory = hosts_dir(tmp_path, mirror.url, "http://127.0.0.1:1")
        _, said, _ = run("doctor", "--hosts-dir", directory, origin.url)
    rows = [line for line in said.splitlines() if " mirror " in line]
    assert rows[0] == f"ok    mirror       {mirror.url} answers, for pull and resolve"
    assert rows[1].startswith("warn  mirror       http://127.0.0.1:1 is skipped: unavailable (GET ")
    assert len(rows) == 2


def test_a_mistake_in_hosts_toml_is_told_before_anything_is_mounted(tmp_path: Path) -> None:
    directory = Path(hosts_dir(tmp_path))
    file = directory / "_default" / "hosts.toml"
    file.write_text('server = "https://x"\nserver = "https://y"\n')
    (tmp_path / "mnt").mkdir()
    for options in (["--hosts-dir", directory], ["-o", f"hosts_dir={directory}"]):
        code, _, said = run("mount", *options, "http://127.0.0.1:1", tmp_path / "mnt")
        assert (code, said.count("\n")) == (2, 1)
        assert str(file) in said
        assert "line 2" in said
    code, _, said = run("mount", "--hosts-dir", file, "http://127.0.0.1:1", tmp_path / "mnt")
    assert (code, "is not a directory" in said) == (2, True)
