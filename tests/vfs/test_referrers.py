"""`referrers/`: what refers to a manifest, from registries with and without a call for that."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import DockerRegistry, Skopeo
from support.builders import Content, image, index, load
from support.mounts import Mounts
from support.registries import EmbeddedRegistry
from support.stacks import stack
from support.views import Opener, VfsView, names

from epochfs.demo.registry import EPOCH, Behaviour, Request, Response
from epochfs.demo.samples import descriptor
from epochfs.oci.manifests import OCI_MANIFEST

WITHOUT = Behaviour(referrers=False)
SIGNATURE_TYPE = "application/vnd.example.signature"

SUBJECT = image(b"subject")
SIGNATURE = image(
    b"signature", subject=descriptor(SUBJECT.raw, OCI_MANIFEST), artifactType=SIGNATURE_TYPE
)
UNTYPED = image(b"report", subject=descriptor(SUBJECT.raw, OCI_MANIFEST))
TAG = f"sha256-{SUBJECT.digest.encoded}"
DIRECTORY = f"/app/manifests/{SUBJECT.digest}/referrers"

Open = Callable[..., VfsView]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Returns a view of a registry."""
    with ExitStack() as closing:

        def build(registry: EmbeddedRegistry, ttl: float = 60.0) -> VfsView:
            layers = stack(registry.url, tmp_path, metadata_ttl=ttl)
            return VfsView(closing.enter_context(layers).filesystem)

        yield build


def furnish(registry: EmbeddedRegistry, *referrers: Content) -> None:
    load(registry, "app", "latest", SUBJECT)
    for referrer in referrers:
        load(registry, "app", "", referrer)


def tagged(*referrers: Content) -> Content:
    """Return the index under which a client lists referrers for a registry without the call."""
    return index(*referrers, manifests=[descriptor(one.raw, one.media_type) for one in referrers])


class TestWithTheCall:
    def test_each_referrer_is_a_link_to_its_manifest(self, through: Opener) -> None:
        with EmbeddedRegistry() as registry:
            furnish(registry, SIGNATURE, UNTYPED)
            with through(registry) as view:
                assert names(view, DIRECTORY) == sorted(
                    map(str, (SIGNATURE.digest, UNTYPED.digest))
                )
                target = view.readlink(f"{DIRECTORY}/{SIGNATURE.digest}")
                referrer = os.path.normpath(f"{DIRECTORY}/{target}")
                assert referrer == f"/app/manifests/{SIGNATURE.digest}"
                assert view.xattr(referrer, "user.oci.artifactType") == SIGNATURE_TYPE

    def test_a_referrer_without_a_type_has_that_of_its_config(
        self, embedded: EmbeddedRegistry, opened: Open
    ) -> None:
        furnish(embedded, UNTYPED)
        view = opened(embedded)
        kind = view.xattr(f"/app/manifests/{UNTYPED.digest}", "user.oci.artifactType")
        assert kind == "application/vnd.oci.image.config.v1+json"
        assert "user.oci.artifactType" not in view.xattrs(f"/app/manifests/{SUBJECT.digest}")

    def test_what_nothing_refers_to_has_an_empty_directory(
        self, embedded: EmbeddedRegistry, opened: Open
    ) -> None:
        furnish(embedded)
        view = opened(embedded)
        assert names(view, DIRECTORY) == []
        for name in (str(SIGNATURE.digest), "latest"):
            with pytest.raises(FileNotFoundError):
                view.readlink(f"{DIRECTORY}/{name}")

    def test_a_manifest_that_is_not_there_has_no_directory(
        self, embedded: EmbeddedRegistry, opened: Open
    ) -> None:
        furnish(embedded)
        with pytest.raises(FileNotFoundError):
            opened(embedded).stat(f"/app/manifests/{SIGNATURE.digest}/referrers")

    def test_a_new_referrer_is_seen_and_until_then_nothing_is_asked(
        self, embedded: EmbeddedRegistry, opened: Open
    ) -> None:
        furnish(embedded)
        lasting, fresh = opened(embedded), opened(embedded, ttl=0)
        assert names(lasting, DIRECTORY) == names(fresh, DIRECTORY) == []
        load(embedded, "app", "", SIGNATURE)
        embedded.forget_requests()
        assert names(lasting, DIRECTORY) == []
        assert embedded.count("GET", "/referrers/") == 0
        assert names(fresh, DIRECTORY) == [str(SIGNATURE.digest)]

    def test_a_walk_asks_for_all_in_parallel_and_one_look_for_one(self, opened: Open) -> None:
        contents = [image(bytes([number])) for number in range(8)]
        with Waiting(len(contents)) as registry:
            for number, content in enumerate(contents):
                load(registry, "app", str(number), content)
            one = f"/app/manifests/{contents[0].digest}/referrers"
            walking = opened(registry)
            assert len(names(walking, "/app/manifests")) == len(contents)
            assert names(walking, one) == []
        with EmbeddedRegistry() as registry:
            load(registry, "app", "latest", SUBJECT)
            load(registry, "app", "other", UNTYPED)
            assert names(opened(registry), DIRECTORY) == [str(UNTYPED.digest)]
            assert registry.count("GET", "/referrers/") == 1


