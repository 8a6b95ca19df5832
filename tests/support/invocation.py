"""The command line read in this process: what it would mount, and what it says."""

from __future__ import annotations

import pytest

from epochfs.cli import mount, output, system
from epochfs.cli.mount import MountSettings
from epochfs.config import Credentials
from epochfs.session.environment import auth_files


def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixture: without what the environment tells epochfs."""
    for name in ("EPOCH_SERVER", "EPOCH_REGISTRY_TOKEN", "EPOCH_CA_CERT"):
        monkeypatch.delenv(name, raising=False)


def plans(monkeypatch: pytest.MonkeyPatch) -> list[MountSettings]:
    """A fixture: what `mount` would serve, instead of serving it."""
    planned: list[MountSettings] = []
    monkeypatch.setattr(mount, "_serve_in_background", planned.append)
    monkeypatch.setattr(mount, "_serve", lambda plan, ready: planned.append(plan))
    monkeypatch.setattr(system, "require_fuse", lambda *, allow_other: None)
    monkeypatch.setattr(output, "configure_logging", lambda *arguments, **options: None)
    return planned


def given(*arguments: str, **options: str) -> Credentials:
    """Credentials of the command line, which always has the files of other tools as well."""
    return Credentials(*arguments, **options, auth_files=auth_files())  # type: ignore[arg-type]


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, with nothing on stdout."""
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("epochfs: ")
    assert errors.endswith("\n")
    assert errors.count("\n") == 1
    return errors
