"""The causes of refusals and failures, row by row: a scene in which each of them is met."""

from __future__ import annotations

import datetime
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from epochfs.client.causes import Cause
from support import certificates
from support.registries import EmbeddedRegistry
from support.scripted import Script, ScriptedServer, Seen, Step, listening, reply

HERE = "127.0.0.1"
CHALLENGE = 'Bearer realm="{url}/token",service="s"'
SECRET = "canary-of-the-login"


@dataclass
class Scene:
    """Where a cause is at work: a registry, and the command line that meets it."""

    directory: Path
    patch: pytest.MonkeyPatch
    url: str = ""
    options: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)

    def set(self, name: str, value: str) -> None:
        """Set a variable of the environment."""
        self.patch.setenv(name, value)
        self.variables[name] = value

    @contextmanager
    def answering(self, script: Script, tls: ssl.SSLContext | None = None) -> Iterator[None]:
        """Let the registry answer so."""
        with ScriptedServer(script, tls) as server:
            self.url = server.url
            yield

    def always(self, status: int, body: bytes = b"", **headers: str) -> Script:
        """Answer so to everything; `{url}` in a header is the registry's."""
        return lambda _: [reply(status, body, **self._filled(headers))]

    def tokens(self, token: Script, error: str = "", status: int = 401) -> Script:
        """Refuse everything with a challenge, and let the token server answer so."""

        def script(seen: Seen) -> list[Step]:
            if seen.path == "/token":
                return list(token(seen))
            said = f',error="{error}"' if error and "authorization" in seen.headers else ""
            challenge = CHALLENGE.format(url=self.url) + said
            return [reply(status, WWW_Authenticate=challenge)]

        return script

    def log_in(self) -> None:
        file = self.directory / "password"
        file.write_text(SECRET)
        self.options += ["--username", "bob", "--password-file", str(file)]

    def give_token(self) -> None:
        self.set("EPOCH_REGISTRY_TOKEN", SECRET)

    def helper(self, script: str, name: str = "test") -> None:
        path = self.directory / f"docker-credential-{name}"
        if script:
            path.write_text(script)
            path.chmod(0o700)
        config = {"credHelpers": {self.url.partition("//")[2]: name}}
        (self.directory / "config.json").write_text(json.dumps(config))
        self.set("DOCKER_CONFIG", str(self.directory))
        self.patch.setenv("PATH", str(self.directory), prepend=":")

    def trust(self, authority: bytes) -> None:
        file = self.directory / "authority.pem"
        file.write_bytes(authority)
        self.options += ["--ca-cert", str(file)]

    def _filled(self, headers: dict[str, str]) -> dict[str, str]:
        return {name: value.format(url=self.url) for name, value in headers.items()}


Make = Callable[[Scene], Script]
Setting = Callable[[Scene], Iterator[None]]
SETTINGS: dict[Cause, Setting] = {}


def setting(cause: Cause) -> Callable[[Setting], Setting]:
    def register(made: Setting) -> Setting:
        assert cause not in SETTINGS
        SETTINGS[cause] = made
        return made

    return register


def answered(cause: Cause, make: Make) -> None:
    """Register a cause that is met by what a registry answers; `make` says what the user gave."""

    @setting(cause)
    def _(scene: Scene) -> Iterator[None]:
        with scene.answering(make(scene)):
            yield


def after(act: Callable[[Scene], None], make: Make) -> Make:
    """Return what makes a script once the user has done something."""

    def both(scene: Scene) -> Script:
        act(scene)
        return make(scene)

    return both


# Who asks

BASIC = {"WWW_Authenticate": 'Basic realm="x"'}
ISSUED = lambda _: [reply(200, b'{"token": "issued"}')]  # noqa: E731

answered(Cause.NO_LOGIN, lambda scene: scene.always(401, **BASIC))
answered(Cause.ANONYMOUS_REFUSED, lambda scene: scene.always(403))
answered(Cause.LOGIN_REFUSED, after(Scene.log_in, lambda scene: scene.always(401, **BASIC)))
answered(Cause.ACCOUNT_REFUSED, after(Scene.log_in, lambda scene: scene.always(403, **BASIC)))
answered(
    Cause.NO_TOKEN,
    after(Scene.log_in, lambda scene: scene.tokens(scene.always(200, b'{"token": ""}'))),
)
answered(
    Cause.GIVEN_TOKEN_REFUSED,
    after(
        Scene.give_token,
        lambda scene: scene.always(
            401,
            WWW_Authenticate=f'{CHALLENGE},error="invalid_token",error_description="expired"',
        ),
    ),
)
for cause, error in (
    (Cause.ISSUED_TOKEN_REFUSED, "invalid_token"),
    (Cause.RIGHTS_MISSING, "insufficient_scope"),
    (Cause.TOKEN_NOT_ENOUGH, ""),
):
    answered(
        cause,
        after(Scene.log_in, lambda scene, error=error: scene.tokens(ISSUED, error)),  # type: ignore[misc]
    )
