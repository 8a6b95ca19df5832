"""Options as users write them, and what follows from them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from epochfs.config import (
    Credentials,
    LayoutPath,
    ListingOptions,
    RegistryUrl,
    is_loopback,
    parse_seconds,
    parse_size,
)
from epochfs.errors import UsageError
from epochfs.oci.names import Digest, Reference, Tag


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1K", 1024),
        ("512M", 512 * 2**20),
        ("10G", 10 * 2**30),
        ("10g", 10 * 2**30),
        ("10GiB", 10 * 2**30),
        ("10GB", 10 * 2**30),
        ("1.5M", 3 * 2**19),
        ("2 T", 2**41),
        (" 7 ", 7),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "1X", "1e9", "10 G B", "1..5G", "NaN", "1\nG\n2", "9" * 400]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("60", 60),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("5m", 300),
        ("24h", 86400),
        ("1d", 86400),
    ],
)
def test_durations(text: str, expected: float) -> None:
    assert parse_seconds(text) == expected


@pytest.mark.parametrize("text", ["", "s", "-1", "1w", "1h30m", "inf", "nan", "9" * 400])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("text", "base", "prefix"),
    [
        ("", "http://127.0.0.1:8080", None),
        ("registry.example", "https://registry.example", None),
        ("registry.example:5000", "https://registry.example:5000", None),
        ("localhost:5000", "http://localhost:5000", None),
        ("127.0.0.1", "http://127.0.0.1", None),
        ("[::1]:5000", "http://[::1]:5000", None),
        ("https://localhost:5000/", "https://localhost:5000", None),
        ("http://registry.example", "http://registry.example", None),
        ("HTTP://Registry.Example/", "http://registry.example", None),
        ("https://registry.example/team/app/", "https://registry.example", "team/app"),
        ("ghcr.io/cocoonstack", "https://ghcr.io", "cocoonstack"),
        ("  ghcr.io  ", "https://ghcr.io", None),
    ],
)
def test_registry_urls(text: str, base: str, prefix: str | None) -> None:
    url = RegistryUrl.parse(text)
    assert url.base == base
    assert (str(url.prefix) if url.prefix else None) == prefix
    assert str(url) == (f"{base}/{prefix}" if prefix else base)


@pytest.mark.parametrize(
    "text",
    [
        "ftp://registry.example",
        "file:///etc/passwd",
        "http://",
        "http://registry.example:port",
        "http://registry.example:99999",
        "http://registry.example/?q=1",
        "http://registry.example/#x",
        "http://registry.example/a//b",
        "http://registry.example/../etc",
        "http://[::1",
        "[::1",
        "http://[fe80::1%eth0]",
        "http://registry.ex\u00e4mple",
        "http://registry\x1b[2J.example",
        "registry\0.example",
    ],
)
def test_what_is_no_registry_url_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        RegistryUrl.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://me:secret@registry.example",
        "me:secret@registry.example",
        "https://me:secret@registry.example:80a/",
        "https://me:secret@registry.example:99999",
        "https://me:a/secret@registry.example",
        "me:a?secret@[registry.example",
        "https://me:secret\uff20registry.example",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="--username") as raised:
        RegistryUrl.parse(text)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["https://reg.example?token=secret", "reg.example/a#secret", "ftp://reg.example?secret"]
)
def test_a_refused_url_is_shown_without_its_query(text: str) -> None:
    with pytest.raises(UsageError, match=r"reg\.example") as raised:
        RegistryUrl.parse(text)
    assert "secret" not in str(raised.value)


DIGEST = Digest.of(b"x")


@pytest.mark.parametrize(
    ("text", "prefix", "reference"),
    [
        ("reg.example/app:1.0", "app", Tag("1.0")),
        ("reg.example:5000/team/app:latest", "team/app", Tag("latest")),
        (f"https://reg.example/team/app@{DIGEST}", "team/app", DIGEST),
        (f"reg.example/app:1.0@{DIGEST}", "app", DIGEST),
        ("reg.example:5000/app", "app", None),
        ("localhost:5000", None, None),
        ("[::1]:5000/app:v1", "app", Tag("v1")),
    ],
)
def test_a_url_may_name_one_artifact(
    text: str, prefix: str | None, reference: Reference | None
) -> None:
    url = RegistryUrl.parse(text)
    assert (str(url.prefix) if url.prefix else None, url.reference) == (prefix, reference)
    assert RegistryUrl.parse(str(url)) == url


@pytest.mark.parametrize(
    "text", ["app:latest", "reg.example/app:", "reg.example/:v1", f"reg.example@{DIGEST}"]
)
def test_a_reference_needs_a_host_a_repository_and_a_name(text: str) -> None:
    with pytest.raises(UsageError):
        RegistryUrl.parse(text)


def test_a_layout_may_name_one_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    layout = tmp_path / "a"
    for text, expected in {
        "a": LayoutPath(layout),
        "a:v1": LayoutPath(layout, "v1"),
        "a:library/app:1.0": LayoutPath(layout, "library/app:1.0"),
        f"a@{DIGEST}": LayoutPath(layout, digest=DIGEST),
        "none:v1": LayoutPath(tmp_path / "none:v1"),
    }.items():
        assert LayoutPath.parse(text) == expected
        assert str(expected) == f"oci:{tmp_path}/{text}"
    (tmp_path / "a:v1").mkdir()
    with pytest.raises(UsageError, match=r"can mean the directory .* and 'v1' in"):
        LayoutPath.parse("a:v1")


@pytest.mark.parametrize("host", ["localhost", "x.localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "localhost.example", "notlocalhost", "10.0.0.1", "0.0.0.0", "127.0.0.1.example"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_credentials_are_not_shown() -> None:
    shown = repr(Credentials(username="me", password="secret", token="token"))
    assert "me" not in shown.replace("Credentials", "").replace("token_file=None", "")
    assert "secret" not in shown


@pytest.mark.parametrize("ttl", [0.0, 1.0, 10.0, 60.0, 3600.0])
def test_kernel_and_listing_together_stay_within_the_ttl(ttl: float) -> None:
    options = ListingOptions(metadata_ttl=ttl)
    assert 0 <= options.kernel_ttl <= 5
    assert options.kernel_ttl + options.listing_ttl == pytest.approx(ttl)


def test_a_mirror_gets_no_credential_that_was_given_for_the_registry() -> None:
    sample: dict[object, Any] = {
        "str": "canary",
        "Path | None": Path("canary"),
        "tuple[Path, ...]": (Path("login-file"),),
    }
    given = Credentials(**{one.name: sample[one.type] for one in fields(Credentials)})
    shared = given.for_other_hosts()
    assert shared == Credentials(auth_files=given.auth_files, prefix=given.prefix)
