"""An index against the obvious model: a dictionary, to which entries are applied one by one."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epochfs.errors import ProtocolViolation
from epochfs.layers.entry import Entry, Piece, join_path, split_path
from epochfs.layers.index import IMPLICIT, LayerIndex
from epochfs.layers.index_writer import MAX_LINKS, IndexWriter

names = st.sampled_from([b"a", b"b", b"c"])
paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)
targets = st.lists(st.sampled_from([b"a", b"b", b"..", b"x"]), min_size=1, max_size=2).map(
    b"/".join
)
whiteouts = st.tuples(paths, st.booleans()).map(
    lambda made: join_path(*_whiteout(*split_path(made[0]), opaque=made[1]))
)
entries = st.lists(
    st.builds(lambda path: file(path), paths)
    | st.builds(lambda path: Entry(path, stat.S_IFDIR | 0o755), paths)
    | st.builds(lambda path, to: link(path, to), paths, targets)
    | st.builds(lambda path, to: hard_link(path, to), paths, paths)
    | st.builds(lambda path: Entry(path, stat.S_IFREG), whiteouts),
    max_size=30,
)


def hard_link(path: bytes, to: bytes) -> Entry:
    return Entry(path, stat.S_IFREG, link=to, is_hard_link=True)


def file(path: bytes) -> Entry:
    return Entry(path, stat.S_IFREG | 0o644)


def link(path: bytes, to: bytes) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, link=to)


def _whiteout(parent: bytes, name: bytes, *, opaque: bool) -> tuple[bytes, bytes]:
    return parent, b".wh..wh..opq" if opaque else b".wh." + name


@dataclass
class Model:
    """What is at each path: the number of an inode, 0 for a directory that is only implied."""

    inodes: list[Entry] = field(default_factory=lambda: [Entry(b"", stat.S_IFDIR)])
    at: dict[bytes, int] = field(default_factory=dict)
    hidden: set[tuple[bytes, bytes]] = field(default_factory=set)

    def kind(self, path: bytes) -> int | None:
        number = self.at.get(path)
        return None if number is None else stat.S_IFMT(self.inodes[number].mode)

    def follow(self, directory: bytes) -> bytes:
        found, links, todo = b"", 0, directory.split(b"/")[::-1] if directory else []
        while todo:
            name = todo.pop()
            path = join_path(found, name)
            if name == b"..":
                found = split_path(found)[0]
            elif self.kind(path) == stat.S_IFLNK:
                links += 1
                if links > MAX_LINKS:
                    raise ProtocolViolation("nowhere")
                todo += self.inodes[self.at[path]].link.split(b"/")[::-1]
            else:
                found = path
        return found

    def add(self, entry: Entry) -> None:
        stated, name = split_path(entry.path)
        parent = self.follow(stated)
        if entry.is_hard_link:
            to, last = split_path(entry.link)
            entry = entry._replace(link=join_path(self.follow(to), last))
        if not name.startswith(b".wh.") or parent == stated:
            self.imply(parent)
        if name.startswith(b".wh."):
            self.hidden.add((parent, b"" if name == b".wh..wh..opq" else name[4:]))
            return
        path = join_path(parent, name)
        number = len(self.inodes)
        if entry.is_hard_link and self.kind(entry.link) not in (None, stat.S_IFDIR):
            number = self.at[entry.link]
            if not self.inodes[number].mode:  # of a lower layer
                entry = entry._replace(link=self.inodes[number].link)
                number = len(self.inodes)
        if number == len(self.inodes):
            mode = 0 if entry.is_hard_link else entry.mode
            self.inodes.append(entry._replace(path=path, mode=mode))
        if stat.S_IFMT(self.inodes[number].mode) != stat.S_IFDIR:
            for below in [one for one in self.at if one.startswith(path + b"/")]:
                del self.at[below]
        self.at[path] = number

    def imply(self, directory: bytes) -> None:
        self.at.setdefault(b"", IMPLICIT)
        while directory:
            if self.kind(directory) != stat.S_IFDIR:
                self.at[directory] = IMPLICIT
            directory = split_path(directory)[0]


@settings(max_examples=400)
@given(
    entries, st.sampled_from([0, 2, 2000]), st.sampled_from([1, 10_000]), st.sampled_from([8, 999])
)
def test_an_index_is_what_extracting_in_order_would_leave(
    stated: list[Entry], batch: int, known: int, bits: int
) -> None:
    model = Model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("epochfs.layers.index_writer._BATCH", batch)
        patch.setattr("epochfs.layers.index_writer._KNOWN_DIRECTORIES", known)
        patch.setattr("epochfs.layers.index_writer._FILTER_BITS", 8 * bits)
        writer = IndexWriter(":memory:")
        try:
            for entry in stated:
                model.add(entry)
        except ProtocolViolation:
            with pytest.raises(ProtocolViolation), writer:
                for entry in stated:
                    writer.add(entry)
            return
        for entry in stated:
            writer.add(entry)
        connection = writer.finish()
    rows = connection.execute("SELECT parent, name, inode FROM name").fetchall()
    assert {join_path(parent, name): number for parent, name, number in rows} == model.at
    assert set(connection.execute("SELECT parent, name FROM hidden").fetchall()) == model.hidden
    index = LayerIndex(connection)
    for path, number in model.at.items():
        if number != IMPLICIT:
            inode, expected = index.inode(number), model.inodes[number]
            assert (inode.mode, inode.link, inode.first) == (
                *(expected.mode, expected.link),
                expected.path,
            )
            known_as = {one for one, other in model.at.items() if other == number}
            assert set(index.aliases(number)) - {inode.first} <= known_as
            if len(known_as) > 1:
                assert set(index.aliases(number)) == known_as, path


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ([link(b"c", b".."), file(b"c/c"), file(b"c/a")], {b"": 0, b"c": 0, b"c/a": 3}),
        (
            [link(b"c", b"y/.."), link(b"c/y", b"z/q"), file(b"c/a")],
            {b"": 0, b"c": 1, b"y": 2, b"z": 0, b"z/a": 3},
        ),
    ],
)
def test_an_entry_may_change_the_way_that_led_to_it(
    stated: list[Entry], found: dict[bytes, int]
) -> None:
    writer = IndexWriter(":memory:")
    for entry in stated:
        writer.add(entry)
    rows = writer.finish().execute("SELECT parent, name, inode FROM name").fetchall()
    assert {join_path(parent, name): number for parent, name, number in rows} == found


def test_pieces_and_attributes_are_kept() -> None:
    writer = IndexWriter(":memory:")
    pieces = (Piece(0, 5, 512), Piece(9, 1, 517, 3, "sha256:x"))
    writer.add(Entry(b"a", stat.S_IFREG, size=20, xattrs={"user.a": b"\0\xff"}, pieces=pieces))
    index = LayerIndex(writer.finish())
    assert tuple(index.pieces(1, 0, 20)) == pieces
    assert index.inode(1).xattrs == {"user.a": b"\0\xff"}
