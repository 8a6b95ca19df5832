"""Ports: where several processes run tests, each has its own."""

from __future__ import annotations

import os
import socket

import pytest
from conftest import free_port
from support.ports import share

worker = os.environ.get("PYTEST_XDIST_WORKER", "")
in_a_worker = pytest.mark.skipif(not worker, reason="one process runs all tests")


@pytest.mark.parametrize("workers", [1, 2, 3, 64])
def test_each_port_is_one_workers(workers: int) -> None:
    ports = [port for number in range(workers) for port in share(number, workers)]
    assert len(ports) == len(set(ports)) > 20_000


def test_a_worker_that_takes_the_place_of_another_has_its_ports() -> None:
    assert share(3, 3) == share(0, 3)


@in_a_worker
def test_any_port_is_one_of_the_workers_share() -> None:
    own = share(int(worker[2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    assert {free_port() for _ in range(100)} <= set(own)


@in_a_worker
def test_a_port_that_was_left_is_not_given_to_the_next() -> None:
    assert len({free_port() for _ in range(100)}) == 100


@in_a_worker
def test_a_port_in_use_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        step = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        with socket.create_server(("127.0.0.1", port + step)):
            assert free_port() not in (port, port + step)
