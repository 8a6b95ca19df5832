"""A registry's blob endpoint without a network: what it sends, and when, is a test's to say."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from epochfs.errors import Unavailable
from epochfs.oci.names import Digest, Repository

PIECE = 1 << 16

Before = Callable[["FakeStream"], None]
"""Called before each piece; may wait, or raise what a broken stream raises."""


@dataclass
class FakeClient:
    """Serves `data`, whatever is asked for; to be used in place of a RegistryClient."""

    data: bytes
    ranged: bool = True
    before: Before = lambda _: None
    alter: Callable[[FakeStream, bytes], bytes] = lambda _, piece: piece
    refuse: Callable[[int], Exception | None] = lambda _: None
    total: int | None = None
    asked: list[tuple[int, int | None]] = field(default_factory=list)
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get_blob(
        self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None
    ) -> FakeStream:
        with self.lock:
            number = len(self.asked)
            self.asked.append((start, end))
        if (error := self.refuse(number)) is not None:
            raise error
        if not self.ranged:
            start, end = 0, None
        return FakeStream(self, number, start, len(self.data) if end is None else end)

    def distrust_mirrors(self, digest: Digest) -> bool:
        return False


@dataclass
class FakeStream:
    """What `number`, the n-th request from 0, is answered with."""

    client: FakeClient
    number: int
    start: int
    stop: int
    position: int = field(init=False)
    closed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.position = self.start

    @property
    def ranged(self) -> bool:
        return self.client.ranged

    @property
    def total(self) -> int:
        return len(self.client.data) if self.client.total is None else self.client.total

    def read_into(self, buffer: memoryview) -> int:
        self.client.before(self)
        if self.closed.is_set():
            raise Unavailable("the stream is closed")
        stop = min(self.position + min(PIECE, len(buffer)), self.stop)
        piece = self.client.alter(self, self.client.data[self.position : stop])
        buffer[: len(piece)] = piece
        self.position += len(piece)
        with self.client.lock:
            self.client.sent += len(piece)
        return len(piece)

    def close(self) -> None:
        self.closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Turnstile:
    """Lets bytes pass up to a limit that a test raises; streams wait in front of it."""

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._changed = threading.Condition()

    def open(self, limit: int = 1 << 60) -> None:
        """Let what lies before `limit` pass, in the blob's bytes; all of it by default."""
        with self._changed:
            self._limit = limit
            self._changed.notify_all()

    def __call__(self, stream: FakeStream) -> None:
        with self._changed:
            passed = self._changed.wait_for(
                lambda: stream.position < self._limit or stream.closed.is_set(), 20
            )
        assert passed, "nobody let the bytes pass"


def flip(requests: range | set[int], at: int) -> Callable[[FakeStream, bytes], bytes]:
    """Flip one bit of the byte at an offset of the blob, in the answers to some requests."""

    def alter(stream: FakeStream, piece: bytes) -> bytes:
        index = at - stream.position
        if stream.number not in requests or not 0 <= index < len(piece):
            return piece
        return piece[:index] + bytes([piece[index] ^ 1]) + piece[index + 1 :]

    return alter


def break_at(offsets: dict[int, int]) -> Callable[[FakeStream], None]:
    """Break each request's stream off when it has come to an offset of the blob."""

    def before(stream: FakeStream) -> None:
        if stream.number in offsets and stream.position >= offsets[stream.number]:
            raise Unavailable("connection reset")

    return before
