"""Times as the specifications write them (RFC 3339)."""

from __future__ import annotations

from datetime import UTC, datetime

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time_ns(text: str) -> int:
    """Return a time in epoch nanoseconds. Raises ValueError if it is none or names no time zone."""
    seconds, dot, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    moment = datetime.fromisoformat(seconds + rest[len(digits) :])
    if moment.tzinfo is None:
        raise ValueError("a time without its offset from UTC")
    elapsed = moment - _EPOCH
    fraction = int(digits[:9].ljust(9, "0")) if dot else 0
    return (elapsed.days * 86400 + elapsed.seconds) * 10**9 + fraction
