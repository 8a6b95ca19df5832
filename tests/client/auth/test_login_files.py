"""What is found in the files of docker and podman, for which registry and repository."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epochfs.client.auth import CredentialStore
from epochfs.client.auth.login_files import MAX_FILE_BYTES, AuthFile, Login
from epochfs.config import Credentials
from epochfs.errors import CredentialsUnavailable, Denied

HUB = "https://index.docker.io/v1/"
NOW = float("inf")


def pair(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def auths(**entries: str) -> dict[str, object]:
    """A file's content: each key is a registry's, and its value `user:password`."""
    return {"auths": {key: pair(value) for key, value in entries.items()}}


def write(path: Path, content: object) -> Path:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(text)
    return path


def login(*files: Path, url: str = "https://reg.example", repository: str = "") -> Login | None:
    return CredentialStore(Credentials(auth_files=files), url).login(repository, NOW)


def user(*files: Path, **where: str) -> str:
    """Whose credentials are found; "" if there are none."""
    found = login(*files, **where)
    return found.username if found else ""


# Keys


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("team/app/web", "web"),
        ("team/app/web/deep", "web"),
        ("team/app", "team"),
        ("team/app/webmail", "team"),
        ("team", "team"),
        ("teammates", "all"),
        ("", "all"),
    ],
)
def test_the_longest_key_at_a_slash_counts(tmp_path: Path, repository: str, expected: str) -> None:
    content = {
        "reg.example": "all:p",
        "reg.example/team": "team:p",
        "reg.example/team/app/web": "web:p",
        "reg.example:5000/team/app": "other:p",
    }
    assert user(write(tmp_path / "f", auths(**content)), repository=repository) == expected


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("reg.example", "https://reg.example"),
        ("REG.example", "https://reg.example"),
        ("reg.example:443", "https://reg.example"),
        ("reg.example", "https://reg.example:443"),
        ("reg.example:80", "http://reg.example"),
        ("reg.example:5000", "http://reg.example:5000"),
        ("https://reg.example", "https://reg.example"),
        ("https://reg.example/v2/", "https://reg.example"),
        ("http://reg.example:5000/v1/", "https://reg.example:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        (HUB, "https://registry-1.docker.io"),
        ("docker.io", "https://registry-1.docker.io"),
        ("index.docker.io", "https://docker.io"),
        ("docker.io/library", "https://index.docker.io"),
    ],
)
def test_a_registry_has_more_than_one_name(tmp_path: Path, key: str, url: str) -> None:
    assert user(write(tmp_path / "f", auths(**{key: "me:p"})), url=url, repository="library/x")


@pytest.mark.parametrize(
    "key", ["reg.example:5000", "example", "xreg.example", "reg.example.org", "http://other/", ""]
)
def test_the_key_of_another_registry_does_not_count(tmp_path: Path, key: str) -> None:
    assert not user(write(tmp_path / "f", auths(**{key: "me:p"})), repository="library/x")


def test_a_plain_key_counts_before_a_url(tmp_path: Path) -> None:
    for keys in (
        ("reg.example", "https://reg.example/v1/"),
        ("https://reg.example", "reg.example"),
    ):
        content = {key: f"{'url' if '//' in key else 'plain'}:p" for key in keys}
        assert user(write(tmp_path / "f", auths(**content))) == "plain"


# Files


def test_base64_with_line_ends_is_taken(tmp_path: Path) -> None:
    encoded = base64.encodebytes(b"user:" + b"p" * 200).decode()
    assert encoded.count("\n") > 2
    for broken in (encoded, encoded.replace("\n", "\r\n"), f" {encoded}\t"):
        found = login(write(tmp_path / "f", {"auths": {"reg.example": {"auth": broken}}}))
        assert found is not None
        assert found.password == "p" * 200


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "cp1252"])
def test_a_password_is_sent_in_the_encoding_in_which_it_is_kept(
    tmp_path: Path, encoding: str
) -> None:
    pair = "müller:geheim€§"[: -2 if encoding == "latin-1" else None].encode(encoding)
    encoded = base64.b64encode(pair).decode()
    found = login(write(tmp_path / "f", {"auths": {"reg.example": {"auth": encoded}}}))
    assert found is not None
    assert found.basic() == f"Basic {encoded}"
    assert str(found).isascii()


def test_the_first_file_that_has_an_answer_counts(tmp_path: Path) -> None:
    other = write(tmp_path / "other", auths(**{"other.example": "other:p"}))
    empty = write(tmp_path / "empty", {"auths": {"reg.example": {}}})
    first = write(tmp_path / "first", auths(**{"reg.example": "first:p"}))
    second = write(tmp_path / "second", auths(**{"reg.example/team": "second:p"}))
    found = login(tmp_path / "none" / "such", other, empty, first, second, repository="team")
    assert found == Login(f"from {first}", "first", "p")
    assert str(found) == f"as first, from {first}"


def test_what_is_given_comes_before_all_files(tmp_path: Path) -> None:
    file = write(tmp_path / "f", auths(**{"reg.example": "file:p"}))
    store = CredentialStore(Credentials("given", "p", auth_files=(file,)), "https://reg.example")
    assert store.login("", NOW) == Login("as given", "given", "p")
    token = Credentials(token="t", auth_files=(file,))
    store = CredentialStore(token, "https://reg.example")
    assert store.login("", NOW) == Login("with a token, as given", token="t")
    empty = Credentials(token_file=write(tmp_path / "empty", b""), auth_files=(file,))
    with pytest.raises(CredentialsUnavailable, match="empty"):
        CredentialStore(empty, "https://reg.example").login("", NOW)


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    store = CredentialStore(Credentials(auth_files=(path,)), "https://reg.example")
    assert store.login("", NOW) is None
    for name in ("first", "other", "third"):
        write(tmp_path / "new", auths(**{"reg.example": f"{name}:p"}))
        (tmp_path / "new").replace(path)
        found = store.login("", NOW)
        assert found is not None
        assert found.username == name
    path.unlink()
    assert store.login("", NOW) is None


def test_what_is_remembered_of_a_file_is_remembered_by_repository(tmp_path: Path) -> None:
    content = auths(**{"reg.example/a": "alice:p", "reg.example/b": "bob:p"})
    given = Credentials(auth_files=(write(tmp_path / "f", content),))
    store = CredentialStore(given, "https://reg.example")
    for _ in range(2):
        found = [store.login(repository, NOW) for repository in ("a", "b", "c")]
        assert [login and login.username for login in found] == ["alice", "bob", None]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (pair("user:pa:ss"), Login("", "user", "pa:ss")),
        (pair("üser:pässwörd"), Login("", "üser", "pässwörd")),
        (pair("user:secret\0\0"), Login("", "user", "secret")),
        ({"username": "user", "password": "secret"}, Login("", "user", "secret")),
        ({**pair("user:"), "identitytoken": "refresh"}, Login("", "user", "", "refresh")),
        ({"identitytoken": "refresh"}, Login("", "", "", "refresh")),
        ({**pair("a:b"), "username": None, "email": 7}, Login("", "a", "b")),
    ],
)
def test_entries_are_read(tmp_path: Path, entry: object, expected: Login) -> None:
    found = login(write(tmp_path / "f", {"auths": {"reg.example": entry}}))
    assert found is not None
    assert (found.username, found.password, found.identity_token) == (
        expected.username,
        expected.password,
        expected.identity_token,
    )


@pytest.mark.parametrize(
    "entry",
    [
        {},
        None,
        pair("user:"),
        pair(":"),
        pair("user:\0\0"),
        {"auth": ""},
        {"auth": None, "identitytoken": ""},
        {"username": "user"},
        {"username": "user", "password": ""},
        {"email": "user@example.org"},
    ],
)
@pytest.mark.parametrize("repository", ["", "team/app"])
def test_an_entry_without_a_secret_is_denied_by_its_file_and_name(
    tmp_path: Path, entry: object, repository: str
) -> None:
    file = write(tmp_path / "the-file", {"auths": {"reg.example": entry}})
    expected = f"'{file}' cannot be used: the entry of reg.example is empty: log in again"
    with pytest.raises(CredentialsUnavailable, match=expected):
        login(file, repository=repository)
    assert login(file, url="https://other.example") is None


def test_another_entry_or_file_may_have_what_an_empty_entry_has_not(tmp_path: Path) -> None:
    content = auths(**{"reg.example": "all:p", "other.example": "other:p"})
    content["auths"]["reg.example/team"] = {}  # type: ignore[index]
    file = write(tmp_path / "f", content)
    assert user(file, repository="team/app") == "all"
    empty = write(tmp_path / "empty", {"auths": {"reg.example": {}}})
    assert user(empty, file, repository="team/app") == "all"
    with pytest.raises(CredentialsUnavailable, match=str(empty)):
        login(empty, write(tmp_path / "none", {}))


def test_what_else_docker_keeps_of_a_login_to_its_hub_is_not_taken_for_it(tmp_path: Path) -> None:
    entries = {HUB: "me:p", f"{HUB}access-token": "me:long", f"{HUB}refresh-token": "me:longer"}
    for order in (list(entries), list(reversed(entries))):
        file = write(tmp_path / "f", auths(**{key: entries[key] for key in order}))
        found = login(file, url="https://registry-1.docker.io")
        assert found is not None
        assert found.password == "p"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"{geheim",
        b"[" * 100_000,
        b"[]",
        {"auths": ["geheim"]},
        {"credHelpers": "geheim"},
        {"credsStore": {"geheim": 1}},
        {"credHelpers": {"reg.example": 7}},
        {"auths": {"reg.example": "geheim"}},
        {"auths": {"reg.example": {"auth": "geheim"}}},
        {"auths": {"reg.example": {"auth": "!geheim!"}}},
        {"auths": {"reg.example": {"auth": 7}}},
        {"auths": {"reg.example": {"username": "geheim", "password": ["x"]}}},
        {"auths": {"reg.example": {"username": "geheim", "password": "\ud800"}}},
    ],
)
def test_a_malformed_file_is_denied_by_name_and_not_shown(tmp_path: Path, content: object) -> None:
    with pytest.raises(Denied) as caught:
        login(write(tmp_path / "the-file", content))
    assert "the-file" in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_a_file_that_is_none_is_denied(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    large = write(tmp_path / "large", b" " * (MAX_FILE_BYTES + 1))
    for path in (tmp_path, tmp_path / "fifo", large):
        with pytest.raises(Denied):
            login(path)


def test_a_malformed_entry_of_another_registry_does_no_harm(tmp_path: Path) -> None:
    content = {"auths": {"other.example": {"auth": "!"}, "reg.example": pair("me:p")}}
    assert user(write(tmp_path / "f", content)) == "me"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "auths": JSON
            | st.dictionaries(
                st.sampled_from(["reg.example", "reg.example/a", "https://reg.example"]),
                JSON | st.fixed_dictionaries({}, optional={"auth": JSON, "identitytoken": JSON}),
            ),
            "credHelpers": JSON | st.dictionaries(st.just("reg.example"), JSON),
            "credsStore": JSON,
        },
    )
    | JSON
)
def test_no_content_breaks_the_parser(content: object) -> None:
    with contextlib.suppress(Denied):
        file = AuthFile.parse(Path("f"), json.dumps(content).encode())
        list(file.find(["reg.example", "reg.example:443"], "a/b"))


@given(st.binary(max_size=100))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    with contextlib.suppress(Denied):
        AuthFile.parse(Path("f"), raw)
