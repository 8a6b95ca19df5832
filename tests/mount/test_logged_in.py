"""What a mount shows to somebody who has logged in, where everybody may see something."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path

import pytest
from support import builders
from support.mounts import Mounts
from support.registries import EmbeddedRegistry
from support.subjects import PASSWORD, USERNAME

from epochfs.demo.registry import EPOCH, Behaviour, Request, Response

PUBLIC = "library/app"
PRIVATE = "private/app"


class TwoViews(EmbeddedRegistry):
    """Shows anonymous users what is public, and asks nobody for a login but at its root."""

    def respond(self, request: Request) -> Response:
        if "authorization" not in request.headers:
            if request.path == "/v2/_catalog":
                return Response(200, {}, json.dumps({"repositories": [PUBLIC]}).encode())
            if PRIVATE in request.path:
                return Response(404, {}, b'{"errors":[{"code":"NAME_UNKNOWN"}]}')
        return super().respond(request)


@pytest.fixture
def content() -> builders.Content:
    return builders.image(builders.random_bytes(1000))


def login(directory: Path, host: str, password: str = PASSWORD) -> dict[str, str]:
    """Environment of somebody who has used `docker login`."""
    pair = b64encode(f"{USERNAME}:{password}".encode()).decode()
    directory.joinpath("config.json").write_text(json.dumps({"auths": {host: {"auth": pair}}}))
    return {"DOCKER_CONFIG": str(directory)}


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_a_mount_shows_the_users_own_view_from_the_first_listing_on(
    auth: str, mounts: Mounts, tmp_path: Path, content: builders.Content
) -> None:
    behaviour = Behaviour(auth=auth, anonymous_reads=True)  # type: ignore[arg-type]
    with TwoViews(behaviour, username=USERNAME, password=PASSWORD) as registry:
        for name in (PUBLIC, PRIVATE):
            builders.load(registry, name, "latest", content)
        mount = mounts(registry.url, environment=login(tmp_path, registry.host))
        assert sorted(path.name for path in mount.path.iterdir()) == ["library", "private"]
        assert (mount.path / PRIVATE / "tags/latest/layers/00").read_bytes() == content.blobs[1]
        anonymous = [one for one in registry.requests if "authorization" not in one.headers]
        assert [one.path for one in anonymous] == ["/v2/"]


@pytest.mark.parametrize("token", ["registry-token", ""])
def test_epoch_is_read_with_a_login_and_without(
    token: str, mounts: Mounts, tmp_path: Path, content: builders.Content
) -> None:
    """Whoever gives no password has an empty token, and reads all the same."""
    with EmbeddedRegistry(EPOCH, password="registry-token") as registry:
        builders.load(registry, PUBLIC, "latest", content)
        environment = login(tmp_path, registry.host, token) if token else {}
        mount = mounts(registry.url, environment=environment)
        assert (mount.path / PUBLIC / "tags/latest/layers/00").read_bytes() == content.blobs[1]


@pytest.mark.expects_log("the login of me was not used: .* asks for none")
def test_a_login_that_was_given_for_nothing_is_one_line_in_the_log(
    embedded: EmbeddedRegistry, mounts: Mounts, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    mount = mounts(embedded.url, "--username", USERNAME, "--password-file", str(password))
    assert mount.log.read_text().count("WARNING") == 1
