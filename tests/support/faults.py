"""The faults a proxy can be given, each named as the table of faults has it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from email.utils import formatdate
from itertools import count
from time import time

from support.faultproxy import Exchange, Fault, untouched
from support.scripted import Close, Reset, Step, reply

FOREVER = 60.0
FLIPPED = (1 << 20) + 5
"""Offset in a blob of the byte that `flipped` spoils, one that is read before the last."""


def first(times: int, fault: Fault, then: Fault = untouched) -> Fault:
    """Return a fault that befalls the first requests only."""
    return lambda exchange: (fault if exchange.number < times else then)(exchange)


def later(fault: Fault) -> Fault:
    """Return a fault that befalls all requests but the first."""
    return first(1, untouched, fault)


def now_and_then(chance: random.Random, share: float, *faults: Fault) -> Fault:
    """Return a fault that befalls a share of all requests, another each time."""

    def fault(exchange: Exchange) -> Iterable[Step]:
        if chance.random() >= share:
            return untouched(exchange)
        exchange.proxy.broken += 1
        return chance.choice(faults)(exchange)

    return fault


def reset(_: Exchange) -> Iterator[Step]:
    raise Reset
    yield b""


def reset_every(size: int) -> Fault:
    """Reset each stream after `size` bytes, once they can have been received."""

    def fault(exchange: Exchange) -> Iterator[Step]:
        yield exchange.answer.head()
        yield from exchange.answer.pieces(size)
        if len(exchange.answer.body) > size:
            yield 0.05
            raise Reset

    return fault


def close_after(size: int) -> Fault:
    """End each body in good order after `size` bytes, with more announced."""

    def fault(exchange: Exchange) -> Iterator[Step]:
        yield exchange.answer.head()
        yield from exchange.answer.pieces(size)
        raise Close

    return fault


def no_range(exchange: Exchange) -> Iterator[Step]:
    """Answer 200 with the whole blob, whatever range was asked for."""
    yield from exchange.whole.played()


def range_refused(code: int) -> Fault:
    """Refuse whatever has a Range, and send the whole blob to who asks without."""

    def fault(exchange: Exchange) -> Iterator[Step]:
        if "range" in exchange.request.headers:
            yield reply(code)
        else:
            yield from exchange.answer.played()

    return fault


def capped(size: int) -> Fault:
    """Send at most `size` bytes of a range, and say so."""

    def fault(exchange: Exchange) -> Iterator[Step]:
        whole = exchange.whole.body
        start, _, last = exchange.request.headers.get("range", "bytes=0-")[6:].partition("-")
        stop = min(int(last or len(whole)) + 1, int(start) + size, len(whole))
        span = f"bytes {start}-{stop - 1}/{len(whole)}"
        body = whole[int(start) : stop]
        yield exchange.whole.head(206, Content_Range=span, Content_Length=str(len(body))) + body

    return fault


def rangeless_close_after(size: int) -> Fault:
    """The same, and end the body in good order after `size` bytes, with more announced."""

    def fault(exchange: Exchange) -> Iterator[Step]:
        yield exchange.whole.head()
        yield from exchange.whole.pieces(size)
        raise Close

    return fault


def chunked_until(size: int) -> Fault:
    """Send a chunked body without a Range, and its last chunk after `size` bytes."""

    def fault(exchange: Exchange) -> Iterator[Step]:
        yield exchange.whole.head(Content_Length=None, Transfer_Encoding="chunked")
        for piece in exchange.whole.pieces(size):
            yield b"%x\r\n%s\r\n" % (len(piece), piece)
        yield b"0\r\n\r\n"

    return fault


def shorter(exchange: Exchange) -> Iterator[Step]:
    """Announce and send less than the descriptor's size."""
    yield reply(200, exchange.whole.body[:-5])


def flipped(exchange: Exchange) -> Iterator[Step]:
    """Spoil the byte at FLIPPED, where the answer has it."""
    start = int(exchange.request.headers.get("range", "bytes=0-")[6:].partition("-")[0])
    body = bytearray(exchange.answer.body)
    if 0 <= FLIPPED - start < len(body):
        body[FLIPPED - start] ^= 1
    yield exchange.answer.head()
    yield bytes(body)


def content_range(text: str | None) -> Fault:
    """Answer 206 with this Content-Range, or with none."""

    def fault(exchange: Exchange) -> Iterator[Step]:
        yield exchange.answer.head(206, Content_Range=text)
        yield from exchange.answer.pieces()

    return fault


def status(code: int, **headers: str) -> Fault:
    return lambda _: [reply(code, **headers)]


def retry_after(seconds: str) -> Fault:
    return status(429, Retry_After=seconds)


def retry_at_a_date(_: Exchange) -> Iterable[Step]:
    return [reply(429, Retry_After=formatdate(time() + 3600, usegmt=True))]


def unauthorized(exchange: Exchange) -> Iterator[Step]:
    yield exchange.proxy.challenge()


def expire_after(size: int) -> Fault:
    """Reset each stream after `size` bytes, and accept no token handed out before."""

    def fault(exchange: Exchange) -> Iterator[Step]:
        yield exchange.answer.head()
        yield from exchange.answer.pieces(size)
        yield 0.05
        exchange.proxy.expire_tokens()
        raise Reset

    return fault


def silence(_: Exchange) -> Iterator[Step]:
    yield FOREVER


def silence_after(size: int) -> Fault:
    def fault(exchange: Exchange) -> Iterator[Step]:
        yield exchange.answer.head()
        yield from exchange.answer.pieces(size)
        yield FOREVER

    return fault


def paced(seconds: float) -> Fault:
    """Pause before each piece of 64 KiB."""

    def fault(exchange: Exchange) -> Iterator[Step]:
        yield exchange.answer.head()
        for piece in exchange.answer.pieces():
            yield seconds
            yield piece

    return fault


def trickle(exchange: Exchange) -> Iterator[Step]:
    """Send one byte a second."""
    yield exchange.answer.head()
    for position in count():
        yield exchange.answer.body[position : position + 1]
        yield 1.0


def redirect_loop(exchange: Exchange) -> Iterator[Step]:
    yield reply(307, Location=exchange.request.target)


def redirect_to(base: str) -> Fault:
    return lambda exchange: [reply(307, Location=base + exchange.request.target)]


def say(body: bytes) -> Fault:
    """Answer 200 with this body."""
    return lambda _: [reply(200, body)]
