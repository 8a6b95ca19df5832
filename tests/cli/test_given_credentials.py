"""Where the command line finds credentials, in which order, and how `doctor` names their source."""

from __future__ import annotations

import json
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Skopeo
from support.registries import EmbeddedRegistry
from support.subjects import PASSWORD, USERNAME

from epochfs.cli import main
from epochfs.cli.options import credentials
from epochfs.config import Credentials
from epochfs.demo.registry import Behaviour
from epochfs.session.environment import auth_files

VARIABLES = (
    "EPOCH_REGISTRY_TOKEN",
    "EPOCH_SERVER",
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory in which nobody has logged in."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("os.getuid", lambda: 1234)
    return tmp_path / "home"


@pytest.fixture(params=["basic", "bearer"])
def guarded(request: pytest.FixtureRequest) -> Iterator[EmbeddedRegistry]:
    behaviour = Behaviour(auth=request.param)
    with EmbeddedRegistry(behaviour, username=USERNAME, password=PASSWORD) as registry:
        yield registry


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def logged_in(host: str, username: str = USERNAME, password: str = PASSWORD) -> dict[str, object]:
    return {"auths": {host: {"auth": b64encode(f"{username}:{password}".encode()).decode()}}}


def access(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """State and note of doctor's row about access."""
    capsys.readouterr()
    main(["doctor", *arguments])
    lines = capsys.readouterr().out.splitlines()
    [row] = [line for line in lines if line.split()[1] == "access"]
    return " ".join(row.split())


# Which files there are


def test_the_files_in_their_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, docker = home / ".config/containers/auth.json", home / ".docker/config.json"
    assert auth_files() == (Path("/run/containers/1234/auth.json"), config, docker)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/config")
    runtime, config = (
        Path("/run/user/1234/containers/auth.json"),
        Path("/config/containers/auth.json"),
    )
    assert auth_files() == (runtime, config, docker)
    monkeypatch.setenv("DOCKER_CONFIG", "/docker")
    assert auth_files() == (Path("/docker/config.json"), runtime, config)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/named.json")
    assert auth_files() == (Path("/named.json"),)


def test_a_relative_file_stays_true_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "auth.json")
    assert auth_files() == (tmp_path / "auth.json",)


def test_nobodys_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert auth_files() == (Path("/run/containers/1234/auth.json"),)


def test_what_is_given_comes_before_the_variable_and_that_before_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "secret", "secret\n")
    files = auth_files()
    assert credentials("", None, None) == Credentials(auth_files=files)
    for expected, arguments in (
        (Credentials("me", "secret", file), ("me", file, None)),
        (Credentials(token_file=file), ("", None, file)),
        (Credentials(token="canary"), ("", None, None)),
    ):
        monkeypatch.setenv("EPOCH_REGISTRY_TOKEN", "canary")
        assert credentials(*arguments) == replace(expected, auth_files=files)


