"""What has passed of a layer, who waits for it, and where its gzip stream can be resumed."""

from __future__ import annotations

import gzip
import stat
import threading
import time
from collections.abc import Iterator

import pytest
from support.builders import random_bytes
from support.scripted import until

from epochfs.errors import DeadlineExceeded, EpochfsError
from epochfs.layers import arriving, gzip_reader
from epochfs.layers.arriving import Arrival, Arriving, Rested
from epochfs.layers.decoders import BlobFile, gzip_content
from epochfs.layers.entry import Entry, Piece
from epochfs.layers.gzip_reader import GzipPoints, GzipReader
from epochfs.layers.index import IMPLICIT, Inode, LayerIndex, Seen
from epochfs.layers.index_writer import IndexWriter

FILE, DIRECTORY, LINK = 0o100644, 0o040755, 0o120777
KIB = 1 << 10
ASIDE = Entry(b".wh..wh.plnk/1", FILE)


class Counted:
    """A blob in memory (a `BlobHandle`), which counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.verified = False
        self.bytes_read = 0

    def fileno(self) -> None:
        """Return None: it is in no file."""

    def read_into(self, view: memoryview, offset: int) -> int:
        found = self.data[offset : offset + len(view)]
        view[: len(found)] = found
        self.bytes_read += len(found)
        return len(found)

    def close(self) -> None:
        """Nothing to close."""


class Pass:
    """A pass of its own thread over entries, each of which is a piece of the stream."""

    def __init__(self, *entries: Entry, arrival: Arrival | None = None) -> None:
        self.arrival = arrival or Arrival(lambda: False, lambda: None)
        self.over = threading.Event()
        self.fetched = 0
        self.error: Exception | None = None
        self._entries = entries
        self.blob = Counted(b"")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def see(self, path: bytes) -> Inode | Seen | None:
        return self.arrival.wait_for(path, self.over, time.monotonic() + 10)

    def find(self, path: bytes) -> Inode | None:
        found = self.see(path)
        assert not isinstance(found, Seen)
        return found

    def ended(self) -> Exception | None:
        """Return what ended the pass, once it has."""
        self._thread.join(10)
        assert self.over.is_set()
        return self.error

    def _pieces(self) -> Iterator[memoryview]:
        for number in range(len(self._entries)):
            self.fetched += 1
            yield memoryview(b"%d" % number)

    def _run(self) -> None:
        try:
            with IndexWriter(":memory:") as writer, self.arrival.passing(writer):
                for piece in self.arrival.follow(self._pieces(), self.blob, writer):
                    writer.add(self._entries[int(bytes(piece))])
        except EpochfsError as error:
            self.error = error
        finally:
            self.over.set()


def test_an_entry_is_found_as_soon_as_it_has_passed_and_then_no_more_is_fetched() -> None:
    file = Entry(b"d/a", FILE, 1, 2, 30, 4, pieces=(Piece(0, 10, 512), Piece(20, 10, 522)))
    one = Pass(Entry(b"d", DIRECTORY), file, Entry(b"b", FILE), Entry(b"c", FILE))
    found = one.find(b"d/a")
    assert found is not None
    assert (found.mode, found.uid, found.gid, found.size, found.time_ns) == (FILE, 1, 2, 30, 4)
    assert found.pieces == file.pieces
    time.sleep(0.1)
    assert one.fetched == 2
    folder = one.find(b"d")
    assert folder is not None
    assert folder.mode == DIRECTORY
    assert one.find(b"b") is not None
    assert one.fetched == 3


def test_a_pass_that_nobody_waits_for_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "_REST_SECONDS", 0.3)
    one = Pass(Entry(b"a", FILE), Entry(b"b", FILE))
    assert one.find(b"a") is not None
    assert isinstance(one.ended(), Rested)
    assert one.fetched == 1
    assert one.find(b"a") is None


@pytest.mark.parametrize("lacks_threads", [False, True])
def test_a_pass_is_given_up_though_it_is_asked_if_others_need_its_thread(
    lacks_threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "_REST_SECONDS", 0.5)
    arrival = Arrival(lambda: lacks_threads, lambda: None)
    one = Pass(Entry(b"a", FILE), Entry(b"b", FILE), arrival=arrival)
    end = time.monotonic() + 2
    while time.monotonic() < end and not one.over.is_set():
        found = one.find(b"a")
        assert found is not None or one.over.is_set()
        time.sleep(0.05)
    assert one.over.is_set() == lacks_threads
    assert isinstance(one.ended(), Rested)
    assert one.fetched == 1


def test_a_pass_goes_on_once_all_of_the_blob_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "_REST_SECONDS", 0.3)
    one = Pass(Entry(b"a", FILE), Entry(b"b", FILE))
    assert one.find(b"a") is not None
    one.blob.verified = True
    assert one.ended() is None
    assert one.fetched == 2


def test_what_is_wanted_whole_is_read_to_its_end_though_nobody_waits() -> None:
    one = Pass(Entry(b"a", FILE), Entry(b"b", FILE))
    one.arrival.want_all()
    assert one.ended() is None
    assert one.fetched == 2


def test_a_mount_that_ends_does_not_wait_for_a_pass_that_rests() -> None:
    one = Pass(Entry(b"a", FILE), Entry(b"b", FILE))
    assert one.find(b"a") is not None
    began = time.monotonic()
    one.arrival.rest()
    assert isinstance(one.ended(), Rested)
    assert time.monotonic() - began < 1


def test_whoever_runs_out_of_time_leaves_a_pass_that_goes_on() -> None:
    arrival = Arrival(lambda: False, lambda: None)
    with pytest.raises(DeadlineExceeded):
        arrival.wait_for(b"a", threading.Event(), time.monotonic() + 0.1)
    one = Pass(Entry(b"a", FILE), Entry(b"b", FILE), arrival=arrival)
    assert one.ended() is None
    assert one.fetched == 2


def test_nobody_sees_a_file_without_its_pieces() -> None:
    looked = []

    class Lock:
        """The lock of an index; each time it is free, somebody looks."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._is_looking = False

        def __enter__(self) -> None:
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()
            if not self._is_looking:
                self._is_looking = True
                number = index.see(b"a").inode
                looked.append(None if number is None else index.pieces(number, 0, 10))
                self._is_looking = False

    with IndexWriter(":memory:") as writer:
        index = writer.so_far()
        index._lock = writer._rows.lock = Lock()  # type: ignore[assignment]
        writer.add(Entry(b"a", FILE, size=10, pieces=(Piece(0, 10, 512),)))
        writer.flush()
        assert looked[-1] == [Piece(0, 10, 512)]
        assert all(pieces is None or pieces for pieces in looked)
        writer.finish().close()


