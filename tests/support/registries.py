"""Registries that answer as a test says."""

from __future__ import annotations

from epochfs.demo.registry import EmbeddedRegistry, Request, Response


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
