"""The embedded registry as tests use it: it logs its requests, and may answer as a test says."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from epochfs.demo import registry
from epochfs.demo.registry import Request, Response


class EmbeddedRegistry(registry.EmbeddedRegistry):
    """The embedded registry, with a log of all its requests and the means to revoke its tokens."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._log_lock = threading.Lock()
        self._log: deque[Request] = deque(maxlen=100_000)
        answer = self.respond

        def logged(request: Request) -> Response:
            with self._log_lock:
                self._log.append(replace(request, body=b""))
            return answer(request)

        self.respond = logged

    @property
    def requests(self) -> list[Request]:
        """The requests so far, oldest first and without their bodies."""
        with self._log_lock:
            return list(self._log)

    def count(self, method: str = "", containing: str = "") -> int:
        """Return how many requests had this method (any if empty) and this text in their path."""
        return sum(
            method in ("", request.method) and containing in request.path
            for request in self.requests
        )

    def forget_requests(self) -> None:
        """Empty the request log."""
        with self._log_lock:
            self._log.clear()

    def revoke_tokens(self) -> None:
        """Let every token that was handed out expire."""
        self._access.tokens.clear()


class Answering(EmbeddedRegistry):
    """Answers some paths with what a test says, as JSON text or as a status."""

    def __init__(self, answers: dict[str, str | int]) -> None:
        super().__init__()
        self.answers = answers

    def respond(self, request: Request) -> Response:
        answer = self.answers.get(request.path)
        if answer is None:
            return super().respond(request)
        if isinstance(answer, int):
            return Response(answer)
        return Response(200, {"Content-Type": "application/json"}, answer.encode())


class Guarded(EmbeddedRegistry):
    """A registry that answers first what a test says, where that says anything."""

    guard: Callable[[Request], Response | None] = staticmethod(lambda _: None)

    def respond(self, request: Request) -> Response:
        return self.guard(request) or self.honest(request)

    def honest(self, request: Request) -> Response:
        """Return what it would answer if the test said nothing."""
        return super().respond(request)
