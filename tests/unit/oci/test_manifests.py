"""Manifests and indexes: a validated view, however the bytes were made."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import SCHEMA1, image, index, signed

from epochfs.demo.samples import descriptor, encode
from epochfs.errors import ProtocolViolation
from epochfs.oci.manifests import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_SIZE,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    Document,
    Index,
    Manifest,
    digest_matches,
    load_json,
    parse,
    payload,
)
from epochfs.oci.names import Digest

BLOB = descriptor(b"content", "application/octet-stream")


def manifest(**fields: object) -> bytes:
    return encode({"schemaVersion": 2, "config": BLOB, "layers": [BLOB], **fields})


def test_an_image_manifest() -> None:
    content = image(b"one", b"two", annotations={"key": "value"})
    view = parse(content.raw)
    assert isinstance(view, Manifest)
    assert view.config is not None
    assert view.config.digest == Digest.of(content.blobs[0])
    assert [layer.size for layer in view.layers] == [3, 3]
    assert dict(view.annotations) == {"key": "value"}
    assert (view.subject, view.artifact_type) == (None, "")


def test_an_index() -> None:
    content = index()
    view = parse(content.raw)
    assert isinstance(view, Index)
    assert [child.digest for child in view.manifests] == [c.digest for c in content.children]
    assert [child.platform for child in view.manifests] == [
        {"os": "linux", "architecture": "amd64"},
        {"os": "linux", "architecture": "arm64"},
    ]


def test_an_artifact_with_a_subject() -> None:
    raw = manifest(subject=descriptor(b"subject", OCI_MANIFEST), artifactType="application/x.y")
    view = parse(raw)
    assert view.subject is not None
    assert view.subject.digest == Digest.of(b"subject")
    assert view.artifact_type == "application/x.y"


@pytest.mark.parametrize("media_type", [DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, "x"])
def test_the_fields_decide_what_a_document_is_not_its_type(media_type: str) -> None:
    assert isinstance(parse(manifest(mediaType=media_type)), Manifest)
    assert isinstance(parse(encode({"mediaType": media_type, "manifests": []})), Index)


def test_null_is_the_same_as_absent() -> None:
    view = parse(b'{"config": null, "layers": null, "subject": null, "annotations": null}')
    assert view == Manifest(None, (), None, "", {})


def test_an_annotation_that_is_null_is_none() -> None:
    view = parse(manifest(annotations={"a": None, "b": "c"}))
    assert dict(view.annotations) == {"b": "c"}
    view = parse(manifest(layers=[{**BLOB, "annotations": {"a": None}}]))
    assert isinstance(view, Manifest)
    assert dict(view.layers[0].annotations) == {}


def test_the_layers_of_an_artifact_manifest_are_its_blobs() -> None:
    artifact = {
        "mediaType": OCI_ARTIFACT,
        "artifactType": "application/x.sbom",
        "blobs": [BLOB, BLOB],
        "subject": descriptor(b"subject", OCI_MANIFEST),
        "annotations": {"a": "b"},
    }
    view = parse(encode(artifact))
    assert isinstance(view, Manifest)
    assert view.config is None
    assert [layer.digest for layer in view.layers] == [Digest.of(b"content")] * 2
    assert view.artifact_type == "application/x.sbom"
    assert view.subject is not None
    assert view.subject.digest == Digest.of(b"subject")
    assert dict(view.annotations) == {"a": "b"}
    del artifact["blobs"]
    assert parse(encode(artifact)) == replace(view, layers=())


@pytest.mark.parametrize("other", ["layers", "config", "manifests"])
def test_an_artifact_manifest_is_nothing_else_besides(other: str) -> None:
    with pytest.raises(ProtocolViolation):
        parse(encode({"mediaType": OCI_ARTIFACT, "blobs": [BLOB], other: None}))


# Digests


def test_a_manifest_has_the_digest_of_its_bytes() -> None:
    raw = image().raw
    assert payload(raw) is raw
    for algorithm in ("sha256", "sha512"):
        assert digest_matches(Digest.of(raw, algorithm), raw)
        assert not digest_matches(Digest.of(raw + b"\n", algorithm), raw)


@pytest.mark.parametrize("options", [{}, {"signatures": 3}, {"tail": 1}])
def test_a_signed_manifest_has_the_digest_of_its_payload_too(options: dict[str, Any]) -> None:
    raw, unsigned = signed(**options)
    assert payload(raw) == unsigned
    assert digest_matches(Digest.of(unsigned), raw)
    assert digest_matches(Digest.of(raw), raw)
    assert not digest_matches(Digest.of(b"another"), raw)
    assert payload(unsigned) is unsigned


FALSELY_SIGNED: dict[str, dict[str, Any]] = {
    "layers beside the signatures": {"besides": b', "layers": []'},
    "another tag beside the signatures": {"besides": b', "tag": "stable"'},
    "manifests beside the signatures": {"besides": b', "manifests": []'},
    "schema 2": {"document": {**SCHEMA1, "schemaVersion": 2}},
    "no schema": {"document": {"layers": []}},
    "no signature": {"signatures": 0},
    "another length": {"formatLength": 20},
    "a negative length": {"formatLength": -1},
    "a length beyond the end": {"formatLength": 10**6},
    "a length that is text": {"formatLength": "20"},
    "a length that is a list": {"formatLength": []},
    "a tail that is no base64": {"formatTail": "?"},
    "a tail that is a number": {"formatTail": 7},
    "a tail that is a list": {"formatTail": []},
    "a tail of more": {"formatTail": "LCAidGFnIjogInN0YWJsZSJ9"},
}


@pytest.mark.parametrize("options", FALSELY_SIGNED.values(), ids=FALSELY_SIGNED.keys())
def test_what_is_not_signed_as_it_says_has_the_digest_of_its_bytes(
    options: dict[str, Any],
) -> None:
    """Or a signature could bring in content that has another digest, or none."""
    raw, unsigned = signed(**options)
    assert payload(raw) is raw
    assert not digest_matches(Digest.of(unsigned), raw)
    assert digest_matches(Digest.of(raw), raw)


@pytest.mark.parametrize(
    "signatures",
    [None, 7, "x", {}, [7], [{}], [{"protected": 7}], [{"protected": "?"}], [{"protected": "W10"}]],
)
def test_signatures_of_the_wrong_shape_are_none(signatures: object) -> None:
    raw = encode({**SCHEMA1, "signatures": signatures})
    assert payload(raw) is raw


def test_signatures_that_disagree_are_none() -> None:
    one, two = (json.loads(signed(tail=tail)[0])["signatures"][0] for tail in (1, 2))
    raw = encode({**SCHEMA1, "signatures": [one, two]})
    assert payload(raw) is raw


@given(st.binary())
def test_any_bytes_have_their_own_digest(raw: bytes) -> None:
    for text in (raw, b'{"signatures"' + raw):
        assert digest_matches(Digest.of(text), text)


def test_a_document_keeps_its_bytes_and_parses_them_when_asked() -> None:
    raw = manifest().replace(b",", b" ,\n")
    document = Document(Digest.of(raw), OCI_MANIFEST, raw)
    assert document.raw is raw
    assert document.size == len(raw)
    assert document.view is document.view
    broken = Document(Digest.of(b"{"), OCI_MANIFEST, b"{")
    with pytest.raises(ProtocolViolation):
        _ = broken.view


HOSTILE_JSON = {
    "nothing": b"",
    "truncated": b'{"layers": [',
    "nested 100,000 deep in lists": b"[" * 100_000 + b"]" * 100_000,
    "nested 100,000 deep in objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a key twice": b'{"layers": [], "layers": []}',
    "a key twice, deeper": b'{"layers": [], "annotations": {"a": "1", "a": "2"}}',
    "NaN": b'{"layers": [], "x": NaN}',
    "Infinity": b'{"layers": [], "x": -Infinity}',
    "a byte order mark": b'\xef\xbb\xbf{"layers": []}',
    "UTF-16": '{"layers": []}'.encode("utf-16"),
    "not UTF-8": b'{"layers": [], "x": "\xff"}',
    "a 10,000-digit number": b'{"layers": [], "x": ' + b"9" * 10_000 + b"}",
    "two documents": b'{"layers": []}{"layers": []}',
}


@pytest.mark.parametrize("raw", HOSTILE_JSON.values(), ids=HOSTILE_JSON.keys())
def test_hostile_json_is_refused(raw: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(ProtocolViolation, match="JSON") as raised:
        load_json(raw)
    with pytest.raises(ProtocolViolation):
        parse(raw)
    assert time.monotonic() - started < 2
    assert len(str(raised.value)) < 400
    assert str(raised.value).isprintable()


HOSTILE_DOCUMENTS: dict[str, Any] = {
    "null": None,
    "a list": [],
    "a number": 7,
    "neither kind": {},
    "both kinds": {"layers": [], "manifests": []},
    "a config and manifests": {"config": BLOB, "manifests": []},
    "layers that are an object": {"layers": {}},
    "layers that are text": {"layers": "abc"},
    "manifests that are a number": {"manifests": 3},
    "a layer that is null": {"layers": [None]},
    "a layer that is a list": {"layers": [[]]},
    "a config that is text": {"config": "sha256:", "layers": []},
    "a subject that is a number": {"layers": [], "subject": 1},
    "an artifactType that is a list": {"layers": [], "artifactType": []},
    "annotations that are a list": {"layers": [], "annotations": []},
    "an annotation that is a number": {"layers": [], "annotations": {"a": 1}},
    "an annotation that is an object": {"layers": [], "annotations": {"a": {}}},
    "a platform that is text": {"manifests": [{**BLOB, "platform": "linux/amd64"}]},
    "a mediaType that is a number": {"layers": [{**BLOB, "mediaType": 1}]},
}


@pytest.mark.parametrize("document", HOSTILE_DOCUMENTS.values(), ids=HOSTILE_DOCUMENTS.keys())
def test_a_document_of_the_wrong_shape_is_refused(document: Any) -> None:
    with pytest.raises(ProtocolViolation):
        parse(json.dumps(document).encode())


@pytest.mark.parametrize(
    "size", [-1, 2**63, 1.5, "7", 2**60, MAX_SIZE + 1, None, True, [], 1e3, -0.0]
)
def test_an_unbelievable_size_is_refused(size: object) -> None:
    with pytest.raises(ProtocolViolation, match="not a content size"):
        parse(manifest(layers=[{**BLOB, "size": size}]))


@pytest.mark.parametrize("size", [0, 1, MAX_SIZE])
def test_a_believable_size_is_kept(size: int) -> None:
    view = parse(manifest(layers=[{**BLOB, "size": size}]))
    assert isinstance(view, Manifest)
    assert view.layers[0].size == size


@pytest.mark.parametrize(
    "digest", [None, 7, "", "sha256:../../x", "sha256:" + "A" * 64, "md5:" + "0" * 32, ["sha256"]]
)
def test_a_descriptor_without_a_digest_is_refused(digest: object) -> None:
    with pytest.raises(ProtocolViolation, match="digest"):
        parse(manifest(layers=[{**BLOB, "digest": digest}]))
    with pytest.raises(ProtocolViolation, match="digest"):
        parse(encode({"manifests": [{**BLOB, "digest": digest}]}))


def test_a_layers_urls_are_not_in_the_view() -> None:
    view = parse(manifest(layers=[{**BLOB, "urls": ["file:///etc/passwd"]}]))
    assert "passwd" not in repr(view)


def test_annotations_cannot_be_changed() -> None:
    view = parse(manifest(annotations={"a": "b"}))
    with pytest.raises(TypeError):
        view.annotations["a"] = "c"  # type: ignore[index]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
FIELDS = (
    "config",
    "layers",
    "manifests",
    "subject",
    "annotations",
    "artifactType",
    "digest",
    "size",
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON | st.just([BLOB]) | st.just(BLOB)))
def test_any_document_is_parsed_or_refused(document: dict[str, Any]) -> None:
    try:
        view = parse(json.dumps(document).encode())
    except ProtocolViolation:
        return
    assert isinstance(view, Manifest | Index)


@given(st.binary())
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        parse(raw)


def test_what_schema_1_names_is_known_without_sizes() -> None:
    one, two = Digest.of(b"one"), Digest.of(b"two")
    layers = [{"blobSum": str(digest)} for digest in (one, two, one)]
    view = parse(encode({**SCHEMA1, "fsLayers": layers}))
    assert isinstance(view, Manifest)
    assert (view.config, view.layers, view.unsized) == (None, (), (one, two))
