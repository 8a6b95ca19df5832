"""Mirrors in trouble: how much time they cost, when they count as ill, and how they come back."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from support.mirrors import (
    BLOB,
    IMAGE,
    LAYER,
    NAME,
    Client,
    Mirror,
    blob,
    clients,
    recording,
    registry_with_mirrors,
)
from support.registries import EmbeddedRegistry
from support.scripted import Seen, Step, at_most, reply, until

from epochfs.client import mirrors
from epochfs.demo.registry import EPOCH
from epochfs.errors import DeadlineExceeded, Unavailable

client_of = pytest.fixture(clients)
origin = pytest.fixture(registry_with_mirrors)


def silent(_: Seen) -> list[Step]:
    return [60.0]


def stalling(_: Seen) -> list[Step]:
    return [reply(200, b"", Content_Length=str(len(LAYER))), 60.0]


def dripping(_: Seen) -> list[Step]:
    head = reply(200, b"", Content_Length=str(len(LAYER)))
    return [head, *([b"x", 0.02] * 1000)]


def test_a_silent_mirror_costs_its_share_of_the_time_and_then_none(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with recording(silent) as mirror:
        client = client_of(origin, mirror.url, timeout=2.0)
        with at_most(1.9):
            assert blob(client) == LAYER
        with at_most(1.9):
            assert blob(client) == LAYER
            assert client.resolve(NAME, "latest").digest == IMAGE.digest
        assert mirror.connections == 1


def test_the_registry_has_the_time_that_its_mirrors_leave(client_of: Client) -> None:
    with recording(silent) as mirror, recording(silent) as origin:
        client = client_of(origin.url, mirror.url, mirror.url + "/2", timeout=1.0)
        with at_most(5), pytest.raises(DeadlineExceeded):
            client.get_manifest(NAME, IMAGE.digest)
        assert len(origin.seen) == 1


@pytest.mark.parametrize("script", [stalling, dripping])
def test_a_stream_that_stalls_or_drips_breaks_off(
    client_of: Client, origin: EmbeddedRegistry, script: Callable[[Seen], list[Step]]
) -> None:
    with recording(script) as mirror:
        client = client_of(origin, mirror.url, timeout=2.0)
        with at_most(1.9), pytest.raises((Unavailable, DeadlineExceeded)):
            blob(client)
        assert not client.mirrors[0].healthy
        assert blob(client) == LAYER


def test_a_stream_that_its_reader_gives_up_is_no_failure(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with Mirror() as mirror:
        client = client_of(origin, mirror.url)
        stream = client.get_blob(NAME, BLOB)
        stream.read(10)
        stream.close()
        with pytest.raises(Unavailable):
            stream.read(10)
        assert client.mirrors[0].healthy


def test_a_range_that_a_mirror_makes_shorter_is_no_failure(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    part = reply(206, LAYER[:10], Content_Range=f"bytes 0-9/{len(LAYER)}")
    with recording(lambda _: [part]) as mirror:
        client = client_of(origin, mirror.url)
        with client.get_blob(NAME, BLOB, 0, 100) as stream:
            assert stream.read(100) == LAYER[:10]
            with pytest.raises(Unavailable):
                stream.read(100)
        assert client.mirrors[0].healthy


def test_a_mirror_that_is_back_is_asked_again_by_itself(
    client_of: Client, origin: EmbeddedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_FIRST_PAUSE", 1.0)
    mirror = Mirror()
    with mirror:
        client = client_of(origin, mirror.url)
    before = time.time()
    assert blob(client) == LAYER
    down = client.mirrors[0]
    assert (down.host, down.healthy) == (mirror.url, False)
    assert before <= down.since <= time.time()
    assert "refused" in down.trouble
    with mirror:
        blob(client)
        assert mirror.count() == 0
        until(lambda: blob(client) == LAYER and mirror.count() == 1)
        assert (client.mirrors[0].healthy, client.mirrors[0].trouble) == (True, "")


PAGE = b"<html><title>404 Not Found</title></html>"


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (reply(401, WWW_Authenticate="Basic realm=x"), "401: the mirror does not allow anonymous"),
        (reply(403), "403: the mirror does not allow anonymous reads"),
        (reply(404, PAGE), "404 (a web page, '404 Not Found')"),
    ],
)
def test_a_mirror_that_refuses_everything_is_in_trouble_and_goes_on_being_asked(
    client_of: Client, origin: EmbeddedRegistry, answer: bytes, trouble: str
) -> None:
    answers = [answer]
    with recording(lambda _: answers) as mirror:
        client = client_of(origin, mirror.url)
        assert client.mirrors[0].healthy
        assert blob(client) == LAYER
        assert not client.mirrors[0].healthy
        assert trouble in client.mirrors[0].trouble
        client.ping_mirrors()
        assert trouble in client.mirrors[0].trouble
        seen = len(mirror.seen)
        client.resolve(NAME, "latest")
        assert len(mirror.seen) > seen
        answers[:] = [reply(200, LAYER)]
        assert client.read_blob(NAME, BLOB, 1 << 20)
        assert (client.mirrors[0].healthy, client.mirrors[0].trouble) == (True, "")


def test_a_web_page_at_its_root_is_no_mirror(client_of: Client, origin: EmbeddedRegistry) -> None:
    with recording(lambda _: [reply(200, PAGE)]) as mirror:
        client = client_of(origin, mirror.url)
        client.ping_mirrors()
        assert "200 (a web page" in client.mirrors[0].trouble


def test_a_mirror_that_denies_one_thing_after_it_has_given_another_is_not_in_trouble(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    answers = [reply(200, LAYER)]
    with recording(lambda _: answers) as mirror:
        client = client_of(origin, mirror.url)
        assert client.read_blob(NAME, BLOB, 1 << 20)
        answers[:] = [reply(403)]
        client.resolve(NAME, "latest")
        assert client.mirrors[0].healthy


def test_a_mirror_whose_root_alone_asks_for_a_login_is_not_in_trouble(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    """As Epoch's."""
    with EmbeddedRegistry(EPOCH) as mirror:
        client = client_of(origin, mirror.url)
        client.ping_mirrors()
        assert client.mirrors[0].healthy


class TestHealth:
    def test_the_pause_grows_with_each_failure_up_to_a_cap(self, clock: list[float]) -> None:
        pauses = []
        one = mirrors.Health()
        for _ in range(20):
            one.failed("broken", 0.0)
            pauses.append(one._tried_at - clock[0])
            one._tried_at = 0.0
            assert one.begin(10.0)
        assert pauses[:4] == pytest.approx([1.0, 2.0, 4.0, 8.0])
        assert pauses[-1] == pytest.approx(300.0)

    def test_the_pause_is_a_multiple_of_what_the_failure_took(self, clock: list[float]) -> None:
        one = mirrors.Health()
        one.failed("silent", 15.0)
        assert one._tried_at - clock[0] == pytest.approx(60.0)

    def test_what_fails_together_is_one_failure(self, clock: list[float]) -> None:
        one = mirrors.Health()
        assert [one.failed("broken", 0.0) for _ in range(9)] == [True] + [False] * 8
        assert one._tried_at - clock[0] < 1.1

    def test_after_the_pause_one_caller_tries_for_all(self, clock: list[float]) -> None:
        one = mirrors.Health()
        one.failed("broken", 0.0)
        assert not one.begin(5.0)
        one._tried_at = 0.0
        assert [one.begin(5.0) for _ in range(3)] == [True, False, False]
        assert one.succeeded()
        assert not one.succeeded()
        assert one.begin(5.0)
