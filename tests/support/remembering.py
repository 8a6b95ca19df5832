"""Clients that remember, over one file, for the tests of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from epochfs.cache.answers import AnswerStore
from epochfs.client import RegistryClient
from epochfs.client.hosts import RegistryHosts, find
from epochfs.config import Credentials, RegistryUrl, TransportOptions
from epochfs.demo.registry import Request, Response
from epochfs.metadata import health
from epochfs.metadata.health import Health
from epochfs.metadata.offline import RememberingClient
from epochfs.oci.names import Digest, Repository, Tag
from support.builders import image
from support.registries import EmbeddedRegistry

APP, LATEST = Repository("team/app"), Tag("latest")

IMAGE = image()
FILE = "answers.sqlite"

Open = Callable[..., RememberingClient]


def remembering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """A fixture: makes clients that share a file, one after the other, as mounts do."""
    monkeypatch.setattr(health, "_FIRST_SECONDS", 0.05)
    with ExitStack() as stack:

        def build(
            registry: EmbeddedRegistry,
            username: str = "",
            max_age: float = 60,
            mirrors: str = "",
            **given: Any,
        ) -> RememberingClient:
            stack.close()
            client = RegistryClient(
                registry.url,
                credentials=Credentials(username, "password" if username else "", **given),
                options=TransportOptions(5, 5, 0),
                hosts=hosts_of(registry, tmp_path, mirrors),
            )
            stack.callback(client.close)
            answers = AnswerStore(tmp_path / FILE, registry.url, client.bearer_for)
            stack.callback(answers.close)
            health = Health(registry.url, client.ping)
            stack.callback(health.close)
            return RememberingClient(client, answers, health, max_age)

        yield build


def hosts_of(registry: EmbeddedRegistry, directory: Path, mirrors: str) -> RegistryHosts:
    """Return the hosts of a registry whose `hosts.toml` says this of its mirrors."""
    (directory / "_default").mkdir(exist_ok=True)
    (directory / "_default" / "hosts.toml").write_text(mirrors)
    return find(directory, RegistryUrl.parse(registry.url))


def everything(client: RememberingClient) -> list[object]:
    layer = Digest.of(IMAGE.blobs[-1])
    return [
        client.catalog(),
        client.list_tags(APP),
        client.resolve(APP, LATEST),
        client.get_manifest(APP, IMAGE.digest),
        client.blob_size(APP, layer),
        client.resolve(APP, IMAGE.digest),
        client.referrers(APP, IMAGE.digest),
        client.read_blob(APP, layer, 1 << 20),
    ]


class Closing(EmbeddedRegistry):
    """Answers everything about `team/app` with a status and an error's code, once there is one."""

    status = 0
    code = ""

    def respond(self, request: Request) -> Response:
        if self.status and "/team/app/" in request.path:
            body = {"errors": [{"code": self.code}]} if self.code else {}
            return Response(self.status, {}, json.dumps(body).encode())
        return super().respond(request)