@pytest.mark.parametrize(
    ("server", "url", "sent"),
    [
        ("", "http://127.0.0.1:{port}", True),
        ("http://127.0.0.1:{port}", "127.0.0.1:{port}", True),
        ("127.0.0.1:{port}/team", "http://127.0.0.1:{port}/other", True),
        ("http://127.0.0.1:{port}", None, True),
        ("http://127.0.0.1", "http://127.0.0.1:{port}", False),
        ("https://127.0.0.1:{port}", "http://127.0.0.1:{port}", False),
        ("http://localhost:{port}", "http://127.0.0.1:{port}", False),
        ("http://epoch.example", "http://127.0.0.1:{port}", False),
    ],
)
def test_the_token_is_sent_to_the_server_that_the_environment_names_and_to_no_other(
    server: str,
    url: str | None,
    sent: bool,
    embedded: EmbeddedRegistry,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = embedded.url.rpartition(":")[2]
    monkeypatch.setenv("EPOCH_REGISTRY_TOKEN", "canary")
    if server:
        monkeypatch.setenv("EPOCH_SERVER", server.format(port=port))
    arguments = [] if url is None else [url.format(port=port)]
    row = access(capsys, *arguments)
    shown = {request.headers.get("authorization") for request in embedded.requests}
    assert shown == ({"Bearer canary"} if sent else {None})
    expected = "ok access with a token, as given" if sent else "warn access anonymous; the token is"
    assert row.startswith(expected)
    assert sent or f"is not sent to {embedded.url}" in row


def test_the_default_port_makes_no_other_server() -> None:
    for one, other in (("https://h", "https://h:443"), ("http://h:80", "http://h")):
        assert Credentials(token="t", token_for=one).is_token_for(other)
    assert not Credentials(token="t", token_for="https://h").is_token_for("http://h")


def test_a_server_that_is_none_is_told_before_the_token_goes_anywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EPOCH_REGISTRY_TOKEN", "canary")
    monkeypatch.setenv("EPOCH_SERVER", "ftp://h")
    assert main(["doctor", "http://127.0.0.1:1"]) == 2
    assert "EPOCH_SERVER: not a registry URL" in capsys.readouterr().err


# Who doctor says we are


def test_doctor_names_the_file(
    guarded: EmbeddedRegistry, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(home / ".docker/config.json", logged_in(guarded.host))
    assert access(capsys, guarded.url) == "ok access as me, from ~/.docker/config.json"


def test_a_prefix_is_mounted_with_credentials_for_that_path(
    guarded: EmbeddedRegistry, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(home / ".docker/config.json", logged_in(f"{guarded.host}/team"))
    assert access(capsys, guarded.url).startswith("FAIL")
    said = access(capsys, f"{guarded.url}/team/app")
    assert said == "ok access as me, from ~/.docker/config.json"


def test_doctor_names_the_helper(
    guarded: EmbeddedRegistry,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(home / ".docker/config.json", {"credsStore": "test"})
    answer = json.dumps({"Username": USERNAME, "Secret": PASSWORD})
    helper = write(tmp_path / "docker-credential-test", f"#!/bin/sh\necho '{answer}'\n")
    helper.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert access(capsys, guarded.url) == "ok access as me, from docker-credential-test"


def test_doctor_names_what_was_given(
    guarded: EmbeddedRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "secret", PASSWORD)
    given = ("--username", USERNAME, "--password-file", str(file))
    assert access(capsys, *given, guarded.url) == "ok access as me, as given"


def test_doctor_names_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = Behaviour(auth="bearer")
    with EmbeddedRegistry(behaviour, username=USERNAME, password="canary") as registry:
        file = write(tmp_path / "token", "canary\n")
        named = access(capsys, "--token-file", str(file), registry.url)
        assert named == f"ok access with the token in {file}"
        monkeypatch.setenv("EPOCH_REGISTRY_TOKEN", "canary")
        assert access(capsys, registry.url) == "ok access with a token, as given"


def test_doctor_warns_of_a_login_that_the_registry_does_not_ask_for(
    embedded: EmbeddedRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "secret", PASSWORD)
    row = access(capsys, "--username", "me", "--password-file", str(file), embedded.url)
    expected = f"warn access anonymous; the login of me was not used: {embedded.url} asks for none"
    assert row == f"{expected}, and is read anonymously"


def test_doctor_warns_of_a_token_that_is_not_for_the_server_of_a_hosts_file(
    embedded: EmbeddedRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "reg.example/hosts.toml", f'server = "{embedded.url}"')
    monkeypatch.setenv("EPOCH_REGISTRY_TOKEN", "canary")
    row = access(capsys, "--hosts-dir", str(tmp_path), "https://reg.example")
    assert row.startswith(
        "warn access anonymous; the token is not sent: hosts.toml replaces https://reg.example"
    )
    assert all("authorization" not in request.headers for request in embedded.requests)


def test_doctor_says_whose_credentials_are_refused(
    guarded: EmbeddedRegistry, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "docker, podman or skopeo login" in access(capsys, guarded.url)
    write(home / ".docker/config.json", logged_in(guarded.host, password="wrong"))
    assert f"as me, from {home}/.docker/config.json" in access(capsys, guarded.url)


def test_doctor_names_a_file_that_cannot_be_used(
    guarded: EmbeddedRegistry, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(home / ".docker/config.json", "{")
    row = access(capsys, guarded.url)
    assert row.startswith("FAIL")
    assert f"{home}/.docker/config.json' cannot be used: it is not JSON" in row


def test_what_skopeo_login_keeps_is_used(
    guarded: EmbeddedRegistry,
    skopeo: Skopeo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    login = ["skopeo", "login", "--tls-verify=false", "--username", USERNAME, "--password-stdin"]
    done = subprocess.run(
        [*login, guarded.host], input=PASSWORD, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kept = tmp_path / "containers" / "auth.json"
    assert access(capsys, guarded.url) == f"ok access as me, from {kept}"