def test_two_wait_for_two_entries() -> None:
    one = Pass(*(Entry(b"%d" % number, FILE) for number in range(100)))
    found: list[Inode | None] = []
    threads = [
        threading.Thread(target=lambda path=path: found.append(one.find(path)))
        for path in (b"70", b"30", b"30")
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(found) == 3)
    assert sorted(inode.first for inode in found if inode) == [b"30", b"30", b"70"]
    assert one.fetched == 71


@pytest.mark.parametrize(
    ("entries", "path"),
    [
        ([Entry(b"link", FILE, link=b"lower", is_hard_link=True)], b"link"),
        ([Entry(b".wh.a", FILE)], b"a"),
        ([Entry(b".wh.a", FILE)], b".wh.a"),
        ([Entry(b"d", DIRECTORY), Entry(b"d/.wh..wh..opq", FILE)], b"d/a"),
    ],
    ids=["link below", "whiteout", "whiteout's name", "opaque"],
)
def test_what_may_yet_be_something_else_is_not_told_before_the_end(
    entries: list[Entry], path: bytes
) -> None:
    one = Pass(*entries, Entry(b"z", FILE))
    assert one.find(path) is None
    assert one.ended() is None


@pytest.mark.parametrize(
    ("entries", "path"),
    [
        ([Entry(b"a", LINK, link=b"b")], b"a"),
        ([Entry(b"a", FILE), Entry(b"b", FILE, link=b"a", is_hard_link=True)], b"b"),
        ([Entry(b"d", DIRECTORY), Entry(b"l", LINK, link=b"d"), Entry(b"l/a", FILE)], b"d/a"),
        ([ASIDE, Entry(b"a", FILE, link=ASIDE.path, is_hard_link=True)], b"a"),
    ],
    ids=["link", "hard link", "behind a link", "hard link to what is set aside"],
)
def test_what_an_entry_says_is_told_at_once(entries: list[Entry], path: bytes) -> None:
    one = Pass(*entries, Entry(b"z", FILE))
    assert one.find(path) is not None
    assert one.fetched == len(entries)


