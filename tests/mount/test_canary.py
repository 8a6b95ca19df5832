"""A canary in place of each kind of credential: used by a real mount, and sighted nowhere."""

from __future__ import annotations

import json
import re
import secrets
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from support import builders
from support.mounts import Mount, Mounts
from support.registries import EmbeddedRegistry

from epochfs.demo.registry import Behaviour, Request, Response

USER = "canary-owner"
NAME = "library/app"
ECHO = f"sha256:{0:064}"
"""A manifest that is denied, with all that was sent to get it."""

SOURCES = (
    "password file",
    "token file",
    "variable",
    "config.json",
    "auth.json by path",
    "helper",
    "store",
    "identity token",
)
BEARER_ONLY = {"token file", "variable", "identity token"}
CASES = [
    (source, auth)
    for source in SOURCES
    for auth in ("basic", "bearer")
    if auth == "bearer" or source not in BEARER_ONLY
]


class Storage(EmbeddedRegistry):
    """Another host, where the blobs are. It keeps a log of what it is sent, as any host may."""


class Registry(EmbeddedRegistry):
    """Redirects blobs to storage, takes an identity token, and sends credentials back in errors."""

    def __init__(self, auth: str, password: str, storage: Storage, identity_token: str) -> None:
        super().__init__(Behaviour(auth=auth), username=USER, password=password)  # type: ignore[arg-type]
        self.basic = f"Basic {encoded(password)}"
        self.storage = storage
        self.identity_token = identity_token
        self.issued: set[str] = set()

    def respond(self, request: Request) -> Response:
        sent = request.headers.get("authorization")
        if sent and request.path.endswith(ECHO):
            message = f"you sent {sent}"
            body = json.dumps({"errors": [{"code": "DENIED", "message": message}]})
            return Response(403, {}, body.encode())
        if request.path == "/v2/token" and request.method == "POST":
            form = parse_qs(request.body.decode())
            if form.get("refresh_token") == [self.identity_token]:
                request = replace(request, headers={**request.headers, "authorization": self.basic})
        response = super().respond(request)
        if request.path == "/v2/token" and response.status == 200:
            self.issued.add(json.loads(bytes(response.body))["token"])  # type: ignore[arg-type]
        if "/blobs/" in request.path and response.status in (200, 206):
            return Response(307, {"Location": f"{self.storage.url}{request.path}?signature=x"})
        return response


def encoded(password: str) -> str:
    return b64encode(f"{USER}:{password}".encode()).decode()


@dataclass
class Given:
    """Puts a secret where a source of credentials has it: options, variables, files."""

    directory: Path
    host: str
    secret: str

    def __post_init__(self) -> None:
        self.options: list[str] = []
        self.variables = {
            "HOME": str(self.directory),
            "XDG_RUNTIME_DIR": str(self.directory / "run"),
            "DOCKER_CONFIG": str(self.directory / "docker"),
        }
        self.pair = encoded(self.secret)

    def by(self, source: str) -> None:
        if source == "password file":
            file = self.write("password", self.secret)
            self.options += ["--username", USER, "--password-file", str(file)]
        elif source == "token file":
            self.options += ["--token-file", str(self.write("token", self.secret))]
        elif source == "variable":
            self.variables["EPOCH_REGISTRY_TOKEN"] = self.secret
        elif source == "config.json":
            self.config(auths={self.host: {"auth": self.pair}})
        elif source == "auth.json by path":
            content = {"auths": {f"{self.host}/{NAME}": {"auth": self.pair}}}
            self.write("run/containers/auth.json", json.dumps(content))
        elif source == "identity token":
            self.config(auths={self.host: {"identitytoken": self.secret}})
        else:
            self.helper()
            named = {"credHelpers": {self.host: "canary"}, "credsStore": "none"}
            self.config(**named if source == "helper" else {"credsStore": "canary"})

    def config(self, **content: object) -> None:
        self.write("docker/config.json", json.dumps(content))

    def helper(self) -> None:
        answer = json.dumps({"Username": USER, "Secret": self.secret})
        script = f"cat /proc/$$/environ /proc/$$/cmdline > {self.seen_of_helper}; echo '{answer}'"
        self.write("bin/docker-credential-canary", f"#!/bin/sh\n{script}\n").chmod(0o700)
        self.variables["PATH"] = f"{self.directory / 'bin'}:/usr/bin:/bin"

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    @property
    def seen_of_helper(self) -> Path:
        return self.directory / "seen-of-helper"


@pytest.mark.expects_log(r"EACCES: .*you sent (Basic|Bearer) \*\*\*")
@pytest.mark.parametrize(("source", "auth"), CASES, ids=[f"{s}, {a}" for s, a in CASES])
def test_no_credential_is_sighted(source: str, auth: str, mounts: Mounts, tmp_path: Path) -> None:
    canary = f"canary{secrets.token_hex(16)}"
    password = secrets.token_hex(16) if source == "identity token" else canary
    content = builders.image(builders.random_bytes(300_000))
    with (
        Storage(host="127.0.0.2") as storage,
        Registry(auth, password, storage, canary) as registry,
    ):
        for host in (registry, storage):
            builders.load(host, NAME, "latest", content)
        given = Given(tmp_path / "given", registry.host, canary)
        given.by(source)
        options = ["--log-level", "debug", "--repo", NAME, *given.options]
        mount = mounts(registry.url, *options, environment=given.variables)
        layers = mount.path / NAME / "tags/latest/layers"
        assert (layers / "00").read_bytes() == content.blobs[1]
        with pytest.raises(PermissionError):
            (mount.path / NAME / "manifests" / ECHO / "manifest.json").read_bytes()
        spoken = {canary, given.pair, registry.basic.partition(" ")[2], *registry.issued}
        used = [one.headers.get("authorization", "").partition(" ")[2] for one in registry.requests]
        assert spoken & set(used)
        assert storage.count("GET", "/blobs/") > 0
        sightings = [
            f"{place}: {secret}"
            for place, text in places(mount, storage, given.seen_of_helper, tmp_path / "cache")
            for secret in spoken
            if secret.encode() in text
        ]
    assert sightings == []
    assert (source in ("helper", "store")) == given.seen_of_helper.exists()


def places(
    mount: Mount, storage: Storage, seen_of_helper: Path, cache: Path
) -> Iterator[tuple[str, bytes]]:
    """Yield every place a credential might have got to, and what is there."""
    yield "argv", Path(f"/proc/{mount.process.pid}/cmdline").read_bytes()
    yield "mount table", Path("/proc/self/mountinfo").read_bytes()
    yield "status", (mount.path / ".epochfs/status.json").read_bytes()
    mount.unmount()
    log = mount.log.read_bytes()
    assert re.search(rb"DEBUG .*/blobs/.*307", log)
    assert b"you sent B" in log
    yield "log", log
    yield "output", mount.output.read_bytes()
    yield "foreign host", repr(storage.requests).encode()
    if seen_of_helper.exists():
        yield "helper", seen_of_helper.read_bytes()
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        yield str(path), str(path).encode() + path.read_bytes()
