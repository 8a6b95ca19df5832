"""Who may do what: Basic and Bearer authentication, and the token server.

Source: Docker's "Token Authentication Specification", which the OCI specification leaves to
registries; Epoch's token endpoint is `/v2/token`, so this one is too.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from urllib.parse import parse_qsl

from epochfs.demo.registry.behaviour import Behaviour
from epochfs.demo.registry.messages import OciError, Request, Response, json_response, text_response

TOKEN_PATH = "/v2/token"
TOKEN_SECONDS = 300

_REPOSITORY = re.compile(r"/v2/(?P<name>.+)/(?:manifests|blobs|tags|referrers)/", re.DOTALL)


class Access:
    """Lets requests pass or refuses them, by the behaviour and one pair of credentials.

    Tokens are kept in a set whose single operations are atomic, so there is no lock.
    """

    def __init__(self, behaviour: Behaviour, username: str, password: str, scheme: str) -> None:
        self._behaviour = behaviour
        self._username = username
        self._password = password
        self._scheme = scheme
        self._tokens: set[str] = set()

    def check(self, request: Request) -> None:
        """Raise OciError 401 with a challenge, unless the request may pass."""
        if not self._behaviour.auth or self._open_to_all(request) or self._authorized(request):
            return
        raise OciError(
            401,
            "UNAUTHORIZED",
            "authentication required",
            WWW_Authenticate=self._challenge(request),
        )

    def _open_to_all(self, request: Request) -> bool:
        if request.path.rstrip("/") == "/v2":
            return False
        return request.method in ("GET", "HEAD") and self._behaviour.anonymous_reads

    def _authorized(self, request: Request) -> bool:
        if self._behaviour.auth == "basic":
            return self._knows(request)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return False
        # Epoch's users send the registry token, which is the password here, without an exchange.
        return token in self._tokens or _equal(token, self._password)

    def _challenge(self, request: Request) -> str:
        if self._behaviour.auth == "basic":
            return 'Basic realm="epochfs"'
        realm = f"{self._scheme}://{request.headers.get('host', '')}{TOKEN_PATH}"
        challenge = f'Bearer realm="{realm}",service="epochfs"'
        match = _REPOSITORY.match(request.path)
        if match and self._behaviour.scopes:
            actions = "pull" if request.method in ("GET", "HEAD") else "pull,push"
            challenge += f',scope="repository:{match["name"]}:{actions}"'
        return challenge

    def token(self, request: Request) -> Response:
        """Answer a request to the token server: to anyone, if no credentials were configured."""
        if self._behaviour.empty_token:
            return self._echoed(request)
        if not self._knows(request):
            raise OciError(
                401, "UNAUTHORIZED", "wrong credentials", WWW_Authenticate='Basic realm="epochfs"'
            )
        token = secrets.token_hex(16)
        self._tokens.add(token)
        return _token_response(token)

    def _echoed(self, request: Request) -> Response:
        """Answer as Epoch's `/v2/token`: the token is the password, whoever has it."""
        form = dict(parse_qsl(request.body.decode(errors="replace")))
        given = {**request.query, **form}
        password = _basic(request).partition(":")[2]
        candidate = password or given.get("password", "") or given.get("refresh_token", "")
        if candidate and not _equal(candidate, self._password):
            return text_response(401, "invalid credentials\n")
        return _token_response(candidate)

    def revoke_tokens(self) -> None:
        """Let every token that was handed out be expired."""
        self._tokens.clear()

    def _knows(self, request: Request) -> bool:
        """Whether the request carries the configured credentials in Basic form."""
        if not self._username and not self._password:
            return True
        return _equal(_basic(request), f"{self._username}:{self._password}")


def _basic(request: Request) -> str:
    """Return the `user:password` of Basic credentials; empty for none, or for nonsense."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _equal(given: str, wanted: str) -> bool:
    return bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())


def _token_response(token: str) -> Response:
    return json_response({"token": token, "access_token": token, "expires_in": TOKEN_SECONDS})
