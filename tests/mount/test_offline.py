"""The registry goes away and comes back: real mounts, a real registry that is stopped and started.

And whom the cache serves meanwhile: a mount with other credentials gets nothing from it.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest
from conftest import DockerRegistry, Skopeo, serve_docker_registry
from support.builders import image, load, random_bytes
from support.commandline import run
from support.mounts import Mounts, names_in, status
from support.registries import EmbeddedRegistry
from support.scripted import until

from epochfs.config import (
    BlobOptions,
    CacheOptions,
    Credentials,
    ListingOptions,
    RegistryUrl,
    TransportOptions,
)
from epochfs.demo.http_server import OciError
from epochfs.demo.registry import Behaviour, Request, Response
from epochfs.oci.names import Digest
from epochfs.oci.platforms import Platform
from epochfs.session import Connection, SessionSettings, opening

CONTENT = image(random_bytes(1 << 20, 1), random_bytes(4096, 2))
HEAL_SECONDS = 10.0
QUICK = ("--metadata-ttl=0.3", "--timeout=10")
DOWN = "WARNING epochfs.metadata.health: registry .* is down"


@dataclass
class Switched:
    """A docker-registry that is switched on and off, on one port and with all it stores."""

    directory: Path
    port: int = 0
    host: str = ""
    _running: ExitStack = field(default_factory=ExitStack)

    def start(self) -> DockerRegistry:
        registry = self._running.enter_context(serve_docker_registry(self.directory, self.port))
        self.host, self.port = registry.host, int(registry.host.rpartition(":")[2])
        return registry

    def stop(self) -> None:
        self._running.close()

    @property
    def url(self) -> str:
        return f"http://{self.host}"


@pytest.fixture
def registry(tmp_path: Path, skopeo: Skopeo) -> Iterator[Switched]:
    (tmp_path / "registry").mkdir()
    switched = Switched(tmp_path / "registry")
    switched.start()
    skopeo.push(CONTENT, switched.host, "team/app")
    yield switched
    switched.stop()


def walked(root: Path) -> dict[str, bytes | str]:
    """All names below a mount, with what the files hold and where the links point."""
    found: dict[str, bytes | str] = {}

    def fail(error: OSError) -> NoReturn:
        raise error

    for directory, names, files in os.walk(root, onerror=fail):
        for name in (*names, *files):
            path = Path(directory) / name
            shown = str(path.relative_to(root))
            if path.is_symlink():
                found[shown] = str(path.readlink())
            elif path.is_file():
                found[shown] = path.read_bytes()
    return found


@pytest.mark.expects_log(DOWN)
def test_an_outage_is_survived_seen_and_ends_without_a_remount(
    mounts: Mounts, registry: Switched, skopeo: Skopeo
) -> None:
    mount = mounts(registry.url, *QUICK)
    before = walked(mount.path)
    layout = [path for path in before if "/layout/" in path]
    assert (len(before) - len(layout), len(layout)) == (8, 6)
    assert status(mount.path)["health"] == {
        "up": True,
        "down_since": None,
        "reason": "",
        "recalled": 0,
    }
    registry.stop()
    stopped = time.time()
    time.sleep(0.4)  # nothing is current any more
    assert walked(mount.path) == before
    until(lambda: not status(mount.path)["health"]["up"], HEAL_SECONDS)
    health = status(mount.path)["health"]
    assert stopped - 1 < health["down_since"] < time.time()
    assert "refused" in health["reason"]
    assert health["recalled"] > 0
    assert walked(mount.path) == before

    registry.start()
    skopeo.push(CONTENT, registry.host, "team/app", "new")
    until(lambda: "new" in names_in(mount.path / "team/app/tags"), HEAL_SECONDS)
    assert status(mount.path)["health"]["up"]


@pytest.mark.expects_log("epochfs.fuse.operations: getattr /team/app/tags/never-seen: EIO")
@pytest.mark.expects_log(DOWN)
def test_offline_ok_mounts_what_was_cached_and_heals(
    mounts: Mounts, registry: Switched, skopeo: Skopeo
) -> None:
    mount = mounts(registry.url, *QUICK)
    before = walked(mount.path)
    mount.unmount()
    registry.stop()

    code, _, errors = run("mount", "--timeout=2", registry.url, mount.path)
    assert code == 1
    assert f"registry {registry.url} cannot be reached" in errors

    mount = mounts(registry.url, *QUICK, "--offline-ok")
    assert walked(mount.path) == before
    assert not status(mount.path)["health"]["up"]
    layer = f"team/app/blobs/{Digest.of(CONTENT.blobs[0])}"
    assert (mount.path / layer).read_bytes() == CONTENT.blobs[0]
    with pytest.raises(OSError, match="Input/output error"):
        (mount.path / "team/app/tags/never-seen").lstat()

    registry.start()
    skopeo.push(CONTENT, registry.host, "team/app", "new")
    until(lambda: "new" in names_in(mount.path / "team/app/tags"), HEAL_SECONDS)
    assert status(mount.path)["health"]["up"]


# --- the cache as a boundary ------------------------------------------------------------------

USERS = {"alice": "team/a", "bob": "team/b"}
"""Who may read what."""


class Separate(EmbeddedRegistry):
    """Lets each user read one repository, and everyone ask whether it is there."""

    def respond(self, request: Request) -> Response:
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        name = base64.b64decode(encoded).decode().partition(":")[0] if scheme == "Basic" else ""
        if name not in USERS:
            challenge = 'Basic realm="separate"'
            return OciError(401, "UNAUTHORIZED", "who?", WWW_Authenticate=challenge).response()
        if request.path not in ("/v2/", "/v2/_catalog"):
            repository = request.path.removeprefix("/v2/")
            if not repository.startswith(f"{USERS[name]}/"):
                return OciError(403, "DENIED", "not yours").response()
        return super().respond(request)


@pytest.fixture
def separate() -> Iterator[Separate]:
    with Separate() as registry:
        load(registry, "team/a", "latest", CONTENT)
        load(registry, "team/b", "latest", image(b"of bob"))
        yield registry


@pytest.fixture
def login(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Options that log a user in."""
    (tmp_path / "password").write_text("canary-password")
    return lambda name: (f"--username={name}", f"--password-file={tmp_path / 'password'}")


