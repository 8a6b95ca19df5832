"""Credentials, certificates and the server, as the command line and the environment give them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.invocation import given, no_environment, plans, the_line

from epochfs.cli import main
from epochfs.cli.mount import MountSettings
from epochfs.cli.options import registry_url
from epochfs.client.auth.login_files import MAX_PASSWORD_BYTES

# --- environment and credentials --------------------------------------------------------------


_no_environment = pytest.fixture(autouse=True)(no_environment)
planned = pytest.fixture(plans)


def test_the_environment_names_the_server_and_the_certificates(
    planned: list[MountSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("")
    directory = tmp_path / "mnt"
    directory.mkdir()
    monkeypatch.setenv("EPOCH_SERVER", "https://epoch.example/")
    monkeypatch.setenv("EPOCH_CA_CERT", str(authority))
    assert main(["mount", str(directory)]) == 0
    assert str(planned[0].url) == "https://epoch.example"
    assert planned[0].connection.transport.ca_certs == (authority,)
    assert planned[0].connection.transport.tls_verify is True


def test_a_wrong_server_in_the_environment_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EPOCH_SERVER", "ftp://x")
    assert main(["mount", str(tmp_path)]) == 2
    assert "EPOCH_SERVER: not a registry URL" in the_line(capsys)
    assert registry_url("http://given").base == "http://given"


def test_the_token_leaves_the_environment(
    planned: list[MountSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPOCH_REGISTRY_TOKEN", "canary")
    assert main(["mount", str(tmp_path)]) == 0
    assert planned[0].connection.credentials == given(token="canary")
    assert "canary" not in repr(planned[0])
    assert "EPOCH_REGISTRY_TOKEN" not in os.environ


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"a b", "a b"),
        (b"a\n", "a"),
        (b"a\r\n", "a"),
        (b" a \n\n", " a \n"),
        ("ü".encode(), "ü"),
        ("ü".encode("latin-1"), "\udcfc"),
    ],
)
def test_a_password_file_loses_one_newline(
    content: bytes, password: str, planned: list[MountSettings], tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    directory = tmp_path / "mnt"
    directory.mkdir()
    arguments = ["--username", "me", "--password-file", str(file)]
    assert main(["mount", *arguments, str(directory)]) == 0
    assert planned[0].connection.credentials == given("me", password, file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"canary" * MAX_PASSWORD_BYTES, "is over 65536 bytes"),
    ],
)
def test_a_bad_password_file_is_one_line_without_its_text(
    content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    arguments = ["--username", "me", "--password-file", str(file)]
    assert main(["mount", *arguments, "http://h", str(tmp_path)]) == 1
    line = the_line(capsys)
    assert said in line
    assert "canary" not in line


@pytest.mark.parametrize("option", ["--token-file", "--ca-cert"])
def test_a_file_that_cannot_be_read_is_named_with_its_option(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mount", option, str(tmp_path / "none"), "http://h", str(tmp_path)]) == 1
    assert f"cannot read '{tmp_path}/none' ({option}): No such file" in the_line(capsys)


# --- TLS --------------------------------------------------------------------------------------


def test_a_client_certificate_must_be_usable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    for arguments, code, said in (
        (["--client-key", str(file)], 2, "--client-key needs --client-cert"),
        (["--client-cert", str(file)], 2, "no usable client certificate"),
        (["--client-cert", f"{file}x"], 1, "(--client-cert): No such file"),
    ):
        assert main(["doctor", *arguments, "https://reg.example"]) == code
        assert said in capsys.readouterr().err
