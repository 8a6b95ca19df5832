"""What a file system shows and reads, over the embedded registry."""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest
from fsspec.callbacks import Callback
from support.artifacts import artifact, raw
from support.builders import load, random_bytes, write_layout
from support.fsspec_data import DATA, LARGE, TABLE, VOLUME, Maker
from support.layers import File, Layer, container, sha256, tar
from support.registries import EmbeddedRegistry

from epochfs.fsspec import RegistryFileSystem

CSV, BIN = f"{VOLUME}/train.csv", f"{VOLUME}/deep/er/large.bin"


def test_a_file_of_an_artifact_opens_through_the_link_of_its_tag(fs: RegistryFileSystem) -> None:
    with fs.open(CSV) as file:
        assert file.read(9) == b"name,size"
        assert file.seek(-8, os.SEEK_END) == len(TABLE) - 8
        assert file.read() == b"small,1\n"
        assert file.size == len(TABLE)


def test_no_listing_is_asked_for_to_open_a_file(
    fs: RegistryFileSystem, registry: EmbeddedRegistry
) -> None:
    fs.info("/")
    registry.forget_requests()
    assert fs.cat_file(CSV) == TABLE
    assert registry.count(containing="/tags/list") == registry.count(containing="_catalog") == 0
    # The tag, its manifest, the tar that may hide the file, and the file.
    assert registry.count() == 4, registry.requests


def test_info_tells_what_the_manifest_does(fs: RegistryFileSystem) -> None:
    found = fs.info(CSV)
    assert (found["name"], found["size"], found["type"]) == (CSV, len(TABLE), "file")
    assert found["digest"] == sha256(TABLE)
    assert stat.S_IMODE(found["mode"]) == 0o640
    assert not found["islink"]
    assert fs.modified(CSV) == fs.created(CSV) == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert fs.info("team/data/tags/v1")["islink"]
    assert fs.info("team/data/tags/v1")["digest"] == str(DATA.digest)
    config = fs.info("team/data/tags/v1/config")
    assert config["mediaType"].endswith("config.v1+json")
    assert config["destination"] == f"../../blobs/{config['digest']}"


def test_the_key_of_a_file_is_its_digest(
    fs: RegistryFileSystem, registry: EmbeddedRegistry
) -> None:
    assert fs.ukey(CSV) == fs.checksum(CSV) == sha256(TABLE)
    manifest = "team/data/tags/v1/manifest.json"
    assert fs.ukey(manifest) == str(DATA.digest)
    inside, directory = fs.ukey(f"{VOLUME}/notes/first.txt"), fs.ukey(VOLUME)
    assert len({inside, directory, fs.ukey(f"{VOLUME}/notes/second.txt")}) == 3
    load(registry, "team/data", "v1", artifact(raw("train.csv", b"changed")))
    fs.invalidate_cache()
    assert fs.ukey(CSV) == sha256(b"changed")
    assert fs.cat_file(CSV) == b"changed"


def test_a_key_that_a_layer_claims_is_not_believed(
    open_fs: Maker, registry: EmbeddedRegistry
) -> None:
    from support.artifacts import packed
    from support.layers import File

    file = File("file", b"real", xattrs={"user.oci.digest": sha256(b"claimed").encode()})
    load(registry, "liar", "v1", artifact(packed(file)))
    fs = open_fs()
    assert fs.ukey("liar:v1/file") != sha256(b"claimed")
    assert "digest" not in fs.info("liar:v1/file")


def test_listing_with_and_without_detail(fs: RegistryFileSystem) -> None:
    assert sorted(fs.ls(VOLUME, detail=False)) == [
        f"{VOLUME}/deep",
        f"{VOLUME}/notes",
        f"{VOLUME}/train.csv",
    ]
    by_name = {one["name"]: one for one in fs.ls(f"{VOLUME}/notes")}
    assert by_name[f"{VOLUME}/notes/first.txt"]["size"] == 5
    assert by_name[f"{VOLUME}/notes/latest"]["type"] == "file"
    assert by_name[f"{VOLUME}/notes/latest"]["destination"] == "second.txt"
    assert by_name[f"{VOLUME}/notes/circle"]["type"] == "link"
    [one] = fs.ls(CSV)
    assert one == fs.info(CSV)