@pytest.mark.expects_log("epochfs.fuse.operations: .*: EACCES")
@pytest.mark.expects_log("epochfs.fuse.operations: .*: EIO")
@pytest.mark.expects_log(DOWN)
def test_one_users_cached_blob_is_nothing_to_another(
    mounts: Mounts, separate: Separate, login: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    blob = f"blobs/{Digest.of(CONTENT.blobs[1])}"
    alice = mounts(separate.url, *QUICK, *login("alice"))
    manifest = f"manifests/{CONTENT.digest}/manifest.json"
    assert (alice.path / "team/a" / blob).read_bytes() == CONTENT.blobs[1]
    assert (alice.path / "team/a" / manifest).read_bytes() == CONTENT.raw
    assert (alice.path / "team/a/tags/latest/layers/00").read_bytes() == CONTENT.blobs[1]

    bob = mounts(separate.url, *QUICK, *login("bob"))
    assert (bob.path / "team/b/tags/latest/layers/00").read_bytes() == b"of bob"
    for path in (f"team/a/{blob}", f"team/a/{manifest}", "team/a/tags/latest"):
        with pytest.raises(PermissionError):
            (bob.path / path).stat()
    # His own repository does not have it, and does not get it from the cache.
    with pytest.raises(FileNotFoundError):
        (bob.path / "team/b" / blob).read_bytes()

    bob.unmount()
    alice.unmount()
    separate.stop()
    bob = mounts(separate.url, *QUICK, "--offline-ok", *login("bob"))
    assert (bob.path / "team/b/tags/latest/layers/00").read_bytes() == b"of bob"
    for path in (f"team/a/{blob}", f"team/a/{manifest}", f"team/b/{blob}"):
        with pytest.raises(OSError, match="Input/output error"):
            (bob.path / path).read_bytes()
    alice = mounts(separate.url, *QUICK, "--offline-ok", *login("alice"))
    assert (alice.path / "team/a" / blob).read_bytes() == CONTENT.blobs[1]

    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(left) > 3
    for path in (*left, alice.log, bob.log):
        assert b"canary" not in path.read_bytes()
    assert "canary" not in (alice.path / ".epochfs/status.json").read_text()


@pytest.mark.expects_log("neither kept nor served: docker-credential-test, .* failed")
@pytest.mark.expects_log("no credentials for")
@pytest.mark.expects_log("epochfs.fuse.operations: .*: EIO")
@pytest.mark.expects_log(DOWN)
def test_while_a_helper_does_not_say_who_this_is_nothing_is_served(
    mounts: Mounts, separate: Separate, tmp_path: Path
) -> None:
    host = separate.url.removeprefix("http://")
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {host: "test"}}))
    helper = tmp_path / "docker-credential-test"
    helper.touch(0o700)
    environment = {
        "DOCKER_CONFIG": str(tmp_path),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }

    def mounted(script: str) -> Path:
        helper.write_text(f"#!/bin/sh\n{script}\n")
        mount = mounts(separate.url, *QUICK, "--offline-ok", environment=environment)
        return mount.path / f"team/a/blobs/{Digest.of(CONTENT.blobs[1])}"

    says_alice = """echo '{"Username": "alice", "Secret": "canary"}'"""
    assert mounted(says_alice).read_bytes() == CONTENT.blobs[1]
    separate.stop()
    assert mounted(says_alice).read_bytes() == CONTENT.blobs[1]
    for script in ("exit 3", says_alice.replace("canary", "another"), says_alice.replace("al", "")):
        with pytest.raises(OSError, match="Input/output error"):
            mounted(script).read_bytes()


