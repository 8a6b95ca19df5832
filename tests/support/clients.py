"""A client of a scripted server, for the tests of the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

from epochfs.client import RegistryClient
from epochfs.config import TransportOptions
from support.scripted import Script, ScriptedServer

Connect = Callable[..., tuple[ScriptedServer, RegistryClient]]


def connecting() -> Iterator[Connect]:
    """A fixture: starts scripted servers, each with a client of the given options of it."""
    with ExitStack() as opened:

        def start(script: Script, **options: object) -> tuple[ScriptedServer, RegistryClient]:
            server = opened.enter_context(ScriptedServer(script))
            settings = {"options": TransportOptions(timeout=5.0, retries=1), **options}
            client = RegistryClient(server.url, **settings)  # type: ignore[arg-type]
            opened.enter_context(closing(client))
            return server, client

        yield start
