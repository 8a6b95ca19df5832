"""What the specification's own conformance suite asks of a push, beyond the plain one.

The suite (`conformance/` of opencontainers/distribution-spec, in Go) is run by hand; these are its
checks of what has failed there.
"""

from __future__ import annotations

import json

import pytest
from support.builders import Content, image, index, load
from support.registries import EmbeddedRegistry
from support.wire import ask

from epochfs.demo.registry import Behaviour
from epochfs.demo.samples import CONFIG, descriptor, encode
from epochfs.oci.manifests import OCI_INDEX, OCI_MANIFEST
from epochfs.oci.names import Digest

UPLOADS = "/v2/a/blobs/uploads/"
ELSEWHERE = [
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
]


def put(registry: EmbeddedRegistry, reference: object, content: Content) -> int:
    path = f"/v2/a/manifests/{reference}"
    return ask(registry, "PUT", path, content.raw, Content_Type=content.media_type).status


# --- manifests that name what was not pushed --------------------------------------------------


@pytest.mark.parametrize("media_type", ELSEWHERE)
def test_a_layer_that_may_not_be_pushed_is_not_asked_for(
    embedded: EmbeddedRegistry, media_type: str
) -> None:
    config = b"{}"
    embedded.put_blob("a", config)
    layer = descriptor(b"a base", media_type, urls=["https://store.example/base"])
    raw = encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(config, CONFIG),
            "layers": [layer],
        }
    )
    content = Content(raw, OCI_MANIFEST)
    assert (put(embedded, "v1", content), put(embedded, content.digest, content)) == (201, 201)
    assert ask(embedded, "GET", "/v2/a/manifests/v1").body == raw


@pytest.mark.parametrize("behaviour", [Behaviour(), Behaviour(sparse="all")])
def test_an_index_may_be_sparse(behaviour: Behaviour) -> None:
    whole, lacking = image(architecture="amd64"), image(architecture="arm64")
    content = index(whole, lacking)
    with EmbeddedRegistry(behaviour) as registry:
        load(registry, "a", "", whole)
        assert put(registry, "v1", content) == 201
        assert ask(registry, "GET", "/v2/a/manifests/v1").body == content.raw
        assert ask(registry, "GET", f"/v2/a/manifests/{lacking.digest}").status == 404


@pytest.mark.parametrize(
    ("sparse", "content", "status"),
    [
        ("", index(), 400),
        ("", image(), 400),
        ("indexes", image(), 400),
        ("all", image(), 201),
    ],
)
def test_what_may_be_missing_is_a_switch(sparse: str, content: Content, status: int) -> None:
    with EmbeddedRegistry(Behaviour(sparse=sparse)) as registry:  # type: ignore[arg-type]
        path = "/v2/a/manifests/v1"
        answer = ask(registry, "PUT", path, content.raw, Content_Type=content.media_type)
        assert answer.status == status
        if status == 400:
            assert answer.code == "MANIFEST_BLOB_UNKNOWN"


# --- tags as parameters -----------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_manifest_pushed_by_digest_gets_the_tags_of_the_query(
    embedded: EmbeddedRegistry, algorithm: str
) -> None:
    content = index()
    digest = Digest.of(content.raw, algorithm)
    path = f"/v2/a/manifests/{digest}?tag=1.2&tag=1&tag=latest"
    answer = ask(embedded, "PUT", path, content.raw, Content_Type=OCI_INDEX)
    assert (answer.status, answer.headers["OCI-Tag"]) == (201, "1.2, 1, latest")
    assert json.loads(ask(embedded, "GET", "/v2/a/tags/list").body)["tags"] == [
        "1",
        "1.2",
        "latest",
    ]
    for tag in ("1", "1.2", "latest"):
        for method in ("GET", "HEAD"):
            got = ask(embedded, method, f"/v2/a/manifests/{tag}")
            assert got.headers["Docker-Content-Digest"] == str(digest)


def test_a_parameter_that_is_no_tag_is_refused(embedded: EmbeddedRegistry) -> None:
    content = index()
    path = f"/v2/a/manifests/{content.digest}?tag=good&tag=-bad"
    answer = ask(embedded, "PUT", path, content.raw, Content_Type=OCI_INDEX)
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")
    assert ask(embedded, "GET", "/v2/a/manifests/good").status == 404


def test_the_parameters_of_a_content_type_are_ignored(embedded: EmbeddedRegistry) -> None:
    given = f"{OCI_INDEX}; charset=utf-8"
    answer = ask(embedded, "PUT", "/v2/a/manifests/v1", index().raw, Content_Type=given)
    assert answer.status == 201
    assert ask(embedded, "GET", "/v2/a/manifests/v1").headers["Content-Type"] == OCI_INDEX


# --- chunks -----------------------------------------------------------------------------------


def test_a_last_chunk_out_of_order_is_refused_and_may_be_sent_again(
    embedded: EmbeddedRegistry,
) -> None:
    location = ask(embedded, "POST", UPLOADS).headers["Location"]
    ask(embedded, "PATCH", location, b"0123", Content_Range="0-3")
    closing = f"{location}?digest={Digest.of(b'0123456789')}"
    for place in ("0-5", "5-9", "100-105"):
        refused = ask(embedded, "PUT", closing, b"456789", Content_Range=place)
        assert (refused.status, refused.code) == (416, "BLOB_UPLOAD_INVALID")
        assert ask(embedded, "GET", location).headers["Range"] == "0-3"
    assert ask(embedded, "PUT", closing, b"456789", Content_Range="4-9").status == 201