def test_once_all_has_passed_the_whole_index_answers() -> None:
    with IndexWriter(":memory:") as writer:
        for path, link in ((b"a", b""), (b"b", b"a"), (b"c", b"lower")):
            writer.add(Entry(path, FILE, link=link, is_hard_link=bool(link)))
        index = LayerIndex(writer.finish())
    layer = Arriving(lambda _: index, lambda: index)
    assert (layer.has_aliases, layer.has_foreign_links) == (False, False)
    assert layer.see(b"absent").inode is None
    assert (layer.has_aliases, layer.has_foreign_links) == (True, True)
    assert layer.foreign_links(b"lower") == [b"c"]
    number = layer.see(b"b").inode or 0
    assert layer.aliases(number) == [b"a", b"b"]
    assert layer.inode(number).first == b"a"
    assert layer.children(b"") == index.children(b"")
    assert layer.hidden(b"") == set()


@pytest.mark.parametrize("is_hidden", [False, True])
def test_a_directory_is_there_once_anything_in_it_has_passed(is_hidden: bool) -> None:
    whiteouts = [Entry(b".wh.d", FILE)] * is_hidden
    one = Pass(*whiteouts, Entry(b"d/e/a", FILE), Entry(b"z", FILE))
    for path in (b"d", b"d/e"):
        assert one.see(path) == Seen(IMPLICIT, stat.S_IFDIR, hides_below=is_hidden)
    assert one.fetched == 1 + is_hidden


# ---- gzip ----------------------------------------------------------------------------------------

STREAM = random_bytes(3 << 20)
PARTS = [STREAM[: 1 << 20], b"", STREAM[1 << 20 : 1_500_000], STREAM[1_500_000:]]


@pytest.mark.parametrize("parts", [[STREAM], PARTS], ids=["one member", "four members"])
def test_a_gzip_stream_is_resumed_where_it_passed_before(
    parts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gzip_reader, "_SPACING", 256 * KIB)
    blob = Counted(b"".join(gzip.compress(part, 1) for part in parts))
    points = GzipPoints()
    assert sum(map(len, gzip_content(BlobFile(blob), points.note))) == len(STREAM)
    reader = GzipReader(BlobFile(blob), points)
    for offset in (2_900_000, 100, 1_600_000, 1_600_500, (1 << 20) - 3, 0, len(STREAM) - 9):
        blob.bytes_read = 0
        buffer = memoryview(bytearray(10 * KIB))
        reader.seek(offset)
        filled = 0
        while count := reader.readinto(buffer[filled:]):
            filled += count
        assert buffer[:filled] == STREAM[offset : offset + len(buffer)]
        assert blob.bytes_read < 400 * KIB
    reader.seek(len(STREAM) + 1)
    assert reader.readinto(memoryview(bytearray(1))) == 0


def test_a_reader_notes_points_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip_reader, "_SPACING", 256 * KIB)
    blob, points = Counted(gzip.compress(STREAM, 1)), GzipPoints()
    reader = GzipReader(BlobFile(blob), points)
    reader.seek(len(STREAM) - 1)
    blob.bytes_read = 0
    reader.seek(len(STREAM) - 1000)
    assert blob.bytes_read < 400 * KIB


def test_a_file_that_has_passed_is_read_without_what_comes_behind_it() -> None:
    blob = Counted(gzip.compress(STREAM, 1))
    reader = GzipReader(BlobFile(blob), GzipPoints())
    reader.seek(1 << 20)
    assert reader.readinto(memoryview(bytearray(100))) == 100
    assert blob.bytes_read < (1 << 20) + 70 * KIB


def test_there_are_never_many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip_reader, "_SPACING", 1)
    blob, points = Counted(gzip.compress(STREAM * 4, 1)), GzipPoints()
    noted = sum(1 for _ in gzip_content(BlobFile(blob), points.note))
    assert noted > 300
    assert len(points._points) <= 128
    reader = GzipReader(BlobFile(blob), points)
    buffer = memoryview(bytearray(100))
    for offset in (11_000_000, 5_000_000, 70_000):
        reader.seek(offset)
        assert reader.readinto(buffer) == 100
        assert buffer == (STREAM * 4)[offset : offset + 100]
