"""Whether the registry answers: when it counts as down, and how its return is noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

import epochfs.metadata.health
from epochfs.errors import (
    CredentialsUnavailable,
    Denied,
    EpochfsError,
    ProtocolViolation,
    Unavailable,
)
from epochfs.metadata.health import Health

DOWN = "is down, what is cached is served"


class Registry:
    """What a ping is answered with: each answer once, the last for ever; None is well."""

    def __init__(self, *answers: EpochfsError | None) -> None:
        self.answers = list(answers)
        self.pings = 0
        self.pinged = threading.Event()

    def ping(self) -> None:
        self.pings += 1
        self.pinged.set()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is not None:
            raise answer


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochfs.metadata.health, "_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(epochfs.metadata.health, "_LONGEST_SECONDS", 0.02)


@pytest.fixture
def made() -> Iterator[list[Health]]:
    made: list[Health] = []
    yield made
    for health in made:
        health.close()


def watched(made: list[Health], *answers: EpochfsError | None) -> tuple[Health, Registry]:
    registry = Registry(*answers)
    health = Health("http://registry", registry.ping)
    made.append(health)
    return health, registry


def until(condition: threading.Event) -> None:
    assert condition.wait(5)


def test_a_request_that_fails_is_no_outage_while_the_registry_answers_a_ping(
    made: list[Health],
) -> None:
    for answer in (None, Denied("401")):
        health, registry = watched(made, answer)
        health.failed(Unavailable("500 for one object"))
        until(registry.pinged)
        assert not health.outage


@pytest.mark.expects_log(DOWN)
def test_an_outage_ends_by_itself_once_a_ping_is_answered(made: list[Health]) -> None:
    gone, odd = Unavailable("refused"), ProtocolViolation("a page of the hotel's")
    health, registry = watched(made, gone, gone, odd, gone, None)
    back = threading.Event()
    health.on_return = back.set
    health.failed(Unavailable("connection reset"))
    until(back)
    assert registry.pings == 5
    assert not health.outage


@pytest.mark.expects_log(DOWN)
def test_a_ping_for_which_there_are_no_credentials_ends_no_outage(made: list[Health]) -> None:
    health, registry = watched(made, CredentialsUnavailable("the helper failed"))
    health.failed(Unavailable("refused"), pinged=True)
    deadline = time.monotonic() + 5
    while registry.pings < 3:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert health.outage


@pytest.mark.expects_log(DOWN)
def test_an_outage_is_dated_from_the_request_that_noticed_it(made: list[Health]) -> None:
    health, registry = watched(made, Unavailable("refused"))
    before = time.time()
    health.failed(Unavailable("connection reset"))
    after = time.time()
    until(registry.pinged)
    deadline = time.monotonic() + 5
    while health.outage is None and time.monotonic() < deadline:
        time.sleep(0.001)
    outage = health.outage
    assert outage is not None
    assert before <= outage.since <= after
    assert outage.reason == "connection reset"


@pytest.mark.expects_log(DOWN)
def test_a_failed_ping_is_an_outage_at_once(made: list[Health]) -> None:
    health, _ = watched(made, Unavailable("refused"))
    health.failed(Unavailable("refused"), pinged=True)
    assert health.outage


@pytest.mark.expects_log(DOWN)
def test_an_answer_ends_the_outage_before_the_next_ping(
    made: list[Health], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochfs.metadata.health, "_FIRST_SECONDS", 60)
    health, _ = watched(made, Unavailable("refused"))
    returns: list[int] = []
    health.on_return = lambda: returns.append(1)
    health.failed(Unavailable("refused"), pinged=True)
    health.answered()
    health.answered()
    assert not health.outage
    assert returns == [1]


@pytest.mark.expects_log(DOWN)
def test_many_failures_are_one_probe(made: list[Health]) -> None:
    go_on, done, pings = threading.Event(), threading.Event(), []

    def ping() -> None:
        pings.append(go_on.wait(10))

    health = Health("http://registry", ping)
    made.append(health)
    health.on_return = done.set
    health.failed(Unavailable("refused"), pinged=True)
    for _ in range(100):
        health.failed(Unavailable("refused"))
    go_on.set()
    until(done)
    assert pings == [True]


def test_connections_closed_on_unmounting_are_no_outage(made: list[Health]) -> None:
    health, registry = watched(made, Unavailable("closed from this side"))
    health.close()
    health.failed(Unavailable("closed from this side"))
    assert not registry.pinged.wait(0.1)
    assert not health.outage