answered(
    Cause.NO_COMMON_SCHEME,
    after(Scene.log_in, lambda scene: scene.always(401, WWW_Authenticate="Negotiate, Digest x=y")),
)
answered(Cause.NO_CHALLENGE, lambda scene: scene.always(401))
answered(Cause.PASSWORD_WANTED, after(Scene.give_token, lambda scene: scene.always(401, **BASIC)))


@setting(Cause.MIRROR_REFUSES)
def _(scene: Scene) -> Iterator[None]:
    with (
        scene.answering(scene.always(200, b"{}")),
        ScriptedServer(lambda _: [reply(401, **BASIC)]) as mirror,
    ):
        directory = scene.directory / "_default"
        directory.mkdir()
        (directory / "hosts.toml").write_text(f'[host."{mirror.url}"]')
        scene.options += ["--hosts-dir", str(scene.directory)]
        yield


# Credentials that cannot be had

for cause, script in {
    Cause.HELPER_ABSENT: "",
    Cause.HELPER_UNRUNNABLE: "#!/no/such/interpreter\n",
    Cause.HELPER_FAILED: f"#!/bin/sh\necho {SECRET}; exit 3\n",
    Cause.HELPER_SLOW: "#!/bin/sh\nsleep 60\n",
    Cause.HELPER_VERBOSE: f"#!/bin/sh\nyes {SECRET}\n",
    Cause.HELPER_UNINTELLIGIBLE: f"#!/bin/sh\necho {SECRET}\n",
    Cause.HELPER_EMPTY: """#!/bin/sh\necho '{"Username": "", "Secret": ""}'\n""",
    Cause.HELPER_MISNAMED: "",
}.items():

    def _helped(scene: Scene, cause: Cause = cause, script: str = script) -> Iterator[None]:
        with scene.answering(scene.always(401, **BASIC)):
            scene.patch.setattr("epochfs.client.auth.credential_helpers.TIME_LIMIT", 0.3)
            scene.helper(script, "a b; true" if cause is Cause.HELPER_MISNAMED else "test")
            yield

    setting(cause)(_helped)


# The way there


@setting(Cause.REDIRECTED)
def _(scene: Scene) -> Iterator[None]:
    scene.log_in()
    with ScriptedServer(lambda _: [reply(401, **BASIC)]) as other:
        where = f"{other.url}/v2/"
        with scene.answering(lambda _: [reply(301, Location=where)]):
            yield


def page(title: str) -> bytes:
    head = f"<html>\r\n<head><title>400 {title}</title></head>\r\n"
    return f"{head}<body><center><h1>400 Bad Request</h1></center></body></html>".encode()


PAGES = {
    Cause.HTTPS_WANTED: "The plain HTTP request was sent to HTTPS port",
    Cause.HEADER_TOO_LARGE: "Request Header Or Cookie Too Large",
    Cause.CLIENT_CERTIFICATE_MISSING: "No required SSL certificate was sent",
    Cause.CLIENT_CERTIFICATE_REFUSED: "The SSL certificate error",
}
for cause, title in PAGES.items():
    answered(cause, lambda scene, title=title: scene.always(400, page(title)))  # type: ignore[misc]

for cause, status in ((Cause.PROXY_WANTS_LOGIN, 407), (Cause.PROXY_REFUSES, 403)):

    def _proxied(scene: Scene, status: int = status) -> Iterator[None]:
        with scene.answering(scene.always(status)):
            scene.set("HTTPS_PROXY", scene.url)
            scene.url = "https://reg.example"
            yield

    setting(cause)(_proxied)


# Certificates of servers

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(1)


def certified(cause: Cause, make: Callable[[Scene], ssl.SSLContext]) -> None:
    """Register a cause that is met by the certificate a registry shows."""

    @setting(cause)
    def _(scene: Scene) -> Iterator[None]:
        with scene.answering(scene.always(200), make(scene)):
            yield


