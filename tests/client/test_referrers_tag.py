"""Pushing a manifest with a subject to a registry that does not list its referrers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from support.builders import Content, image, index
from support.registries import EmbeddedRegistry
from support.subjects import DOCKER, Subject, docker_subject, embedded_subject

from epochfs.client import RegistryClient
from epochfs.config import TransportOptions
from epochfs.demo.registry import EPOCH, Behaviour, Request, Response
from epochfs.errors import ProtocolViolation, Unavailable
from epochfs.oci.names import referrers_tag

TYPE = "application/vnd.example.signature"
IMAGE = image(b"signed")
TAG = referrers_tag(IMAGE.digest)


@pytest.fixture(params=["without", "epoch", DOCKER])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    if request.param == "docker":
        context = docker_subject(request.getfixturevalue("docker_registry"))
    elif request.param == "epoch":
        context = embedded_subject(replace(EPOCH, auth=""))
    else:
        context = embedded_subject(Behaviour(referrers=False))
    with context as subject:
        subject.push("v1", IMAGE)
        yield subject


def signature(text: str, subject: Content = IMAGE, **fields: Any) -> Content:
    about = {
        "mediaType": subject.media_type,
        "digest": str(subject.digest),
        "size": len(subject.raw),
    }
    return image(text.encode(), subject=about, annotations={"text": text}, **fields)


def listed(subject: Subject) -> list[dict[str, Any]]:
    found = json.loads(subject.client.get_manifest(subject.name, TAG).raw)
    assert found["schemaVersion"] == 2
    manifests: list[dict[str, Any]] = found["manifests"]
    return manifests


def test_a_referrer_is_listed_under_its_subjects_tag(subject: Subject) -> None:
    signed = signature("one", artifactType=TYPE)
    subject.push("signature", signed)
    assert listed(subject) == [
        {
            "mediaType": signed.media_type,
            "digest": str(signed.digest),
            "size": len(signed.raw),
            "artifactType": TYPE,
            "annotations": {"text": "one"},
        }
    ]


def test_without_an_artifact_type_it_is_that_of_the_config(subject: Subject) -> None:
    signed = signature("one")
    subject.push("signature", signed)
    config = json.loads(signed.raw)["config"]["mediaType"]
    assert [one["artifactType"] for one in listed(subject)] == [config]


def test_referrers_are_added_once_each(subject: Subject) -> None:
    signatures = [signature(text, artifactType=TYPE) for text in ("one", "two", "one")]
    for signed in signatures:
        subject.push("signature", signed)
    assert [one["digest"] for one in listed(subject)] == [
        str(signed.digest) for signed in signatures[:2]
    ]


def test_one_that_is_listed_already_is_not_pushed_again() -> None:
    with (
        EmbeddedRegistry(Behaviour(referrers=False, sparse="all")) as registry,
        closing(RegistryClient(registry.url)) as client,
    ):
        signed = signature("one")
        for _ in range(2):
            registry.forget_requests()
            client.put_manifest("a", "s", signed.raw, signed.media_type)
        assert [one.method for one in registry.requests] == ["PUT", "GET"]


def test_what_another_client_wrote_into_the_list_stays(subject: Subject) -> None:
    other = {**json.loads(index().raw), "annotations": {"kept": "yes"}}
    raw = json.dumps({**other, "manifests": [{**entry(), "annotations": {"odd": "1"}}]}).encode()
    subject.client.put_manifest(subject.name, TAG, raw, index().media_type)
    subject.push("signature", signature("one"))
    found = json.loads(subject.client.get_manifest(subject.name, TAG).raw)
    assert found["annotations"] == {"kept": "yes"}
    assert found["manifests"][0] == {**entry(), "annotations": {"odd": "1"}}
    assert len(found["manifests"]) == 2


def entry() -> dict[str, Any]:
    return {"mediaType": IMAGE.media_type, "digest": str(IMAGE.digest), "size": len(IMAGE.raw)}


def test_many_that_are_pushed_at_once_are_all_listed(subject: Subject) -> None:
    signatures = [signature(str(number)) for number in range(8)]
    for signed in signatures:
        for blob in signed.every_blob():
            subject.put_blob(blob)

    def push(signed: Content) -> None:
        subject.client.put_manifest(subject.name, signed.digest, signed.raw, signed.media_type)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(push, signatures))
    assert {one["digest"] for one in listed(subject)} == {str(one.digest) for one in signatures}


def test_the_list_of_one_subject_does_not_wait_for_that_of_another() -> None:
    changing, go = threading.Event(), threading.Event()

    class Slow(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            if request.method == "PUT" and request.path.endswith(TAG.name):
                changing.set()
                assert go.wait(20)
            return super().respond(request)

    one, other = signature("one"), signature("other", image(b"other"))
    with (
        Slow(Behaviour(referrers=False, sparse="all")) as registry,
        closing(RegistryClient(registry.url, options=TransportOptions(timeout=5.0))) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        slow = pool.submit(client.put_manifest, "a", "one", one.raw, one.media_type)
        assert changing.wait(20)
        client.put_manifest("a", "other", other.raw, other.media_type)
        assert not slow.done()
        go.set()
        slow.result(20)


def test_a_registry_that_lists_referrers_itself_gets_no_such_tag() -> None:
    with embedded_subject(Behaviour()) as subject:
        subject.push("v1", IMAGE)
        subject.push("signature", signature("one"))
        assert sorted(subject.client.list_tags(subject.name)) == ["signature", "v1"]


class Forgetful(EmbeddedRegistry):
    """Another client always pushes an older list right after ours."""

    def respond(self, request: Request) -> Response:
        if request.method == "PUT" and request.path.endswith(TAG.name):
            return Response(201)
        return super().respond(request)


def test_a_list_that_others_keep_replacing_is_no_success() -> None:
    signed = signature("one")
    with (
        Forgetful(Behaviour(referrers=False, sparse="all")) as registry,
        closing(RegistryClient(registry.url)) as client,
        pytest.raises(Unavailable, match="others keep changing"),
    ):
        client.put_manifest("a", "s", signed.raw, signed.media_type)


def test_a_tag_of_something_else_is_not_replaced(subject: Subject) -> None:
    subject.push(TAG.name, IMAGE)
    with pytest.raises(ProtocolViolation, match="no index of referrers"):
        subject.push("signature", signature("one"))
    assert subject.client.get_manifest(subject.name, TAG).raw == IMAGE.raw
