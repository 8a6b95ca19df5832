"""HTTP messages as values, the specification's error body, and what joins paths to endpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `path` is percent-decoded and without its query; header names are lower case."""

    method: str
    path: str
    parameters: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def query(self) -> Mapping[str, str]:
        """The parameters of the query; of one that is given twice, the last."""
        return dict(self.parameters)

    def every(self, parameter: str) -> list[str]:
        """Return all values that the query has for a parameter, in its order."""
        return [value for name, value in self.parameters if name == parameter]


@dataclass(frozen=True, slots=True)
class Response:
    """One answer.

    A body of bytes is sent with its Content-Length (unless `headers` names another one) and the
    connection stays open. A body that is any other iterable is sent piece by piece under `headers`
    alone, and then the connection is closed; if it raises ConnectionResetError, it is reset.
    To a HEAD request the body is counted but not sent.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview | Iterable[bytes] = b""

    def having(self, **headers: str) -> Response:
        """Return a copy with these headers set; `_` in a name stands for `-`."""
        changes = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, headers={**self.without(*changes).headers, **changes})

    def without(self, *names: str) -> Response:
        """Return a copy that lacks the named headers, whatever their case."""
        dropped = {name.lower() for name in names}
        kept = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        return replace(self, headers=kept)


def text_response(status: int, text: str = "") -> Response:
    """Return an answer as a web server makes it, without an error of the specification."""
    return Response(status, {"Content-Type": "text/plain; charset=utf-8"}, text.encode())


def json_response(document: object, media_type: str = "application/json") -> Response:
    """Return a 200 whose body is `document` in JSON."""
    return Response(200, {"Content-Type": media_type}, json.dumps(document).encode())


class OciError(Exception):
    """A request that is answered by an error body (specification, "Error codes")."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers

    def response(self) -> Response:
        """Return the error as the answer it stands for."""
        document: dict[str, Any] = {"errors": [{"code": self.code, "message": str(self)}]}
        return replace(json_response(document), status=self.status).having(**self.headers)


Endpoint = Callable[[Request, str, str], Response]
"""Answers a request on a repository name and a reference; each is "" where the path has none."""


class Route:
    """A pattern of paths, with two groups (name, reference), and the endpoint of each method."""

    def __init__(self, pattern: str, **endpoints: Endpoint | None) -> None:
        self.pattern = re.compile(pattern, re.DOTALL)
        self.endpoints = {method: found for method, found in endpoints.items() if found}