def issued(
    scene: Scene, *names: str, known: bool = True, **times: datetime.datetime
) -> ssl.SSLContext:
    authority = trustme.CA()
    scene.trust((authority if known else trustme.CA()).cert_pem.bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names or [HERE], **times).configure_cert(context)  # type: ignore[arg-type]
    return context


certified(Cause.CHAIN_INCOMPLETE, lambda scene: issued(scene, known=False))
certified(Cause.WRONG_HOST, lambda scene: issued(scene, "reg.example"))
certified(Cause.EXPIRED, lambda scene: issued(scene, not_before=NOW - 9 * DAY, not_after=NOW - DAY))
certified(Cause.NOT_YET_VALID, lambda scene: issued(scene, not_before=NOW + DAY))


@setting(Cause.AUTHORITY_UNKNOWN)
def _(scene: Scene) -> Iterator[None]:
    """The server sends all of its chain, with a root that nobody here knows."""
    authority = trustme.CA()
    leaf = authority.issue_cert(HERE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain = leaf.private_key_and_cert_chain_pem.bytes() + authority.cert_pem.bytes()
    (scene.directory / "chain.pem").write_bytes(chain)
    context.load_cert_chain(scene.directory / "chain.pem")
    scene.trust(trustme.CA().cert_pem.bytes())
    with scene.answering(scene.always(200), context):
        yield


@setting(Cause.SELF_SIGNED)
def _(scene: Scene) -> Iterator[None]:
    scene.trust(trustme.CA().cert_pem.bytes())
    context = certificates.served(certificates.self_signed(HERE), scene.directory)
    with scene.answering(scene.always(200), context):
        yield


@setting(Cause.NO_NAMES)
def _(scene: Scene) -> Iterator[None]:
    root = certificates.authority()
    scene.trust(root.pem)
    context = certificates.served(certificates.without_names(HERE, root), scene.directory)
    with scene.answering(scene.always(200), context):
        yield


for cause, alert in ((Cause.TLS_VERSION, 70), (Cause.TLS_REFUSED, 80)):

    def _alerted(scene: Scene, alert: int = alert) -> Iterator[None]:
        """The server answers the first message with a fatal alert (RFC 8446, section 6)."""

        def answer(connection: socket.socket) -> None:
            connection.recv(4096)
            connection.sendall(b"\x15\x03\x03\x00\x02\x02" + bytes([alert]))

        with listening(answer) as port:
            scene.url = f"https://{HERE}:{port}"
            yield

    setting(cause)(_alerted)


@setting(Cause.NO_TLS)
def _(scene: Scene) -> Iterator[None]:
    with EmbeddedRegistry() as registry:
        scene.url = f"https://{registry.host}"
        yield


# The token server

for cause, answer in {
    Cause.TOKEN_SERVER_FAILS: reply(500),
    Cause.TOKEN_SERVER_LIMITS: reply(429, Retry_After="3600"),
    Cause.TOKEN_SERVER_REFUSES_LOGIN: reply(401),
    Cause.TOKEN_SERVER_REFUSES_REQUEST: reply(400, b'{"details": "unknown service"}'),
    Cause.TOKEN_SERVER_UNINTELLIGIBLE: reply(200, b"<html>"),
}.items():
    answered(
        cause,
        after(Scene.log_in, lambda scene, answer=answer: scene.tokens(lambda _: [answer])),  # type: ignore[misc]
    )
for cause, realm in (
    (Cause.TOKEN_SERVER_DOWN, "http://127.0.0.1:1/token"),
    (Cause.TOKEN_SERVER_DOUBTFUL, "http://169.254.169.254/token"),
):
    answered(
        cause,
        lambda scene, realm=realm: scene.always(401, WWW_Authenticate=f'Bearer realm="{realm}"'),  # type: ignore[misc]
    )


@setting(Cause.TOKEN_SERVER_REDIRECTS)
def _(scene: Scene) -> Iterator[None]:
    scene.log_in()
    with ScriptedServer(lambda _: [reply(401, **BASIC)]) as other:
        where = f"{other.url}/token"
        with scene.answering(scene.tokens(lambda _: [reply(307, Location=where)])):
            yield


# The registry

answered(Cause.LIMITS, lambda scene: scene.always(429, Retry_After="3600"))
answered(Cause.FAILS, lambda scene: scene.always(503))
answered(Cause.NO_REGISTRY, lambda scene: scene.always(400))


@setting(Cause.UNREACHED)
def _(scene: Scene) -> Iterator[None]:
    scene.url = "http://127.0.0.1:1"
    yield
