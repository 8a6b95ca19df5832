"""A TCP proxy that is a slow or distant link: so many bytes a second per connection, and a delay.

A program of its own, so that it does not share an interpreter with what it slows down::

    python -m scripts.benchmark.shaper LISTEN_PORT TARGET_PORT BYTES_PER_SECOND ROUND_TRIP_SECONDS

Each connection has its own rate from its first byte to its last, however many requests it carries
(nginx's `limit_rate` begins anew with each request, and grants the first second's bytes at once).
Every byte is half a round trip under way, in both directions. Connecting takes a round trip too,
which a proxy cannot delay, so the client's first bytes wait for it. There is no slow start.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import dataclass

_CHUNK = 64 * 1024
_CHUNKS_UNDER_WAY = 64


@dataclass(frozen=True, slots=True)
class Link:
    """What every connection goes through: bytes a second towards the client, seconds there."""

    target: int
    rate: float
    round_trip: float

    async def carry(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side has closed it."""
        loop = asyncio.get_running_loop()
        connected = loop.time() + self.round_trip
        with suppress(OSError):
            server, request = await asyncio.open_connection("127.0.0.1", self.target, limit=_CHUNK)
            try:
                ways = {
                    asyncio.ensure_future(self._shape(client, request, connected, float("inf"))),
                    asyncio.ensure_future(self._shape(server, answer, 0.0, self.rate)),
                }
                _, unfinished = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in unfinished:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            finally:
                request.close()
        answer.close()

    async def _shape(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        free: float,
        rate: float,
    ) -> None:
        """Pass bytes on, each when its turn has come; `free` is when the line first is."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_UNDER_WAY)
        delivery = asyncio.ensure_future(_deliver(under_way, sink))
        loop = asyncio.get_running_loop()
        try:
            while data := await source.read(_CHUNK):
                free = max(free, loop.time()) + len(data) / rate
                await under_way.put((free + self.round_trip / 2, data))
            await under_way.put((loop.time() + self.round_trip / 2, b""))
            await delivery
        finally:
            delivery.cancel()


async def _deliver(
    under_way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due, data = await under_way.get()
        if not data:
            return
        wait = due - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        sink.write(data)
        await sink.drain()


async def _serve(port: int, link: Link) -> None:
    server = await asyncio.start_server(link.carry, "127.0.0.1", port, limit=_CHUNK, backlog=256)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Run until killed."""
    port, target, rate, round_trip = sys.argv[1:]
    asyncio.run(_serve(int(port), Link(int(target), float(rate), float(round_trip))))


if __name__ == "__main__":
    main()