def test_links_are_followed_anywhere_in_a_path(fs: RegistryFileSystem) -> None:
    assert fs.cat_file(f"{VOLUME}/notes/latest") == b"second"
    assert fs.cat_file(f"{VOLUME}/notes/absolute") == b"first"
    assert fs.cat_file("team/data/tags/v1/volume/notes/../train.csv") == TABLE
    layer = fs.cat_file("team/data/tags/v1/layers/01")
    assert layer == LARGE
    with pytest.raises(OSError, match="too many links") as caught:
        fs.info(f"{VOLUME}/notes/circle")
    assert caught.value.errno == errno.ELOOP
    assert fs.lexists(f"{VOLUME}/notes/circle")


def test_find_glob_walk_and_du(fs: RegistryFileSystem) -> None:
    notes = [f"{VOLUME}/notes/{name}" for name in ("absolute", "circle", "first.txt", "latest")]
    every = [BIN, *notes, f"{VOLUME}/notes/second.txt", CSV]
    assert fs.find(VOLUME) == sorted(every)
    texts = [f"{VOLUME}/notes/first.txt", f"{VOLUME}/notes/second.txt"]
    assert fs.glob(f"{VOLUME}/**/*.txt") == fs.glob(f"{VOLUME}/notes/*.txt") == texts
    assert fs.glob("team/data/tags/*/manifest.json") == ["/team/data/tags/v1/manifest.json"]
    assert fs.glob("team/nothing/*") == []
    assert fs.du(f"{VOLUME}/deep") == len(LARGE)
    path, directories, files = next(iter(fs.walk(VOLUME)))
    assert (path, sorted(directories), files) == (VOLUME, ["deep", "notes"], ["train.csv"])
    # Without a depth, links to directories are named and not entered: they may lead in circles.
    assert not any("/tags/v1/" in path for path in fs.find("team"))
    assert "/team/data/tags/v1" in fs.find("team", withdirs=True)


def test_every_kind_of_buffer_reads_the_same(fs: RegistryFileSystem) -> None:
    kinds = ("none", "readahead", "bytes", "blockcache", "first", "all", "background", "mmap")
    for kind in kinds:
        with fs.open(BIN, cache_type=kind, block_size=1 << 20) as file:
            file.seek(5 << 20)
            assert file.read(100_000) == LARGE[5 << 20 : (5 << 20) + 100_000], kind
            buffer = bytearray(3 << 20)
            assert file.readinto(buffer) == 3 << 20
            assert buffer == LARGE[(5 << 20) + 100_000 : (8 << 20) + 100_000], kind
            assert file.read() == LARGE[(8 << 20) + 100_000 :], kind


def test_text_and_lines(fs: RegistryFileSystem) -> None:
    with fs.open(CSV, "r") as text:
        assert text.readline() == "name,size\n"
    with fs.open(CSV) as file:
        assert len(file.readlines()) == 800
    assert fs.read_text(CSV) == TABLE.decode()
    assert fs.head(CSV, 4) == b"name"
    assert fs.tail(CSV, 3) == b",1\n"


def test_slices_are_pythons(fs: RegistryFileSystem) -> None:
    for start, end in ((0, 4), (-4, None), (None, -3), (10, 5), (5, 10**9), (10**9, None)):
        assert fs.cat_file(CSV, start, end) == TABLE[start:end]


def test_a_manifest_and_the_status_can_be_read(fs: RegistryFileSystem) -> None:
    assert fs.cat_file(f"team/data/manifests/{DATA.digest}/manifest.json") == DATA.raw
    with fs.open("/.epochfs/status.json") as file:
        assert file.read().startswith(b'{\n  "version"')


