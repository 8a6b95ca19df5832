"""Tells a service manager that started this process how it is: the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

_SOCKET = "NOTIFY_SOCKET"
_PATIENCE = 2.0


def notify(*states: str) -> None:
    """Send states such as `READY=1`; without a service manager, or if it is gone, do nothing."""
    address = os.environ.get(_SOCKET, "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # how Linux's abstract sockets are written
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(_PATIENCE)
        manager.sendto("\n".join(states).encode("utf-8", "replace"), os.fsencode(address))
