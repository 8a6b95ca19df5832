"""Rows: slow and distant links, and how soon the first byte comes.

Two kinds of slow link, 20 MB/s for each connection. nginx's `limit_rate` is what such servers use;
it counts each request by itself and lets the first second's bytes pass at once, so that a reader
who makes many small requests hardly meets it. The `shaper` holds each connection to the rate for
as long as it lives.
"""

from __future__ import annotations

from scripts.benchmark.content import Blob
from scripts.benchmark.lab import Lab
from scripts.benchmark.programs import timed
from scripts.benchmark.rows import FEW_RUNS, Samples, race, row, speed_at_least, time_at_most

_REGISTRY = "docker-registry"


@row(
    "slow-nginx",
    "256 MiB cold, 20 MB/s (nginx limit_rate)",
    speed_at_least(5.0),
    "curl -o",
    (_REGISTRY, "nginx", "curl"),
    FEW_RUNS,
)
def _slow_nginx(lab: Lab) -> Samples:
    return _whole(lab, lab.front.limited)


@row(
    "slow-link",
    "256 MiB cold, 20 MB/s a connection",
    speed_at_least(5.0),
    "curl -o",
    (_REGISTRY, "curl"),
    FEW_RUNS,
)
def _slow_link(lab: Lab) -> Samples:
    return _whole(lab, lab.slow_link)


@row(
    "distant-link",
    "256 MiB cold, 20 MB/s a connection, 40 ms",
    speed_at_least(4.0),
    "curl -o",
    (_REGISTRY, "curl"),
    FEW_RUNS,
)
def _distant_link(lab: Lab) -> Samples:
    return _whole(lab, lab.distant_link)


def _whole(lab: Lab, url: str) -> Samples:
    blob = lab.medium
    return race(lambda: lab.cold_cat(url, blob), lambda: lab.curl(url, blob))


@row(
    "first-byte",
    "first byte of 1 GiB cold, Range",
    time_at_most(3.0),
    "curl -r 0-0",
    (_REGISTRY, "curl"),
)
def _first_byte(lab: Lab) -> Samples:
    return _first(lab, lab.registry.url, lab.big)


@row(
    "first-byte-rangeless",
    "first byte of 1 GiB cold, no Range",
    time_at_most(3.0),
    "curl -r 0-0",
    (_REGISTRY, "nginx", "curl"),
)
def _first_byte_rangeless(lab: Lab) -> Samples:
    return _first(lab, lab.front.rangeless, lab.big)


def _first(lab: Lab, url: str, blob: Blob) -> Samples:
    """Race `head -c1` on the mount with curl piped into it, until both have ended.

    Where Range is ignored curl would go on to the blob's end; the pipe that closes stops it.
    """

    def ours() -> float:
        with lab.epochfs(url) as mount:
            return timed("head", "-c1", mount.blob(blob))

    def curl() -> float:
        return timed("sh", "-c", 'curl -s -r 0-0 "$0" | head -c1', blob.url(url))

    return race(ours, curl)


ROWS = (_slow_nginx, _slow_link, _distant_link, _first_byte, _first_byte_rangeless)
