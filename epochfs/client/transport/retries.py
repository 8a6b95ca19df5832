"""When another attempt is made, and how long after the last."""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime

UNREACHED_SECONDS = 1.0
"""For how long connecting is tried again. A server that restarts is back in a moment; for one that
is not there, whoever waits should soon be told."""

UNREACHED_DELAY = 0.2
"""Seconds between two attempts at connecting."""

_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0


def backoff(attempt: int) -> float:
    """Return the seconds to wait after attempt 0, 1, …: exponential, with jitter, at most 5."""
    return float(
        min(_FIRST_DELAY * 2 ** min(attempt, 10), _LONGEST_DELAY) * random.uniform(0.5, 1.0)
    )


def retry_after(header: str) -> float:
    """Return the seconds a Retry-After header asks for (RFC 9110, 10.2.3); 0 if it says nothing."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:18])
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError, TypeError):
        return 0.0
