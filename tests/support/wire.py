"""Requests to a registry over plain `http.client`, with nothing of ours in between."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass

from support.registries import EmbeddedRegistry


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def code(self) -> str:
        """The specification's error code in the body."""
        code: str = json.loads(self.body)["errors"][0]["code"]
        return code


def ask(
    registry: EmbeddedRegistry,
    method: str,
    path: str,
    body: bytes | Iterator[bytes] | None = None,
    **headers: str,
) -> Answer:
    """Send one request over a connection of its own; `_` in a header's name stands for `-`."""
    connection = http.client.HTTPConnection(registry.host, timeout=10)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def pages(registry: EmbeddedRegistry, path: str, key: str) -> list[list[str]]:
    """Return all pages of a listing, following Link."""
    found = []
    while path:
        answer = ask(registry, "GET", path)
        found.append(json.loads(answer.body)[key])
        path, _, relation = answer.headers.get("Link", "").partition(";")
        assert relation.strip() in ("", 'rel="next"')
        path = path.strip("<>")
    return found
