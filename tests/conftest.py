"""Fixtures for the whole suite: registries, a real client, and a watch over the log."""

from __future__ import annotations

import itertools
import logging
import re
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.builders import Content, write_directory
from support.mounts import Mounts, require_fuse
from support.ports import keep_apart
from support.registries import EmbeddedRegistry
from support.views import Opener

from epochfs.client import hosts

# The same examples in every run, and none fails because the machine is busy: pytest's own time
# limit ends what hangs. `--hypothesis-profile=default` looks for new examples.
settings.register_profile(
    "epochfs",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("epochfs")

STARTUP_SECONDS = 20

_SHORT = 16

_HTPASSWD = 'auth: {{htpasswd: {{realm: registry, path: "{path}"}}}}\n'
_REGISTRY_CONFIG = """\
version: 0.1
log: {{level: info}}
storage:
  filesystem: {{rootdirectory: {storage}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def pytest_configure() -> None:
    """Let no test have a port that a test of another process may still need."""
    keep_apart()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their length: those of a gzip stream, say, are others in each process."""
    return f"{len(val)} bytes" if isinstance(val, bytes) and len(val) > _SHORT else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a program, so that `-m` can choose them."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "docker_registry" in names:
            item.add_marker("registry")
        if "skopeo" in names:
            item.add_marker("skopeo")
        if "mounts" in names:
            item.add_marker("fuse")


class _Recorder(logging.Handler):
    """Keeps the records it is given."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def _no_unexpected_warning(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test during which epochfs logged a warning that no `expects_log` marker allows."""
    handler = _Recorder(logging.WARNING)
    logger = logging.getLogger("epochfs")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    _refuse_unexpected(
        request,
        (f"{one.name}: {one.levelname}: {one.getMessage()}" for one in handler.records),
    )


def _refuse_unexpected(request: pytest.FixtureRequest, lines: Iterable[str]) -> None:
    allowed = [re.compile(mark.args[0]) for mark in request.node.iter_markers("expects_log")]
    unexpected = [line for line in lines if not any(one.search(line) for one in allowed)]
    if unexpected:
        pytest.fail("unexpected log records:\n" + "\n".join(unexpected), pytrace=False)


@pytest.fixture(autouse=True)
def _nobodys_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Keep what is on this machine, logins and mirrors, out of the tests."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    for name in ("HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(home))
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(hosts, "DEFAULT_DIRECTORY", home / "none")


@pytest.fixture
def mounts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounts]:
    """Makes real mounts, and ends them; their logs are watched as our own is."""
    require_fuse()
    made = Mounts(tmp_path)
    yield made
    _refuse_unexpected(request, made.close())


@pytest.fixture(params=["vfs", pytest.param("mount", marks=pytest.mark.fuse)])
def through(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens file systems: through `vfs` directly, and then through a real mount."""
    mounts = request.getfixturevalue("mounts") if request.param == "mount" else None
    return Opener(request.param, tmp_path, mounts)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, as a list of one number that the test can change."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def embedded() -> Iterator[EmbeddedRegistry]:
    """An empty embedded registry that does all of the specification."""
    with EmbeddedRegistry() as registry:
        yield registry


@dataclass(frozen=True)
class DockerRegistry:
    """A running docker-registry: `host` is `127.0.0.1:port`, `log` the file it writes to."""

    host: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://{self.host}"


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Debian's docker-registry, empty at first; tests share it, each under names of its own."""
    with serve_docker_registry(tmp_path_factory.mktemp("docker-registry")) as registry:
        yield registry


@contextmanager
def serve_docker_registry(
    directory: Path, port: int = 0, cache_of: str = "", htpasswd: Path | None = None
) -> Iterator[DockerRegistry]:
    """Run a docker-registry on what it has stored in a directory; on any free port for 0.

    With the URL of another registry it is a pull-through cache of that one. With a file of
    `htpasswd` it serves those who are in that, as the file is at the moment.
    """
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    port = port or free_port()
    config = directory / "config.yml"
    text = _REGISTRY_CONFIG.format(storage=directory / "storage", port=port)
    if cache_of:
        text += f'proxy: {{remoteurl: "{cache_of}"}}\n'
    if htpasswd is not None:
        text += _HTPASSWD.format(path=htpasswd)
    config.write_text(text)
    file = directory / "log"
    with file.open("ab") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=log, stderr=subprocess.STDOUT
        )
    registry = DockerRegistry(f"127.0.0.1:{port}", file, process)
    try:
        _wait_until_answering(registry, process)
        yield registry
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def _wait_until_answering(registry: DockerRegistry, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{registry.url}/v2/", timeout=1).close()
        except urllib.error.HTTPError:
            return  # it wants a password
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"docker-registry did not start:\n{registry.log.read_text()}", pytrace=False)


@dataclass(frozen=True)
class Skopeo:
    """Copies images between OCI layouts on disk and registries, as users' own tools do."""

    directory: Path
    _numbers: Iterator[int]

    def push(
        self, content: Content, host: str, name: str, tag: str = "latest", credentials: str = ""
    ) -> None:
        """Push content, unchanged, to `host/name:tag`; `credentials` are `user:password`.

        Without a tag, it has its digest alone as a name.
        """
        source = self._fresh_directory()
        write_directory(source, content)
        options = ["--dest-tls-verify=false"]
        if credentials:
            options.append(f"--dest-creds={credentials}")
        reference = f":{tag}" if tag else f"@{content.digest}"
        self.copy(*options, f"dir:{source}", f"docker://{host}/{name}{reference}")

    def pull(self, host: str, name: str, tag: str = "latest", credentials: str = "") -> Path:
        """Pull `host/name:tag` with all it refers to, and return the OCI layout it is in."""
        layout = self._fresh_directory()
        options = ["--src-tls-verify=false"]
        if credentials:
            options.append(f"--src-creds={credentials}")
        self.copy(*options, f"docker://{host}/{name}:{tag}", f"oci:{layout}:{tag}")
        return layout

    def _fresh_directory(self) -> Path:
        return self.directory / f"layout{next(self._numbers)}"

    def copy(self, *arguments: str) -> None:
        """Copy unchanged, as `skopeo copy` does with these arguments."""
        command = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests"]
        result = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr


@pytest.fixture
def skopeo(tmp_path: Path) -> Skopeo:
    """A real client, to push and pull with."""
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    return Skopeo(tmp_path, itertools.count())


@pytest.fixture(scope="session")
def self_signed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that nobody vouches for, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = "-subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run(
        [*command.split(), *names.split(), "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    both = directory / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return both


@pytest.fixture(scope="session")
def self_signed(self_signed_file: Path) -> ssl.SSLContext:
    """A TLS context whose certificate nobody vouches for, as development registries have."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed_file)
    return context