def test_getting_files_and_trees(fs: RegistryFileSystem, tmp_path: Path) -> None:
    fs.get(BIN, str(tmp_path / "new" / "large.bin"))
    assert (tmp_path / "new" / "large.bin").read_bytes() == LARGE
    told = Callback()
    fs.get_file(BIN, tmp_path / "again.bin", callback=told)  # from the cache
    assert (told.size, told.value) == (len(LARGE), len(LARGE))
    assert (tmp_path / "again.bin").read_bytes() == LARGE
    fs.get(f"{VOLUME}/deep", str(tmp_path / "tree"), recursive=True)
    assert (tmp_path / "tree" / "er" / "large.bin").read_bytes() == LARGE
    target = io.BytesIO()
    fs.get_file(CSV, target)
    assert target.getvalue() == TABLE


def test_several_files_at_once(fs: RegistryFileSystem) -> None:
    notes = [f"{VOLUME}/notes/{name}" for name in ("first.txt", "second.txt")]
    assert fs.cat(notes) == dict(zip(notes, (b"first", b"second"), strict=True))
    found = fs.cat([CSV, f"{VOLUME}/nothing"], on_error="return")
    assert isinstance(found[f"{VOLUME}/nothing"], FileNotFoundError)
    assert fs.cat([CSV, f"{VOLUME}/nothing"], on_error="omit") == {CSV: TABLE}
    assert fs.cat(f"{VOLUME}/deep", recursive=True) == {BIN: LARGE}


def test_nothing_is_written(open_fs: Maker, tmp_path: Path) -> None:
    fs = open_fs(cache_dir=None)
    before = sorted(tmp_path.rglob("*"))
    assert fs.cat_file(BIN) == LARGE
    assert fs.cat_ranges([BIN, BIN], [5 << 20, -10], [(5 << 20) + 10, None]) == [
        LARGE[5 << 20 : (5 << 20) + 10],
        LARGE[-10:],
    ]
    assert fs.cat_file(f"{VOLUME}/notes/latest") == b"second"
    assert sorted(tmp_path.rglob("*")) == before
    assert b'"cache": null' in fs.cat_file("/.epochfs/status.json")


def test_a_layout_is_a_source_too(open_fs: Maker, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", "v1", DATA)
    whole = open_fs(f"oci:{tmp_path / 'layout'}")
    assert whole.cat_file(f"{whole.ls('/', detail=False)[0]}:v1/train.csv") == TABLE
    one = open_fs(f"oci:{tmp_path / 'layout'}:v1")
    assert one.cat_file("train.csv") == TABLE
    assert one.unstrip_protocol("train.csv") == "epochfs:///train.csv"


def test_one_artifact_can_be_the_root(open_fs: Maker, registry: EmbeddedRegistry) -> None:
    fs = open_fs(f"{registry.host}/team/data:v1")
    assert fs.cat_file("/train.csv") == TABLE
    assert fs.unstrip_protocol("/train.csv") == "epochfs:///train.csv"


def test_fsspec_finds_it_by_its_protocol(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path)}
    url = f"epochfs://{registry.host}{CSV}"
    with fsspec.open(url, **options) as file:
        assert file.read() == TABLE
    fs, path = fsspec.url_to_fs(url, **options)
    assert (path, fs.unstrip_protocol(path)) == (CSV, url)
    assert fs is fsspec.filesystem("epochfs", host=registry.host, **options)
    with fsspec.open(f"simplecache::{url}", epochfs=options) as file:
        assert file.read() == TABLE
    mapper = fs.get_mapper(f"{VOLUME}/notes")
    assert mapper["first.txt"] == b"first"


def test_a_layer_is_shown_while_it_arrives_if_that_is_asked_for(
    open_fs: Maker, registry: EmbeddedRegistry
) -> None:
    pytest.importorskip("indexed_gzip")
    files = [File("first", b"the first"), File("large", random_bytes(32 << 20))]
    layer = Layer(gzip.compress(tar(*files), 1))
    load(registry, "app", "latest", container(layer))
    fs = open_fs(unverified_layers=True)
    assert fs.cat_file("app/tags/latest/rootfs/first") == b"the first"
    assert registry.count("GET", sha256(layer.blob)) == 1
    assert fs.size("app/tags/latest/rootfs/large") == 32 << 20
