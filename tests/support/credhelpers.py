"""Credential helpers as programs that a test installs, and the requests they have had."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from epochfs.client.auth import CredentialStore
from epochfs.config import Credentials

SERVER = "reg.example:5000"
ANSWER = """echo '{"ServerURL": "x", "Username": "bob", "Secret": "geheim"}'"""


class Installed:
    """Installs helpers on a PATH of their own, and a file that names them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config.json"
        self.asked = directory / "asked"

    def install(self, script: str, name: str = "test") -> None:
        """Make `docker-credential-<name>` run a script, once it has written down its request."""
        path = self.directory / f"docker-credential-{name}"
        path.write_text(f'#!/bin/sh\necho "$# $1 $(cat)" >> {self.asked}\n{script}\n')
        path.chmod(stat.S_IRWXU)

    def answer(self, username: str, secret: str) -> None:
        said = json.dumps({"Username": username, "Secret": secret})
        self.install(f"cat <<'END'\n{said}\nEND")

    def store(self, **content: object) -> CredentialStore:
        """Credentials from a file; without `content`, it names the helper for the registry."""
        content = content or {"credHelpers": {SERVER: "test"}}
        self.config.write_text(json.dumps(content))
        return CredentialStore(Credentials(auth_files=(self.config,)), f"https://{SERVER}")

    @property
    def requests(self) -> list[str]:
        return self.asked.read_text().splitlines() if self.asked.exists() else []


def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """A fixture: installs helpers in front of all other programs."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Installed(tmp_path)
