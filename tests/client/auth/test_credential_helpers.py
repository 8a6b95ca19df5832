"""Credential helpers: real programs, and how they can fail."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from support.credhelpers import ANSWER, SERVER, Installed, on_path
from support.scripted import at_most, until
from support.tokenservers import turn

from epochfs.client.auth import (
    Authenticator,
    Bearer,
    CredentialStore,
    TokenRequest,
    credential_helpers,
)
from epochfs.client.auth.login_files import Helper, Login
from epochfs.config import Credentials
from epochfs.errors import CredentialsUnavailable, DeadlineExceeded, Denied

SOON = 30.0


installed = pytest.fixture(on_path)


def ask(store: CredentialStore, seconds: float = SOON) -> Login | None:
    return store.login("team/app", time.monotonic() + seconds)


def test_a_helper_is_asked_for_the_registry_by_name(installed: Installed) -> None:
    installed.install(ANSWER)
    found = ask(installed.store())
    assert found == Login("from docker-credential-test", "bob", "geheim")
    assert str(found) == "as bob, from docker-credential-test"
    assert installed.requests == [f"1 get {SERVER}"]


def test_docker_hub_goes_by_its_old_name(installed: Installed) -> None:
    installed.install(ANSWER)
    for content in ({"credsStore": "test"}, {"credHelpers": {"docker.io": "test"}}):
        installed.config.write_text(json.dumps(content))
        given = Credentials(auth_files=(installed.config,))
        assert ask(CredentialStore(given, "https://registry-1.docker.io"))
    assert installed.requests == ["1 get https://index.docker.io/v1/"] * 2


def test_a_token_for_a_user_name_is_an_identity_token(installed: Installed) -> None:
    installed.answer("<token>", "refresh")
    found = ask(installed.store())
    assert found == Login("from docker-credential-test", identity_token="refresh")


def test_the_order_within_a_file(installed: Installed) -> None:
    installed.install(ANSWER)
    installed.install("exit 1", "unused")
    entry = {"auths": {SERVER: {"username": "entry", "password": "p"}}}
    helper = installed.store(credHelpers={SERVER: "test"}, credsStore="unused", **entry)
    assert str(ask(helper)) == "as bob, from docker-credential-test"
    assert str(ask(installed.store(credsStore="unused", **entry))).startswith("as entry, ")
    empty = installed.store(credsStore="test", auths={SERVER: {}})
    assert str(ask(empty)) == "as bob, from docker-credential-test"
    other = installed.store(credHelpers={"other": "unused"}, credsStore="test")
    assert str(ask(other)) == "as bob, from docker-credential-test"


@pytest.mark.expects_log("no credentials for")
def test_a_fingerprint_tells_what_helpers_say_and_none_is_had_of_one_that_fails(
    installed: Installed,
) -> None:
    def fingerprint() -> str:
        deadline = time.monotonic() + SOON
        subject = Authenticator(installed.store(), "https")
        return subject.bearer_for(b"salt", "team/app", deadline).fingerprint

    found = set()
    for username, secret in (("bob", "geheim"), ("bob", "other"), ("<token>", "geheim")):
        installed.answer(username, secret)
        assert fingerprint() == fingerprint()
        assert "geheim" not in fingerprint()
        found.add(fingerprint())
    assert len(found) == 3
    installed.install("exit 3")
    with pytest.raises(Denied):
        fingerprint()
    installed.install("echo credentials not found in native keychain; exit 1")
    assert fingerprint() == ""


NOT_FOUND = "echo credentials not found in native keychain; exit 1"
EMPTY = """echo '{"Username": "", "Secret": ""}'"""


@pytest.mark.parametrize(
    ("script", "content"),
    [(NOT_FOUND, {}), (NOT_FOUND, {"credsStore": "test"}), (EMPTY, {"credsStore": "test"})],
)
def test_a_helper_may_know_nothing_of_the_registry(
    installed: Installed, script: str, content: dict[str, object]
) -> None:
    installed.install(script)
    store = installed.store(**content)
    assert ask(store) is None
    assert ask(store) is None
    assert len(installed.requests) == 1


FAILURES = {
    "failing": ("echo geheim; echo geheim >&2; exit 3", "exit code 3"),
    "garbage": ("echo geheim", "no credentials"),
    "no object": ("echo '[\"geheim\"]'", "no credentials"),
    "no secret": ("""echo '{"Username": "geheim"}'""", "no credentials"),
    "empty secret": (EMPTY, "an empty secret"),
    "no text": ("""echo '{"Username": "geheim", "Secret": ["x"]}'""", "no credentials"),
    "no unicode": ("""echo '{"Username": "geheim", "Secret": "\\\\ud800"}'""", "no credentials"),
    "silent": ("", "no credentials"),
    "endless": ("yes geheim", "more than"),
    "hanging": ("sleep 60", "within"),
    "hanging at the end": (f"{ANSWER}; exec >&-; sleep 60", "within"),
    "leaving a child": (f"sleep 60 & {ANSWER}", "within"),
}


@pytest.mark.expects_log("no credentials for reg.example:5000: docker-credential-test, named in")
@pytest.mark.parametrize(("script", "why"), FAILURES.values(), ids=FAILURES)
def test_a_failing_helper_is_denied_by_name_and_its_words_are_not_shown(
    installed: Installed,
    script: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(credential_helpers, "TIME_LIMIT", 0.3)
    installed.install(script)
    store = installed.store()
    for _ in range(2):
        with at_most(2), pytest.raises(Denied, match=f"docker-credential-test.*{why}") as caught:
            ask(store)
        assert str(installed.config) in str(caught.value)
        assert "geheim" not in str(caught.value) + caplog.text
    assert len(installed.requests) == 1


@pytest.mark.expects_log("no credentials for")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("absent", "not installed"),
        ("../../bin/sh", "not a valid program name"),
        ("a b; true", "not a valid program name"),
        ("", "not a valid program name"),
        ("broken", "cannot be run"),
    ],
)
def test_a_helper_that_cannot_be_run_is_denied_by_name(
    installed: Installed, name: str, why: str
) -> None:
    broken = installed.directory / "docker-credential-broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(stat.S_IRWXU)
    store = installed.store(credHelpers={SERVER: name or "\n"})
    with pytest.raises(Denied, match=f"docker-credential-.*{why}"):
        ask(store)


@pytest.mark.expects_log("no credentials for reg.example:5000: docker-credential-test.*exit code 3")
def test_a_failing_store_for_all_registries_matters_where_one_asks_for_a_login(
    installed: Installed,
) -> None:
    installed.install("exit 3")
    store = installed.store(credsStore="test")
    subject = Authenticator(store, "https")
    for _ in range(2):
        assert subject.header(turn("a:pull", _unasked, SOON)) == ""
    assert subject.bearer_for(b"salt", "a", time.monotonic() + SOON) == Bearer("", "")
    why = r"docker-credential-test.*exit code 3"
    for challenge in ("Basic", 'Bearer realm="https://auth.example/"', "Negotiate"):
        subject = Authenticator(store, "https")
        with pytest.raises(CredentialsUnavailable, match=why):
            subject.header(turn("a:pull", _unasked, SOON, lambda: challenge))  # noqa: B023
    with pytest.raises(CredentialsUnavailable, match=why):
        subject.renew(turn("a:pull", _unasked, SOON), "Basic", "", 0)
    assert len(installed.requests) == 1


@pytest.mark.expects_log("no credentials for")
@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "docker-credential-test, named in '{config}', failed with exit code 3"),
        ("", "docker-credential-test, named in '{config}', gives an answer with no"),
        (EMPTY, "docker-credential-test, named in '{config}', gives an empty secret"),
        (NOT_FOUND, "'{config}' cannot be used: docker-credential-test has none for the entry of"),
    ],
)
def test_a_store_that_the_user_has_logged_in_by_must_have_the_login(
    installed: Installed, script: str, why: str
) -> None:
    installed.install(script)
    for content in ({"credsStore": "test"}, {"credHelpers": {SERVER: "test"}}):
        store = installed.store(auths={SERVER: {}}, **content)
        with pytest.raises(CredentialsUnavailable, match=why.format(config=installed.config)):
            ask(store)


def test_a_helper_and_its_children_do_not_outlive_their_time(installed: Installed) -> None:
    pids = installed.directory / "pids"
    installed.install(f"sleep 60 & echo $$ $! > {pids}; wait")
    helper = Helper("test", SERVER, "f", dedicated=False)
    with pytest.raises(credential_helpers._Failure):
        credential_helpers._run(credential_helpers._path(helper), SERVER, 1)
    deadline = time.monotonic() + 5
    while any(_lives(pid) for pid in pids.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _lives(pid: str) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_helper_has_no_terminal_and_no_descriptor_of_ours(installed: Installed) -> None:
    ours = installed.directory / "ours"
    held = os.open(ours, os.O_RDONLY | os.O_CREAT)
    os.set_inheritable(held, True)
    seen = installed.directory / "seen"
    installed.install(
        f"ls -l /proc/$$/fd > {seen}; cut -d' ' -f6,7 /proc/$$/stat >> {seen}\n{ANSWER}"
    )
    ask(installed.store())
    os.close(held)
    lines = seen.read_text().splitlines()
    session, terminal = lines[-1].split()
    assert (session != str(os.getsid(0)), terminal) == (True, "0")
    assert len(lines) > 3
    assert not [line for line in lines if str(ours) in line]


# Asked again


def test_a_helper_is_asked_once_until_it_is_refused(installed: Installed) -> None:
    installed.answer("bob", "old")
    store = installed.store()
    old = ask(store)
    assert old is not None
    assert ask(store) == old
    installed.answer("bob", "new")
    fresh = store.after_refusal(old, "team/app", time.monotonic() + SOON)
    assert fresh is not None
    assert fresh.password == "new"
    assert ask(store) == fresh
    assert len(installed.requests) == 2


def test_a_helper_that_says_the_same_again_is_left_alone_for_a_while(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.install(ANSWER)
    store = installed.store()
    login = ask(store)
    assert login is not None
    for _ in range(3):
        assert store.after_refusal(login, "team/app", time.monotonic() + SOON) is None
    assert len(installed.requests) == 2
    monkeypatch.setattr(credential_helpers, "PAUSE", 0)
    with_time_gone_by = time.monotonic() + 31
    monkeypatch.setattr(time, "monotonic", lambda: with_time_gone_by)
    assert store.after_refusal(login, "team/app", with_time_gone_by + SOON) is None
    assert len(installed.requests) == 3


def test_threads_share_one_answer(installed: Installed) -> None:
    installed.install(f"sleep 0.2; {ANSWER}")
    store = installed.store()
    found: list[Login | None] = []
    threads = [threading.Thread(target=lambda: found.append(ask(store))) for _ in range(8)]
    for thread in threads:
        thread.start()
    with pytest.raises(DeadlineExceeded):
        ask(store, 0.01)
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(map(str, found))) == 1
    assert len(installed.requests) == 1


def test_what_a_helper_has_said_is_there_while_another_runs(installed: Installed) -> None:
    installed.install(ANSWER, "quick")
    installed.install(f"sleep 0.5; {ANSWER}", "slow")
    quick, slow = (Helper(name, SERVER, "f", dedicated=True) for name in ("quick", "slow"))
    subject = credential_helpers.Helpers()
    subject.login(quick, time.monotonic() + SOON)
    running = threading.Thread(target=lambda: subject.login(slow, time.monotonic() + SOON))
    running.start()
    until(lambda: len(installed.requests) == 2)
    assert subject.login(quick, time.monotonic()) == Login(
        "from docker-credential-quick", "bob", "geheim"
    )
    assert running.is_alive()
    running.join(10)


@pytest.mark.parametrize("content", [{}, {"credsStore": "test"}], ids=["dedicated", "for all"])
def test_a_caller_without_time_for_a_helper_makes_it_fail_for_nobody_else(
    installed: Installed, content: dict[str, object]
) -> None:
    installed.install(f"sleep 0.3; {ANSWER}")
    store = installed.store(**content)
    with pytest.raises(DeadlineExceeded, match="docker-credential-test did not answer"):
        ask(store, 0.1)
    assert ask(store) == Login("from docker-credential-test", "bob", "geheim")


def test_refused_credentials_are_replaced_before_anyone_is_denied(installed: Installed) -> None:
    """By Bearer, at the token server; and by Basic, at the registry."""
    installed.answer("bob", "old")
    store = installed.store()
    subject = Authenticator(store, "https")
    basic = subject.renew(turn("a:pull", _unasked, SOON), "Basic", "", 0)
    installed.answer("bob", "new")
    renewed = subject.renew(turn("a:pull", _unasked, SOON), "Basic", basic, 0)
    assert renewed not in (basic, "")
    assert subject.header(turn("a:pull", _unasked, SOON)) == renewed
    installed.answer("bob", "newest")
    sent = []

    def fetch(request: TokenRequest) -> bytes:
        sent.append(request.authorization)
        if request.authorization == renewed:
            raise Denied("no")
        return b'{"token": "t"}'

    challenge = 'Bearer realm="https://auth.example/"'
    subject = Authenticator(store, "https")
    assert subject.renew(turn("a:pull", fetch, SOON), challenge, "", 0) == "Bearer t"
    assert subject.header(turn("a:pull", fetch, SOON)) == "Bearer t"
    assert len(set(sent)) == len(sent) == 2


def _unasked(request: TokenRequest) -> bytes:
    raise AssertionError(request)
