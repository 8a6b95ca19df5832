"""What a push asks for besides the upload itself: mounts, deletions, and whether it is allowed."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from typing import Literal

import pytest
from support.builders import image, random_bytes
from support.clients import Connect, connecting
from support.registries import EmbeddedRegistry
from support.scripted import Reset, Seen, Step, reply
from support.subjects import BEHAVIOURS, DOCKER, Subject, embedded_subject, subject_of_kind

from epochfs.client import RegistryClient
from epochfs.config import Credentials, TransportOptions
from epochfs.demo.registry import EPOCH, Behaviour, Request, Response
from epochfs.errors import (
    ContentMismatch,
    Denied,
    NotFound,
    ProtocolViolation,
    Unavailable,
    Unsupported,
)
from epochfs.metadata.source import PushClient
from epochfs.oci.names import Digest, Repository, Tag

BLOB = random_bytes(100_000)
DIGEST = Digest.of(BLOB)

connect = pytest.fixture(connecting)


subject = pytest.fixture(params=[*BEHAVIOURS, DOCKER])(subject_of_kind)


def test_the_client_of_a_registry_is_what_writing_needs(subject: Subject) -> None:
    client: PushClient = subject.client
    name = Repository(subject.name)
    client.put_blob(name, DIGEST, BLOB, len(BLOB))
    assert client.blob_exists(name, DIGEST)


# --- mounting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("holds", [True, False], ids=["held", "not held"])
def test_a_blob_is_there_whether_it_could_be_mounted_or_not(subject: Subject, holds: bool) -> None:
    other = f"{subject.name}/other"
    if holds:
        replace(subject, name=other).put_blob(BLOB)
    subject.client.put_blob(subject.name, DIGEST, BLOB, len(BLOB), other)
    with subject.client.get_blob(subject.name, DIGEST) as stream:
        assert stream.read(len(BLOB))[:100] == BLOB[:100]


class Counting(EmbeddedRegistry):
    """Counts the bytes that arrive as the bodies of requests."""

    received = 0

    def respond(self, request: Request) -> Response:
        self.received += len(request.body)
        return super().respond(request)


def test_of_a_blob_that_is_mounted_nothing_is_sent() -> None:
    with Counting() as registry, closing(RegistryClient(registry.url)) as client:
        registry.put_blob("other", BLOB)
        client.put_blob("a", DIGEST, BLOB, len(BLOB), "other")
        assert [one.method for one in registry.requests] == ["POST"]
        assert registry.received == 0
        assert client.blob_exists("a", DIGEST)


def test_the_session_of_a_mount_that_failed_takes_the_upload() -> None:
    with Counting() as registry, closing(RegistryClient(registry.url)) as client:
        client.put_blob("a", DIGEST, BLOB, len(BLOB), "other")
        assert [one.method for one in registry.requests] == ["POST", "PUT"]
        assert client.blob_exists("a", DIGEST)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 500, 503, 202])
def test_a_mount_that_is_refused_is_no_failure_of_the_upload(connect: Connect, status: int) -> None:
    stored: list[bytes] = []

    def script(seen: Seen) -> list[Step]:
        if "mount=" in seen.target:
            return [reply(status)]
        if seen.method == "POST":
            return [reply(202, Location="/v2/a/blobs/uploads/1")]
        if "/uploads/" not in seen.path:
            return [reply(405)]
        stored.append(seen.body)
        return [reply(201, Location="/v2/a/blobs/x")]

    _, client = connect(script)
    client.put_blob("a", DIGEST, BLOB, len(BLOB), "other")
    assert stored == [BLOB]


def test_a_mount_of_another_blob_is_not_taken_for_the_one_asked_for(connect: Connect) -> None:
    _, client = connect(lambda _: [reply(201, Docker_Content_Digest=str(Digest.of(b"other")))])
    with pytest.raises(ContentMismatch):
        client.put_blob("a", DIGEST, BLOB, len(BLOB), "other")


def test_a_token_for_a_mount_is_asked_for_both_repositories(connect: Connect) -> None:
    scopes: list[str] = []

    def script(seen: Seen) -> list[Step]:
        if seen.path == "/token":
            scopes.append(seen.target)
            return [reply(200, json.dumps({"token": f"t{len(scopes)}"}).encode())]
        if "authorization" in seen.headers and seen.path != "/v2/":
            return [reply(201, Location="/v2/a/blobs/x")]
        realm = f'Bearer realm="http://{seen.headers["host"]}/token",service="x"'
        return [reply(401, WWW_Authenticate=realm)]

    _, client = connect(script, credentials=Credentials(username="u", password="p"))
    client.put_blob("a", DIGEST, BLOB, len(BLOB), "b/c")
    assert len(scopes) == 1
    assert "scope=repository%3Aa%3Apull%2Cpush&scope=repository%3Ab%2Fc%3Apull" in scopes[0]


# --- deleting ---------------------------------------------------------------------------------


def test_a_deleted_blob_is_gone_and_may_be_deleted_again(subject: Subject) -> None:
    subject.put_blob(BLOB)
    if not subject.behaviour.blob_deletes:
        with pytest.raises(Unsupported):
            subject.client.delete_blob(subject.name, DIGEST)
        return
    for _ in range(2):
        subject.client.delete_blob(subject.name, DIGEST)
        assert not subject.client.blob_exists(subject.name, DIGEST)


def test_where_only_digests_can_be_deleted_no_tag_is() -> None:
    with embedded_subject(Behaviour(tag_deletes=False)) as subject:
        content = image()
        subject.push("v1", content)
        for delete in (subject.client.delete_tag, subject.client.delete_manifest):
            with pytest.raises(Unsupported):
                delete(subject.name, "v1")
        assert subject.client.list_tags(subject.name) == ["v1"]
        subject.client.delete_manifest(subject.name, content.digest)
        assert subject.client.list_tags(subject.name) == []


# --- whether pushing is allowed ---------------------------------------------------------------


def test_who_may_push_is_told_so_and_nothing_is_left_behind(subject: Subject) -> None:
    subject.client.check_push(subject.name)
    with pytest.raises(NotFound):
        subject.client.resolve(subject.name, "v1")


def test_the_session_that_was_opened_to_ask_is_cancelled() -> None:
    with EmbeddedRegistry() as registry, closing(RegistryClient(registry.url)) as client:
        client.check_push("a")
        opened, cancelled = registry.requests
        assert (opened.method, cancelled.method) == ("POST", "DELETE")
        with pytest.raises(NotFound):
            client.list_tags("a")


@pytest.mark.parametrize(("read_only", "error"), [("denied", Denied), ("unsupported", Unsupported)])
def test_a_registry_that_is_read_only_says_so_before_anything_is_sent(
    read_only: Literal["denied", "unsupported"], error: type[Exception]
) -> None:
    with embedded_subject(Behaviour(read_only=read_only)) as subject, pytest.raises(error):
        subject.client.check_push(subject.name)


def test_who_has_no_token_of_epochs_may_not_push() -> None:
    with (
        EmbeddedRegistry(EPOCH, password="secret") as registry,
        closing(RegistryClient(registry.url)) as client,
        pytest.raises(Denied),
    ):
        client.check_push("a")


@pytest.mark.parametrize("status", [404, 405])
def test_a_registry_without_sessions_cannot_tell(connect: Connect, status: int) -> None:
    server, client = connect(lambda _: [reply(status)])
    client.check_push("a")
    assert [one.method for one in server.seen] == ["POST"]


def test_a_session_that_cannot_be_cancelled_does_not_matter(connect: Connect) -> None:
    def script(seen: Seen) -> list[Step]:
        if seen.method == "POST":
            return [reply(202, Location="/v2/a/blobs/uploads/1")]
        return [reply(403)]

    _, client = connect(script)
    client.check_push("a")


class TestWhatAnswersEverything:
    """A gateway, a login page: a success that need not be the registry's is looked into."""

    PORTAL = reply(200, b"<html>", Content_Type="text/html")

    @pytest.mark.parametrize("status", [200, 201, 202])
    def test_a_success_that_names_no_digest_is_no_stored_blob(
        self, connect: Connect, status: int
    ) -> None:
        _, client = connect(lambda seen: [reply(404 if seen.method in ("HEAD", "GET") else status)])
        with pytest.raises(ProtocolViolation, match="not stored"):
            client.put_blob("a", DIGEST, BLOB, len(BLOB))

    @pytest.mark.parametrize("status", [200, 201, 202])
    @pytest.mark.parametrize("reference", [Digest.of(b"{}"), Tag("new")])
    def test_a_success_that_names_no_digest_is_no_stored_manifest(
        self, connect: Connect, status: int, reference: Digest | Tag
    ) -> None:
        _, client = connect(lambda seen: [reply(status if seen.method == "PUT" else 404)])
        with pytest.raises(ProtocolViolation, match="not stored"):
            client.put_manifest("a", reference, b"{}", "application/json")

    def test_a_tag_that_still_names_another_manifest_was_not_stored(self, connect: Connect) -> None:
        other = reply(200, Docker_Content_Digest=str(DIGEST), Content_Length="2")
        _, client = connect(lambda seen: [reply(201) if seen.method == "PUT" else other])
        with pytest.raises(ProtocolViolation, match=str(DIGEST)):
            client.put_manifest("a", Tag("new"), b"{}", "application/json")

    def test_a_blob_of_another_size_is_not_there(self, connect: Connect) -> None:
        _, client = connect(lambda _: [self.PORTAL])
        assert not client.blob_exists("a", DIGEST, len(BLOB))

    def test_whether_a_blob_is_there_is_asked_once_by_head_and_once_by_get(
        self, connect: Connect
    ) -> None:
        first = reply(206, BLOB[:1], Content_Range=f"bytes 0-0/{len(BLOB)}")
        server, client = connect(lambda seen: [reply(405) if seen.method == "HEAD" else first])
        assert client.blob_exists("a", DIGEST, len(BLOB))
        assert [seen.method for seen in server.seen] == ["HEAD", "GET"]

    def test_a_manifest_is_not_there_because_a_page_is(self, connect: Connect) -> None:
        _, client = connect(lambda _: [self.PORTAL])
        with pytest.raises(ContentMismatch):
            client.has_manifest("a", DIGEST)

    @pytest.mark.parametrize(("status", "error"), [(200, ProtocolViolation), (404, Unsupported)])
    def test_what_is_still_there_was_not_deleted(
        self, connect: Connect, status: int, error: type[Exception]
    ) -> None:
        there = reply(200, Docker_Content_Digest=str(DIGEST), Content_Length="2")
        _, client = connect(lambda seen: [reply(status) if seen.method == "DELETE" else there])
        for delete in (
            lambda: client.delete_tag("a", Tag("new")),
            lambda: client.delete_manifest("a", DIGEST),
            lambda: client.delete_blob("a", DIGEST),
        ):
            with pytest.raises(error, match="nothing was deleted"):
                delete()


@pytest.mark.parametrize("reference", [Digest.of(b"{}"), Tag("new")])
def test_a_manifest_that_is_stored_is_stored_though_the_answers_are_lost(
    connect: Connect, reference: Digest | Tag
) -> None:
    there = reply(200, Docker_Content_Digest=str(Digest.of(b"{}")), Content_Length="2")

    def script(seen: Seen) -> list[Step]:
        if seen.method == "PUT":
            raise Reset
        return [there]

    _, client = connect(script, options=TransportOptions(timeout=5.0, retries=0))
    client.put_manifest("a", reference, b"{}", "application/json")
    with pytest.raises(Unavailable):
        client.put_manifest("a", Tag("new"), b"{ }", "application/json")
