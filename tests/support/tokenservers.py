"""A token server without a network, for the tests of authentication."""

from __future__ import annotations

import base64
import json
import time

from epochfs.client.auth import Authenticator, CredentialStore, TokenRequest, Turn
from epochfs.client.auth.tokens import Fetch, Learn
from epochfs.config import Credentials

CHALLENGE = 'Bearer realm="https://auth.example/token",service="example",scope="repository:a:pull"'
BASIC = f"Basic {base64.b64encode(b'user:secret').decode()}"


class TokenServer:
    """Stands in for the network: answers token requests and remembers them."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers) or [{"token": "t", "expires_in": 300}]
        self.requests: list[TokenRequest] = []

    def __call__(self, request: TokenRequest) -> bytes:
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


def open_to_all() -> str:
    """A registry that asks nothing of anybody at its root."""
    return ""


def turn(scope: str, fetch: Fetch, seconds: float, learn: Learn = open_to_all) -> Turn:
    """A request for an Authorization value that may take so many seconds."""
    return Turn(scope, fetch, learn, time.monotonic() + seconds)


def authenticator(scheme: str = "https", **credentials: object) -> Authenticator:
    store = CredentialStore(Credentials(**credentials), f"{scheme}://reg.example")  # type: ignore[arg-type]
    return Authenticator(store, scheme)
