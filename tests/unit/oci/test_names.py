"""Names: what is accepted comes back unchanged, and what could harm a path is refused."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epochfs.errors import EpochfsError, InvalidName
from epochfs.oci.names import (
    MAX_REPOSITORY_BYTES,
    MAX_SEGMENT_BYTES,
    Digest,
    Repository,
    Tag,
    checked_title,
    labels,
)

HEX = "0123456789abcdef"

segments = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-+)[a-z0-9]{1,5}){0,2}", fullmatch=True)
repositories = st.lists(segments, min_size=1, max_size=6).map("/".join)
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", fullmatch=True)
digests = st.one_of(
    st.text(HEX, min_size=64, max_size=64).map("sha256:{}".format),
    st.text(HEX, min_size=128, max_size=128).map("sha512:{}".format),
)

HOSTILE = {
    "dot": ".",
    "dot-dot": "..",
    "empty": "",
    "nul": "a\0b",
    "newline": "a\nb",
    "escape": "a\x1b[2Jb",
    "delete": "a\x7f",
    "c1 control": "a\x9bb",
    "right-to-left override": "a\u202eb",
    "line separator": "a\u2028b",
    "lone surrogate": "a\udcffb",
    "255 bytes": "a" * 255,
    "255 bytes in fewer characters": "é" * 128,
    "1 MiB": "a" * 2**20,
}
hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())


@given(repositories)
def test_a_repository_of_the_grammar_round_trips(text: str) -> None:
    repository = Repository.parse(text)
    assert str(repository) == text
    assert "/".join(repository.segments) == text
    assert repository.conforms


@given(tags)
def test_a_tag_of_the_grammar_round_trips(text: str) -> None:
    tag = Tag.parse(text)
    assert str(tag) == text
    assert tag.conforms


@given(digests)
def test_a_digest_round_trips(text: str) -> None:
    digest = Digest.parse(text)
    assert str(digest) == text
    assert text == f"{digest.algorithm}:{digest.encoded}"


@given(st.text())
def test_whatever_is_accepted_is_safe_in_a_path(text: str) -> None:
    try:
        segments = Repository.parse(text).segments
    except InvalidName:
        return
    for segment in segments:
        assert segment not in ("", ".", "..")
        assert 0 < len(segment.encode()) <= MAX_SEGMENT_BYTES
        assert segment.isprintable()
        assert "/" not in segment


@hostile
def test_a_hostile_tag_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        Tag.parse(text)


@hostile
@pytest.mark.parametrize("around", ["{}", "a/{}", "{}/a", "a/{}/b"])
def test_a_hostile_segment_of_a_repository_is_refused(text: str, around: str) -> None:
    with pytest.raises(InvalidName):
        Repository.parse(around.format(text))


@pytest.mark.parametrize("text", ["/x", "x/", "a//b", "/", "../../etc", "a/b/../../../c"])
def test_a_repository_that_leaves_its_place_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        Repository.parse(text)


def test_a_tag_with_a_slash_is_refused() -> None:
    with pytest.raises(InvalidName):
        Tag.parse("a/b")


@pytest.mark.parametrize("value", [None, 7, 1.5, b"a", ["a"], {"a": 1}, True])
def test_what_is_no_text_is_refused(value: object) -> None:
    for parse in (Repository.parse, Tag.parse, Digest.parse):
        with pytest.raises(InvalidName):
            parse(value)  # type: ignore[arg-type]


def test_limits_are_inclusive() -> None:
    assert Tag.parse("a" * MAX_SEGMENT_BYTES)
    longest = "/".join(["a" * 127] * 16) + "a"
    assert len(longest) == MAX_REPOSITORY_BYTES
    assert Repository.parse(longest)
    for longer in (longest + "a", longest.replace("a/a", "a/é", 1)):
        with pytest.raises(InvalidName):
            Repository.parse(longer)


@pytest.mark.parametrize("text", ["Upper", "a b", "ünïcode", "_catalog", "a___b", "-a", "a."])
def test_names_outside_the_grammar_are_accepted_but_do_not_conform(text: str) -> None:
    """Epoch does not validate names, so such repositories exist."""
    assert not Repository.parse(text).conforms
    assert not Repository.parse(f"a/{text}").conforms


@pytest.mark.parametrize("text", [".hidden", "-v", "a b", "é", "a" * 129])
def test_tags_outside_the_grammar_are_accepted_but_do_not_conform(text: str) -> None:
    assert not Tag.parse(text).conforms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:../../x",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "0" * 64 + "\n",
        "sha256:" + "\u0660" * 64,
        " sha256:" + "0" * 64,
        "sha256:sha256:" + "0" * 64,
        "SHA256:" + "0" * 64,
        "sha512:" + "0" * 64,
        "md5:" + "0" * 32,
        "sha256+b64:" + "0" * 64,
        ":" + "0" * 64,
        "0" * 64,
        pytest.param("sha256:" + "0" * 10_000_000, id="10 MB"),
    ],
)
def test_a_hostile_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        Digest.parse(text)


@pytest.mark.parametrize("parse", [Repository.parse, Tag.parse, Digest.parse])
@pytest.mark.parametrize("text", ["\n\x1b[31m\0/..", "\udcff/\n", "x\n" * 2**20 + "/"])
def test_a_refusal_is_one_short_line_of_ascii(parse: object, text: str) -> None:
    assert callable(parse)
    with pytest.raises(EpochfsError) as raised:
        parse(text)
    message = str(raised.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@given(data=st.binary())
def test_a_digest_is_of_its_data(algorithm: str, data: bytes) -> None:
    digest = Digest.of(data, algorithm)
    assert digest.encoded == hashlib.new(algorithm, data).hexdigest()
    assert Digest.parse(str(digest)) == digest
    assert digest.matches(data)
    assert not digest.matches(data + b"\0")
    hasher = digest.hasher()
    hasher.update(data)
    assert hasher.hexdigest() == digest.encoded


def test_names_are_values() -> None:
    assert Repository.parse("a/b") == Repository.parse("a/b")
    assert len({Tag.parse("v1"), Tag.parse("v1"), Tag.parse("v2")}) == 2
    assert sorted([Tag.parse("b"), Tag.parse("a")])[0] == Tag.parse("a")


class TestTitles:
    @pytest.mark.parametrize(
        "text", ["README.md", "docs/a b/ü.txt", "...", "-", "a" * 255, "~", "d/" * 32 + "a"]
    )
    def test_harmless_paths_are_titles(self, text: str) -> None:
        assert checked_title(text) == text

    @pytest.mark.parametrize(
        "text",
        [
            "",
            ".",
            "..",
            "/etc/x",
            "../../etc/x",
            "a/../b",
            "a/./b",
            "a//b",
            "a/",
            "a\0",
            "a\nb",
            "\x1b[2J",
            "\ud800",
            "a" * 256,
            "/".join(["a"] * 600),
            "d/" * 33 + "a",
            "ü" * 128,
            f"sha256:{'0' * 64}",
            f"sha256:{'0' * 64}/x",
        ],
        ids=lambda text: ascii(text)[:30],
    )
    def test_what_could_lead_elsewhere_is_none(self, text: str) -> None:
        with pytest.raises(InvalidName):
            checked_title(text)

    def test_a_label_is_the_title_then_with_the_digest_then_the_digest(self) -> None:
        digest = Digest.of(b"")
        assert list(labels("a", digest)) == ["a", f"a@{digest}", str(digest)]
        assert list(labels("a" * 250, digest)) == ["a" * 250, str(digest)]
        assert list(labels("../a", digest)) == [str(digest)]
