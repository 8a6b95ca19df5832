"""What is refused and how: writes, wrong options, bad paths, other hosts, errors of a registry."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from support.faultproxy import MANIFEST, FaultProxy
from support.fsspec_data import VOLUME, Maker
from support.minds import TURNS, Turn
from support.registries import EmbeddedRegistry

from epochfs.errors import NotFound
from epochfs.fsspec import RegistryFileSystem
from epochfs.fsspec.os_errors import os_error, translated
from epochfs.fuse.errnos import ERRNO

WRITES: dict[str, Callable[[RegistryFileSystem, str], Any]] = {
    "open": lambda fs, path: fs.open(path, "wb"),
    "open for more": lambda fs, path: fs.open(path, "ab"),
    "open a new one": lambda fs, path: fs.open(path, "xb"),
    "mkdir": lambda fs, path: fs.mkdir(path),
    "makedirs": lambda fs, path: fs.makedirs(path, exist_ok=True),
    "rmdir": lambda fs, path: fs.rmdir(path),
    "rm": lambda fs, path: fs.rm(path, recursive=True),
    "rm_file": lambda fs, path: fs.rm_file(path),
    "delete": lambda fs, path: fs.delete(path),
    "mv": lambda fs, path: fs.mv(path, "/other"),
    "rename": lambda fs, path: fs.rename(path, "/other"),
    "copy": lambda fs, path: fs.copy(path, "/other"),
    "touch": lambda fs, path: fs.touch(path),
    "pipe": lambda fs, path: fs.pipe(path, b"x"),
    "pipe several": lambda fs, path: fs.pipe({path: b"x"}),
    "put": lambda fs, path: fs.put("/etc/hostname", path),
    "upload": lambda fs, path: fs.upload("/etc/hostname", path),
    "write_text": lambda fs, path: fs.write_text(path, "x"),
    "write_bytes": lambda fs, path: fs.write_bytes(path, b"x"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_whatever_writes_is_refused_as_by_a_read_only_disk(
    write: Callable[[RegistryFileSystem, str], Any], fs: RegistryFileSystem
) -> None:
    with pytest.raises(OSError, match="read-only") as caught:
        write(fs, f"{VOLUME}/train.csv")
    assert caught.value.errno == errno.EROFS


def test_there_is_no_link_to_share(fs: RegistryFileSystem) -> None:
    with pytest.raises(NotImplementedError):
        fs.sign(f"{VOLUME}/train.csv")


BAD_PATHS = (
    f"{VOLUME}/nothing",
    f"{VOLUME}/train.csv/below",
    "/team/data:nothing/train.csv",
    "/nobody/tags/v1",
    "/team/data/blobs/sha256:short",
    f"/team/data/blobs/sha256:{'0' * 64}",
    "/team/data/tags/a\nb",
    "/team/data/tags/\0",
    "/UPPER",
    "/\udc80",
    "/a//b/../../c",
    "/team/data:v1:v1",
    "/.epochfs/secrets",
)


@pytest.mark.parametrize("path", BAD_PATHS)
def test_what_is_not_there_is_a_file_not_found(path: str, fs: RegistryFileSystem) -> None:
    for ask in (fs.info, fs.ls, fs.cat_file, fs.open, fs.ukey):
        with pytest.raises(FileNotFoundError):
            ask(path)
    assert not fs.exists(path)
    assert not fs.isfile(path)
    assert not fs.isdir(path)
    assert fs.find(path) == []
    [error] = fs.cat_ranges([path], [0], [1])
    assert isinstance(error, FileNotFoundError)


def test_a_long_name_and_a_directory_have_errors_of_their_own(fs: RegistryFileSystem) -> None:
    with pytest.raises(OSError, match="a name of") as caught:
        fs.info("/team/" + "x" * 300)
    assert caught.value.errno == errno.ENAMETOOLONG
    for read in (fs.cat_file, fs.open):
        with pytest.raises(IsADirectoryError):
            read(VOLUME)


def test_paths_cannot_leave_the_tree(fs: RegistryFileSystem) -> None:
    assert fs.info("/../../etc")["name"] == "/etc" if fs.exists("/etc") else True
    assert fs._strip_protocol("../../x") == "/x"
    assert fs.info("/..")["name"] == "/"


@pytest.mark.parametrize("kind", ERRNO, ids=lambda kind: kind.__name__)
def test_each_error_is_the_oserror_of_its_errno(kind: type) -> None:
    error = os_error(kind("why"), "/path")
    assert (error.errno, error.strerror, error.filename) == (ERRNO[kind], "why", "/path")
    with pytest.raises(FileNotFoundError), translated("/path"):
        raise NotFound("why")


EXPECTED = {
    "401": PermissionError,
    "403": PermissionError,
    "404 of the specification": FileNotFoundError,
    "silence": TimeoutError,
}


@pytest.mark.expects_log("serving|cannot|stale")
@pytest.mark.parametrize("turned", TURNS, ids=lambda turned: turned.title)
def test_errors_of_a_registry_are_those_that_programs_know(
    turned: Turn, registry: EmbeddedRegistry, open_fs: Maker
) -> None:
    with FaultProxy(registry.host) as proxy:
        fs = open_fs(proxy.host, timeout=1)
        fs.ls("/")
        proxy.set(MANIFEST, turned.fault)
        if turned.title == "a page that is its own next":
            return
        with pytest.raises(OSError) as caught:
            fs.cat_file(f"{VOLUME}/train.csv")
        wanted = EXPECTED.get(turned.title)
        if wanted is not None:
            assert isinstance(caught.value, wanted), caught.value


WRONG: tuple[dict[str, Any], ...] = (
    {"host": "user:password@host"},
    {"host": "ftp://host"},
    {"host": "http://host", "use_ssl": True},
    {"timeout": 0},
    {"timeout": "soon"},
    {"cache_size": "much"},
    {"connections": 0},
    {"platform": "linux"},
    {"repositories": ["a//b"]},
    {"username": "me"},
    {"password": "secret"},
    {"username": "me", "password": "secret", "password_file": "/file"},
    {"token": "secret", "token_file": "/file"},
)


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_a_wrong_option_is_a_value_error_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        RegistryFileSystem(**{"host": "host", **options})
    assert "secret" not in str(caught.value)
    assert "password@" not in str(caught.value)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="cachedir"):
        RegistryFileSystem("host", cachedir="/tmp")


def test_the_url_of_another_registry_is_refused(fs: RegistryFileSystem) -> None:
    for ask in (fs.info, fs.ls, fs.cat_file, fs.open, fs.glob, fs.find):
        with pytest.raises(ValueError, match="is not of"):
            ask("epochfs://elsewhere.example/team/data:v1/train.csv")


def test_a_registry_that_is_not_there_is_an_oserror_when_it_is_used(open_fs: Maker) -> None:
    fs = open_fs("127.0.0.1:9", timeout=2)
    with pytest.raises(OSError, match="cannot be reached"):
        fs.ls("/")