@pytest.mark.expects_log("epochfs.fuse.operations: .*: (EACCES|EIO)")
@pytest.mark.expects_log(DOWN)
def test_a_mount_whose_token_is_rotated_serves_what_it_has_proved_until_that_is_refused(
    mounts: Mounts, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    behaviour = Behaviour(auth="bearer")
    with EmbeddedRegistry(behaviour, username="me", password="first") as registry:
        load(registry, "team/app", "latest", CONTENT)
        mount = mounts(registry.url, *QUICK, f"--token-file={token}")
        before = walked(mount.path)
        registry.stop()
        token.write_text("second")
        time.sleep(0.4)
        assert walked(mount.path) == before
        other = mounts(registry.url, *QUICK, "--offline-ok", f"--token-file={token}")
        assert fails(other.path / "team/app/tags")

        registry.start()
        until(lambda: fails(mount.path / "team/app/tags"), HEAL_SECONDS)
        registry.stop()
        assert fails(mount.path / "team/app/tags")


def fails(directory: Path) -> bool:
    """Whether a directory cannot be listed."""
    try:
        list(directory.iterdir())
    except OSError:
        return True
    return False


# --- several mounts on one cache --------------------------------------------------------------


def test_many_readers_of_two_mounts_share_a_blob_that_is_fetched_meanwhile(
    mounts: Mounts, embedded: EmbeddedRegistry
) -> None:
    big = random_bytes(8 << 20, 9)
    load(embedded, "team/app", "latest", image(big))
    one, two = mounts(embedded.url), mounts(embedded.url)
    layer = "team/app/tags/latest/layers/00"
    paths = [mount.path / layer for mount in (one, two) for _ in range(6)]
    with ThreadPoolExecutor(len(paths)) as pool:
        digests = list(pool.map(lambda path: Digest.of(path.read_bytes()), paths))
    assert set(digests) == {Digest.of(big)}
    fetched = [status(mount.path)["bytes_received"] for mount in (one, two)]
    assert max(fetched) < 1.05 * len(big)
    for mount in (one, two):
        mount.unmount()
    third = mounts(embedded.url)
    assert Digest.of((third.path / layer).read_bytes()) == Digest.of(big)
    assert status(third.path)["blobs"]["hits"] == 1
    assert status(third.path)["bytes_received"] < 10_000


class Failing(EmbeddedRegistry):
    """Answers 503 about manifests while it is `broken`, and everything else as ever."""

    broken = False

    def respond(self, request: Request) -> Response:
        if self.broken and "/manifests/" in request.path:
            return Response(503)
        return super().respond(request)


def test_a_tag_recalled_for_one_failure_of_a_registry_that_is_up_is_soon_resolved_anew(
    tmp_path: Path,
) -> None:
    link, another = "/team/app/tags/latest", image(b"another")
    with Failing() as registry:
        plan = SessionSettings(
            url=RegistryUrl.parse(registry.url),
            connection=Connection(TransportOptions(10, 10, 0), Credentials(), ()),
            cache=CacheOptions(tmp_path / "cache"),
            listings=ListingOptions(negative_ttl=0.1),
            blobs=BlobOptions(),
            offline_ok=False,
            platform=Platform.of_machine(),
        )
        load(registry, "team/app", "latest", CONTENT)
        with ExitStack() as closing:
            filesystem = opening.open_session(plan, closing).filesystem
            assert str(CONTENT.digest) in filesystem.readlink(link)
        load(registry, "team/app", "latest", another)
        registry.broken = True
        with ExitStack() as closing:
            filesystem = opening.open_session(plan, closing).filesystem
            assert str(CONTENT.digest) in filesystem.readlink(link)
            registry.broken = False
            until(lambda: str(another.digest) in filesystem.readlink(link))
