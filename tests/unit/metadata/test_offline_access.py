"""Who recalls what was remembered: those who were told it, until their access is denied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.builders import load
from support.registries import EmbeddedRegistry
from support.remembering import APP, IMAGE, LATEST, Closing, Open, everything, remembering

from epochfs.demo.registry import Behaviour, Request, Response
from epochfs.errors import CredentialsUnavailable, Denied, Unavailable
from epochfs.oci.names import Repository

pytestmark = pytest.mark.expects_log("is down, what is cached is served")

opened = pytest.fixture(remembering)


def test_other_credentials_recall_nothing(opened: Open) -> None:
    behaviour = Behaviour(auth="basic")
    with EmbeddedRegistry(behaviour, username="alice", password="password") as registry:
        load(registry, "team/app", "latest", IMAGE)
        asked = everything(opened(registry, "alice"))
        registry.stop()
        assert everything(opened(registry, "alice")) == asked
        for other in ("bob", ""):
            client = opened(registry, other)
            with pytest.raises(Unavailable):
                client.get_manifest(APP, IMAGE.digest)


def log_in(file: Path, registry: EmbeddedRegistry, username: str) -> None:
    entry = {"username": username, "password": "password"}
    file.write_text(json.dumps({"auths": {registry.host: entry}}))


def test_who_logs_in_after_another_recalls_nothing_of_what_that_one_was_told(
    opened: Open, tmp_path: Path
) -> None:
    """Not even by the other's token, which is good for some time yet."""
    file = tmp_path / "auth.json"
    with EmbeddedRegistry(
        Behaviour(auth="bearer"), username="alice", password="password"
    ) as registry:
        load(registry, "team/app", "latest", IMAGE)
        log_in(file, registry, "alice")
        client = opened(registry, auth_files=(file,))
        tags = client.list_tags(APP)
        log_in(file, registry, "mallory")
        with pytest.raises(Denied):
            client.list_tags(APP)
        with pytest.raises(Denied):
            client.get_manifest(APP, IMAGE.digest)
    for ask in (lambda one: one.list_tags(APP), lambda one: one.get_manifest(APP, IMAGE.digest)):
        with pytest.raises(Unavailable):
            ask(opened(registry, auth_files=(file,)))
    log_in(file, registry, "alice")
    assert opened(registry, auth_files=(file,)).list_tags(APP) == tags


def test_who_logs_in_while_another_asks_recalls_nothing_of_the_answer(
    opened: Open, tmp_path: Path
) -> None:
    file = tmp_path / "auth.json"

    class Overtaken(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            answer = super().respond(request)
            if answer.status == 200 and "/team/app/" in request.path:
                log_in(file, self, "mallory")
            return answer

    with Overtaken(Behaviour(auth="basic"), username="alice", password="password") as registry:
        load(registry, "team/app", "latest", IMAGE)
        log_in(file, registry, "alice")
        opened(registry, auth_files=(file,)).list_tags(APP)
        log_in(file, registry, "alice")
        opened(registry, auth_files=(file,)).get_manifest(APP, IMAGE.digest)
    client = opened(registry, auth_files=(file,))
    for ask in (
        lambda: client.list_tags(APP),
        lambda: client.get_manifest(APP, IMAGE.digest),
        lambda: client.resolve(APP, IMAGE.digest),
    ):
        with pytest.raises(Unavailable):
            ask()


def test_once_access_was_denied_nothing_of_the_repository_is_recalled(opened: Open) -> None:
    with Closing() as registry:
        load(registry, "team/app", "latest", IMAGE)
        load(registry, "team/other", "latest", IMAGE)
        client = opened(registry)
        everything(client)
        tags = client.list_tags(Repository("team/other"))
        registry.status = 403
        with pytest.raises(Denied):
            client.list_tags(APP)
        with pytest.raises(Denied):
            client.get_manifest(APP, IMAGE.digest)
        registry.stop()
        client = opened(registry)
        with pytest.raises(Unavailable):
            client.get_manifest(APP, IMAGE.digest)
        with pytest.raises(Unavailable):
            client.list_tags(APP)
        assert client.list_tags(Repository("team/other")) == tags


@pytest.mark.expects_log("neither kept nor served: cannot read the token file")
def test_credentials_that_cannot_be_had_for_a_moment_end_nothing_that_was_remembered(
    opened: Open, embedded: EmbeddedRegistry, tmp_path: Path
) -> None:
    load(embedded, "team/app", "latest", IMAGE)
    file = tmp_path / "token"
    file.write_text("canary")
    client = opened(embedded, token_file=file)
    asked = everything(client)
    file.unlink()
    embedded.stop()
    client.health.failed(Unavailable("refused"), pinged=True)
    with pytest.raises(CredentialsUnavailable):
        client.list_tags(APP)
    assert client.health.outage
    file.write_text("canary")
    assert everything(client) == asked


def test_a_denied_listing_ends_nothing_but_itself(opened: Open) -> None:
    with Closing() as registry:
        load(registry, "team/app", "latest", IMAGE)
        client = opened(registry)
        everything(client)
        registry.status = 403
        with pytest.raises(Denied):
            client.list_tags(APP)
        registry.stop()
        client = opened(registry)
        with pytest.raises(Denied):
            client.list_tags(APP)
        assert client.get_manifest(APP, IMAGE.digest).raw == IMAGE.raw


def test_what_a_mirror_gave_for_its_own_credentials_is_recalled_for_these_alone(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    with EmbeddedRegistry() as mirror:
        load(mirror, "team/app", "latest", IMAGE)
        mine, yours, none = (
            f'[host."{mirror.url}"]\n{header}'
            for header in ('header = {X-Key = "mine"}', 'header = {X-Key = "yours"}', "")
        )
        asked = opened(embedded, mirrors=mine).resolve(APP, LATEST)
    embedded.stop()
    assert opened(embedded, mirrors=mine).resolve(APP, LATEST) == asked
    for other in (yours, none, ""):
        with pytest.raises(Unavailable):
            opened(embedded, mirrors=other).resolve(APP, LATEST)
