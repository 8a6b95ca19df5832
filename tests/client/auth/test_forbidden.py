"""A 403 counts once as a refusal of what a helper said, as Amazon ECR answers an expired login."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.credhelpers import Installed, on_path
from support.scripted import ScriptedServer, Seen, Step, reply
from support.transports import Serve, serving

from epochfs.client.auth import credential_helpers
from epochfs.client.auth.login_files import Login
from epochfs.client.transport import Request, Transport
from epochfs.config import Credentials, TransportOptions

serve = pytest.fixture(serving)


installed = pytest.fixture(on_path)


class Ecr:
    """Answers 403 to every login but one, and to that for a repository that is nobody's."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.good = "old"

    def __call__(self, seen: Seen) -> Iterator[Step]:
        host = seen.headers["host"]
        sent = seen.headers.get("authorization", "")
        if seen.path == "/token":
            secret = sent.partition(" ")[2]
            yield reply(200, b'{"token": "%s", "expires_in": 3600}' % secret.encode())
        elif not sent:
            challenge = f'{self.scheme} realm="http://{host}/token",service="s"'
            yield reply(401, WWW_Authenticate=challenge)
        elif (
            sent.endswith(b64encode(f"bob:{self.good}".encode()).decode()) and "no" not in seen.path
        ):
            yield reply(200, b"ok")
        else:
            yield reply(403, b'{"errors":[{"code":"DENIED","message":"expired"}]}')


def connect(installed: Installed, server: ScriptedServer) -> Transport:
    installed.store(credHelpers={server.host: "test"})
    given = Credentials(auth_files=(installed.config,))
    return Transport(server.url, given, TransportOptions(timeout=20.0))


def status(transport: Transport, path: str) -> int:
    return transport.fetch(Request("GET", transport.base.at(path), "team/app:pull")).status


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
def test_an_expired_login_that_is_answered_403_is_renewed(
    serve: Serve, installed: Installed, scheme: str
) -> None:
    ecr = Ecr(scheme)
    server, _ = serve(ecr)
    installed.answer("bob", "old")
    transport = connect(installed, server)
    assert status(transport, "/v2/yes") == 200
    ecr.good = "new"
    installed.answer("bob", "new")
    assert [status(transport, "/v2/yes") for _ in range(3)] == [200] * 3
    assert len(installed.requests) == 2


def test_all_threads_whose_login_has_expired_go_on_with_the_new_one(
    serve: Serve, installed: Installed
) -> None:
    ecr = Ecr("Basic")
    server, _ = serve(ecr)
    installed.answer("bob", "old")
    transport = connect(installed, server)
    assert status(transport, "/v2/yes") == 200
    ecr.good = "new"
    installed.install("""sleep 0.2; echo '{"Username": "bob", "Secret": "new"}'""")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: status(transport, "/v2/yes"), range(8)))
    assert found == [200] * 8
    assert len(installed.requests) == 2


def test_a_403_that_stands_is_no_loop_and_asks_the_helper_once_in_a_while(
    serve: Serve, installed: Installed
) -> None:
    server, _ = serve(Ecr("Basic"))
    installed.answer("bob", "old")
    transport = connect(installed, server)
    assert [status(transport, "/v2/no") for _ in range(5)] == [403] * 5
    assert len(server.asked("/v2/no")) == 5
    assert len(installed.requests) == 2
    assert status(transport, "/v2/yes") == 200


def test_a_helper_that_says_something_else_each_time_is_asked_no_more_often(
    serve: Serve, installed: Installed
) -> None:
    server, _ = serve(Ecr("Basic"))
    installed.install("""echo "{\\"Username\\": \\"bob\\", \\"Secret\\": \\"$(date +%N)\\"}\"""")
    transport = connect(installed, server)
    assert [status(transport, "/v2/no") for _ in range(5)] == [403] * 5
    assert len(server.asked("/v2/no")) == 6
    assert len(installed.requests) == 2


@pytest.mark.expects_log("no credentials for")
@pytest.mark.parametrize(
    "script", ["exit 3", "echo credentials not found in native keychain; exit 1", "true"]
)
def test_what_a_helper_said_stays_where_it_says_nothing_when_asked_again(
    serve: Serve, installed: Installed, script: str
) -> None:
    server, _ = serve(Ecr("Basic"))
    installed.answer("bob", "old")
    transport = connect(installed, server)
    assert status(transport, "/v2/yes") == 200
    installed.install(script)
    assert [status(transport, path) for path in ("/v2/no", "/v2/yes", "/v2/no")] == [403, 200, 403]
    assert len(installed.requests) == 2


def test_a_login_that_expires_later_is_renewed_though_another_403_came_before(
    serve: Serve, installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    ecr = Ecr("Basic")
    server, _ = serve(ecr)
    installed.answer("bob", "old")
    transport = connect(installed, server)
    monkeypatch.setattr(credential_helpers, "PAUSE", 0.1)
    assert status(transport, "/v2/no") == 403
    ecr.good = "new"
    installed.answer("bob", "new")
    time.sleep(0.1)
    assert status(transport, "/v2/yes") == 200


def test_a_403_to_a_login_of_a_file_is_not_repeated(serve: Serve, installed: Installed) -> None:
    server, _ = serve(Ecr("Basic"))
    pair = b64encode(b"bob:old").decode()
    installed.store(auths={server.host: {"auth": pair}})
    given = Credentials(auth_files=(installed.config,))
    transport = Transport(server.url, given, TransportOptions())
    assert status(transport, "/v2/no") == 403
    assert len(server.asked("/v2/no")) == 1


def test_a_403_to_a_static_token_is_not_repeated(serve: Serve) -> None:
    server, transport = serve(Ecr("Basic"), Credentials(token="t"))
    assert status(transport, "/v2/no") == 403
    assert len(server.seen) == 1


def test_no_time_for_the_helper_leaves_what_it_said(installed: Installed) -> None:
    installed.answer("bob", "old")
    store = installed.store()
    old = store.login("team/app", time.monotonic() + 20)
    assert old == Login("from docker-credential-test", "bob", "old")
    installed.install("sleep 5")
    assert store.after_forbidden(old, "team/app", time.monotonic() + 0.1) is None
    assert store.login("team/app", time.monotonic()) == old
