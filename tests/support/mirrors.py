"""Mirrors, their registry, and clients of both, for the tests of mirrors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from epochfs.client import RegistryClient
from epochfs.client.hosts import find
from epochfs.config import Credentials, RegistryUrl, TransportOptions
from epochfs.demo.registry import Request, Response
from epochfs.oci.names import Digest
from support.builders import image, load, random_bytes
from support.registries import EmbeddedRegistry
from support.scripted import ScriptedServer, Seen, Step, reply
from support.subjects import PASSWORD, USERNAME

NAME = "team/app"
LAYER = random_bytes(300_000, 1)
IMAGE = image(LAYER)
BLOB = Digest.of(LAYER)
MINE = Credentials(username=USERNAME, password=PASSWORD)

Client = Callable[..., RegistryClient]


class Mirror(EmbeddedRegistry):
    """A mirror that has everything, and counts."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        load(self, NAME, "latest", IMAGE)


class Failing(Mirror):
    """A mirror that answers everything with one status."""

    status = 500

    def respond(self, request: Request) -> Response:
        return Response(self.status)


class Lying(Mirror):
    """A mirror whose every body has one wrong byte."""

    def respond(self, request: Request) -> Response:
        answer = super().respond(request)
        body = bytes(answer.body)  # type: ignore[arg-type]
        return Response(answer.status, answer.headers, b"!" + body[1:])


def registry_with_mirrors() -> Iterator[EmbeddedRegistry]:
    """A fixture: the registry itself."""
    with Mirror() as registry:
        yield registry


def clients(tmp_path: Path) -> Iterator[Client]:
    """A fixture: makes clients of a registry and its mirrors: URLs, or tables of a `hosts.toml`."""
    with ExitStack() as closing:

        def make(
            registry: EmbeddedRegistry | str,
            *mirrors: str,
            credentials: Credentials | None = None,
            timeout: float = 10.0,
            server: str = "",
        ) -> RegistryClient:
            url = RegistryUrl.parse(registry if isinstance(registry, str) else registry.url)
            tables = [one if one.startswith("[") else f'[host."{one}"]' for one in mirrors]
            top = [f'server = "{server}"'] if server else []
            (tmp_path / "_default").mkdir(exist_ok=True)
            (tmp_path / "_default" / "hosts.toml").write_text("\n".join([*top, *tables]))
            client = RegistryClient(
                url.base,
                credentials=credentials,
                options=TransportOptions(timeout=timeout),
                hosts=find(tmp_path, url),
            )
            closing.callback(client.close)
            return client

        yield make


def blob(client: RegistryClient) -> bytes:
    with client.get_blob(NAME, BLOB) as stream:
        return b"".join(iter(lambda: stream.read(1 << 16), b""))


# --- how a host is spoken to ------------------------------------------------------------------


def recording(answer: Callable[[Seen], list[Step]]) -> ScriptedServer:
    return ScriptedServer(answer)


def sends_the_blob(_: Seen) -> list[Step]:
    return [reply(200, LAYER)]
