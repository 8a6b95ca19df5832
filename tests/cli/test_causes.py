"""The table from cause to sentence, row by row, as `doctor` and a mount print it."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.causes import SECRET, SETTINGS, Scene
from support.commandline import run
from support.mounts import Mounts
from support.registries import EmbeddedRegistry

from epochfs.cli import main
from epochfs.client.causes import Cause
from epochfs.demo import samples
from epochfs.demo.registry import Request, Response

UNMET = {Cause.REVOKED}
"""No list of revoked certificates is asked for, but OpenSSL may be configured to."""


def sentence(cause: Cause) -> re.Pattern[str]:
    """The sentence of a cause, with anything for the facts."""
    return re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(cause.value)))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    for name in ("EPOCH_SERVER", "EPOCH_REGISTRY_TOKEN", "EPOCH_CA_CERT", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return Scene(tmp_path, monkeypatch, options=["--timeout", "5"])


def test_every_row_is_met_here() -> None:
    assert set(SETTINGS) == set(Cause) - UNMET


@pytest.mark.expects_log("no credentials for")
@pytest.mark.parametrize("cause", SETTINGS, ids=lambda cause: cause.name.lower())
def test_doctor_tells_the_cause(
    cause: Cause, scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextmanager(SETTINGS[cause])(scene):
        main(["doctor", *scene.options, scene.url])
    rows = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("ok")]
    told = [row for row in rows if sentence(cause).search(row)]
    assert told, rows
    assert SECRET not in "".join(rows)
    others = {other for other in SETTINGS if any(sentence(other).search(row) for row in told)}
    assert {other for other in others if other.value not in cause.value} == set()


@pytest.mark.parametrize(
    "cause",
    [
        Cause.NO_COMMON_SCHEME,
        Cause.GIVEN_TOKEN_REFUSED,
        Cause.HELPER_ABSENT,
        Cause.REDIRECTED,
        Cause.CLIENT_CERTIFICATE_MISSING,
        Cause.CHAIN_INCOMPLETE,
        Cause.TOKEN_SERVER_DOWN,
        Cause.LIMITS,
    ],
    ids=lambda cause: cause.name.lower(),
)
def test_a_mount_tells_the_cause(cause: Cause, scene: Scene) -> None:
    (scene.directory / "mnt").mkdir()
    with contextmanager(SETTINGS[cause])(scene):
        arguments = (*scene.options, scene.url, scene.directory / "mnt")
        code, _, errors = run("mount", *arguments, **scene.variables)
    assert code == 1
    assert sentence(cause).search(errors), errors


def test_where_access_fails_nothing_else_is_blamed_for_it(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextmanager(SETTINGS[Cause.LOGIN_REFUSED])(scene):
        assert main(["doctor", *scene.options, scene.url]) == 1
    subjects = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert subjects[-2:] == ["registry", "access"]


class Changing(EmbeddedRegistry):
    """Has a challenge for everyone, once it is set."""

    challenge = ""

    def respond(self, request: Request) -> Response:
        if self.challenge:
            return Response(401, {"WWW-Authenticate": self.challenge})
        return super().respond(request)


@pytest.mark.expects_log("epochfs.fuse.operations: .*: (EACCES|EIO)")
@pytest.mark.expects_log("is down, what is cached is served")
@pytest.mark.parametrize(
    ("cause", "challenge"),
    [
        (Cause.NO_LOGIN, 'Basic realm="x"'),
        (Cause.NO_COMMON_SCHEME, "Negotiate"),
        (Cause.TOKEN_SERVER_DOWN, 'Bearer realm="http://127.0.0.1:1/token"'),
    ],
)
def test_the_log_of_a_mount_tells_the_cause(
    cause: Cause, challenge: str, scene: Scene, mounts: Mounts
) -> None:
    with Changing() as registry:
        samples.load(registry)
        mount = mounts(registry.url, "--metadata-ttl", "0", *scene.options)
        registry.challenge = challenge
        with pytest.raises(OSError):
            (mount.path / "demo/team/app/tags/none").stat()
        assert sentence(cause).search(mount.log.read_text())