class Waiting(EmbeddedRegistry):
    """Answers questions for referrers once so many have been asked at once."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.together = threading.Barrier(count)

    def respond(self, request: Request) -> Response:
        if "/referrers/" in request.path:
            self.together.wait(timeout=20)
        return super().respond(request)


class TestWithoutTheCall:
    @pytest.mark.parametrize("behaviour", [WITHOUT, EPOCH], ids=["plain", "epoch"])
    def test_the_index_under_the_manifests_tag_says(
        self, opened: Open, behaviour: Behaviour
    ) -> None:
        with EmbeddedRegistry(behaviour) as registry:
            furnish(registry)
            load(registry, "app", TAG, tagged(SIGNATURE, UNTYPED))
            found = names(opened(registry), DIRECTORY)
        assert found == sorted(map(str, (SIGNATURE.digest, UNTYPED.digest)))

    def test_the_call_is_tried_once_and_no_tag_that_is_not_listed(self, opened: Open) -> None:
        with EmbeddedRegistry(WITHOUT) as registry:
            others = [image(bytes([number])) for number in range(5)]
            for number, content in enumerate(others):
                load(registry, "app", str(number), content)
            view = opened(registry)
            for content in others:
                assert names(view, f"/app/manifests/{content.digest}/referrers") == []
            assert registry.count("GET", "/referrers/") == 1
            assert registry.count("", "/manifests/sha256-") == 0

    def test_a_tag_that_holds_something_else_lists_nothing(self, opened: Open) -> None:
        with EmbeddedRegistry(WITHOUT) as registry:
            furnish(registry)
            load(registry, "app", TAG, image(b"no index"))
            assert names(opened(registry), DIRECTORY) == []

    def test_a_manifest_that_is_said_to_refer_to_itself_is_left_out(self, opened: Open) -> None:
        with EmbeddedRegistry(WITHOUT) as registry:
            furnish(registry)
            load(registry, "app", TAG, tagged(SUBJECT, SIGNATURE))
            assert names(opened(registry), DIRECTORY) == [str(SIGNATURE.digest)]

    def test_a_walk_of_a_real_registry_does_not_fail(
        self, docker_registry: DockerRegistry, skopeo: Skopeo, mounts: Mounts
    ) -> None:
        skopeo.push(index(), docker_registry.host, "referrers/app")
        mount = mounts(f"{docker_registry.url}/referrers")
        found = subprocess.run(
            ["find", str(mount.path)], capture_output=True, text=True, timeout=60, check=True
        )
        assert found.stderr == ""
        assert found.stdout.count("/referrers") == 3
