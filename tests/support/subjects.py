"""The registries that the contract suite runs over."""

from __future__ import annotations

import ssl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from conftest import DockerRegistry

from epochfs.client import RegistryClient
from epochfs.config import Credentials
from epochfs.demo.registry import EPOCH, Behaviour
from epochfs.oci.names import Digest
from support.builders import Content
from support.integrity import push_by
from support.registries import EmbeddedRegistry

USERNAME, PASSWORD = "me", "pa:ss word"

BEHAVIOURS = {
    "specification": Behaviour(),
    "pages-of-two": Behaviour(page_size=2),
    "basic": Behaviour(auth="basic"),
    "bearer": Behaviour(auth="bearer"),
    "no-range-no-sessions": Behaviour(ranges=False, uploads=False, single_put=True),
    "epoch": EPOCH,
    "epoch-without-token": replace(EPOCH, auth=""),
}
DOCKER = pytest.param("docker", marks=pytest.mark.registry)


@dataclass(frozen=True)
class Subject:
    """A registry under test, our client of it, and a repository name nobody else uses."""

    client: RegistryClient
    host: str
    name: str
    behaviour: Behaviour
    credentials: str = ""

    def push(self, tag: str, content: Content) -> None:
        """Push content with our client."""
        push_by(self.client, self.name, tag, content)

    def put_blob(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        self.client.put_blob(self.name, digest, data, len(data))
        return digest


@contextmanager
def embedded_subject(
    behaviour: Behaviour, ssl_context: ssl.SSLContext | None = None
) -> Iterator[Subject]:
    username, password = (USERNAME, PASSWORD) if behaviour.auth else ("", "")
    if behaviour.empty_token:
        password = "registry-token"  # It is sent as a Bearer token too, which cannot have spaces.
    registry = EmbeddedRegistry(
        behaviour, username=username, password=password, ssl_context=ssl_context
    )
    credentials = Credentials(username=username, password=password)
    with registry:
        client = RegistryClient(registry.url, credentials=credentials)
        given = f"{username}:{password}" if username else ""
        yield Subject(client, registry.host, "library/team/app", behaviour, given)
        client.close()


@contextmanager
def docker_subject(registry: DockerRegistry) -> Iterator[Subject]:
    client = RegistryClient(registry.url)
    yield Subject(client, registry.host, f"library/t{uuid.uuid4().hex}/app", Behaviour())
    client.close()


def subject_of_kind(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """A fixture, whose parameter is one of BEHAVIOURS, `https`, or DOCKER."""
    if request.param == "docker":
        context = docker_subject(request.getfixturevalue("docker_registry"))
    elif request.param == "https":
        context = embedded_subject(Behaviour(), request.getfixturevalue("self_signed"))
    else:
        context = embedded_subject(BEHAVIOURS[request.param])
    with context as subject:
        yield subject
