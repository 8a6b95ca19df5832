"""`epochfs prefetch` as an operator runs it: real registry, real mount, signals, a terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from conftest import DockerRegistry, Skopeo
from support.builders import image, load, random_bytes
from support.commandline import environment, one_line, run, start
from support.gates import Gate
from support.mounts import COMMAND, NO_MIRRORS, Mounts
from support.registries import EmbeddedRegistry
from support.scripted import at_most, until

from epochfs.cli import main
from epochfs.demo.registry import Request, Response
from epochfs.oci.names import Digest
from epochfs.session import status

MIB = 1 << 20
LARGE = random_bytes(12 * MIB, 41)
SHARED = random_bytes(MIB, 42)
NAMES = ("warm/app", "warm/tools")
PREFETCHED = "5 blobs, 13.0 MiB: 5 fetched, 0 already cached, 0 failed\n"
THERE = "5 blobs, 13.0 MiB: 0 fetched, 5 already cached, 0 failed\n"


@pytest.fixture
def gate(docker_registry: DockerRegistry, skopeo: Skopeo) -> Iterator[Gate]:
    """A gate in front of a real registry that has two repositories with a layer in common."""
    skopeo.push(image(LARGE, SHARED), docker_registry.host, NAMES[0])
    skopeo.push(image(SHARED, b"tools"), docker_registry.host, NAMES[1])
    with Gate(docker_registry.host) as gate:
        yield gate


@pytest.fixture(params=["url", pytest.param("mount", marks=pytest.mark.fuse)])
def source(
    request: pytest.FixtureRequest, gate: Gate, tmp_path: Path
) -> Iterator[tuple[object, ...]]:
    """The arguments that say where to prefetch from: a URL and a cache, or a mount."""
    if request.param == "url":
        yield gate.url, f"--cache-dir={tmp_path / 'cache'}"
    else:
        mounts: Mounts = request.getfixturevalue("mounts")
        yield (mounts(gate.url).path,)


def test_the_cache_is_filled_and_then_nothing_moves(gate: Gate, source: tuple[object, ...]) -> None:
    assert run("prefetch", *source, *NAMES) == (0, PREFETCHED, "")
    fetched = gate.passed
    assert fetched <= 1.05 * (len(LARGE) + len(SHARED))
    assert run("prefetch", *source, *NAMES) == (0, THERE, "")
    assert gate.passed - fetched < 20_000


def test_what_ctrl_c_interrupts_the_next_run_completes(
    gate: Gate, source: tuple[object, ...]
) -> None:
    gate.open(6 * MIB)
    with start("prefetch", *source, *NAMES) as process:
        until(lambda: gate.closed, 20)
        time.sleep(0.3)  # what has passed the gate arrives
        process.send_signal(signal.SIGINT)
        with at_most(2):
            output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "")
    assert "interrupted" in one_line(errors)
    gate.open()
    code, output, errors = run("prefetch", *source, *NAMES)
    assert (code, errors) == (0, "")
    assert output.startswith("5 blobs, 13.0 MiB: ")
    assert output.endswith(", 0 failed\n")
    assert gate.passed <= 1.1 * (len(LARGE) + len(SHARED))
    assert run("prefetch", *source, *NAMES) == (0, THERE, "")


def test_a_name_that_is_unknown_is_one_line_and_exit_code_1(source: tuple[object, ...]) -> None:
    code, output, errors = run("prefetch", *source, "warm/nothing", f"{NAMES[1]}:latest")
    assert code == 1
    assert output == ("3 blobs, 1.0 MiB: 3 fetched, 0 already cached, 0 failed; failed names: 1\n")
    assert one_line(errors).startswith("epochfs: warm/nothing: no such repository")


class Damaging(EmbeddedRegistry):
    """Sends zeros for one blob."""

    def respond(self, request: Request) -> Response:
        if request.path.endswith(str(Digest.of(SHARED))):
            return Response(200, {}, bytes(len(SHARED)))
        return super().respond(request)


@pytest.fixture
def damaging() -> Iterator[EmbeddedRegistry]:
    with Damaging() as registry:
        load(registry, "app", "1", image(SHARED, b"good"))
        yield registry


def test_a_wrong_blob_is_told_and_exit_code_1(damaging: EmbeddedRegistry, tmp_path: Path) -> None:
    code, output, errors = run("prefetch", f"--cache-dir={tmp_path}", damaging.url)
    assert (code, output) == (1, "3 blobs, 1.0 MiB: 2 fetched, 0 already cached, 1 failed\n")
    lines = errors.splitlines()
    assert "WARNING" in lines[0]
    assert lines[1].startswith(f"epochfs: app/blobs/{Digest.of(SHARED)}: ")
    assert lines[1].endswith("another digest")


@pytest.mark.fuse
@pytest.mark.expects_log("have another digest")
def test_a_wrong_blob_is_told_of_a_mount_too(damaging: EmbeddedRegistry, mounts: Mounts) -> None:
    code, output, errors = run("prefetch", mounts(damaging.url).path)
    assert (code, output) == (1, "3 blobs, 1.0 MiB: 2 fetched, 0 already cached, 1 failed\n")
    assert one_line(errors).endswith("Input/output error (the mount's log says why)\n")


@pytest.fixture(params=["url", pytest.param("mount", marks=pytest.mark.fuse)])
def narrow(
    request: pytest.FixtureRequest, embedded: EmbeddedRegistry, tmp_path: Path
) -> tuple[object, ...]:
    """The arguments for a registry whose one image does not fit into the cache."""
    load(embedded, "app", "1", image(SHARED))
    if request.param == "url":
        return embedded.url, f"--cache-dir={tmp_path}", "--cache-size=512K"
    mounts: Mounts = request.getfixturevalue("mounts")
    return (mounts(embedded.url, "--cache-size=512K").path,)


def test_more_than_the_cache_holds_is_refused_before_anything_moves(
    narrow: tuple[object, ...], embedded: EmbeddedRegistry
) -> None:
    code, output, errors = run("prefetch", *narrow)
    assert (code, output) == (1, "")
    told = "the selection is 1.0 MiB, more than the maximum cache size of 512 KiB"
    assert told in one_line(errors)
    assert embedded.count("", "/blobs/") == 0


def test_a_disk_that_is_too_full_is_warned_of(
    embedded: EmbeddedRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    load(embedded, "app", "1", image(SHARED))
    monkeypatch.setattr(status, "_free", lambda _: 500 * 1024)
    monkeypatch.setattr("epochfs.cli.output.configure_logging", lambda *arguments, **options: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["prefetch", f"--cache-dir={tmp_path}", embedded.url]) == 0
    output, errors = capsys.readouterr()
    assert output == "2 blobs, 1.0 MiB: 2 fetched, 0 already cached, 0 failed\n"
    assert "1.0 MiB to be fetched, but the cache's disk has only 500 KiB free" in one_line(errors)


@pytest.mark.fuse
def test_options_that_a_mount_would_not_heed_are_refused(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    code, _, errors = run("prefetch", mounts(embedded.url).path, "--cache-size=1G")
    assert code == 2
    assert "--cache-size is for a URL" in one_line(errors)


def test_a_directory_without_a_mount_is_told(tmp_path: Path) -> None:
    code, _, errors = run("prefetch", tmp_path)
    assert code == 1
    assert f"no registry is mounted on '{tmp_path}'" in one_line(errors)


def test_a_layout_is_told_to_be_no_registry(tmp_path: Path) -> None:
    code, _, errors = run("prefetch", f"oci:{tmp_path}")
    assert code == 2
    assert f"'oci:{tmp_path}' is not a registry: only 'mount' takes a layout" in one_line(errors)


def test_a_terminal_is_shown_how_far_it_is(gate: Gate, tmp_path: Path) -> None:
    try:
        ours, theirs = pty.openpty()
    except OSError:
        pytest.skip("no pseudo-terminal to be had")
    gate.open(6 * MIB)
    command = [*COMMAND, "prefetch", *NO_MIRRORS, f"--cache-dir={tmp_path}", gate.url, *NAMES]
    with ExitStack() as closing:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=theirs, env=environment()
        )
        closing.enter_context(process)
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how a terminal ends
            while received := os.read(ours, 4096):
                shown += received
                if gate.closed:
                    gate.open()
        os.close(ours)
        assert process.stdout is not None
        assert process.stdout.read() == PREFETCHED.encode()
    assert process.returncode == 0
    lines = shown.split(b"\r")
    assert any(b" of 13.0 MiB, " in line and b"/5 blobs" in line for line in lines)
    assert (lines[-2].strip(), lines[-1]) == (b"", b"")


def test_it_needs_no_fuse() -> None:
    program = "import sys, epochfs.cli.prefetch; print({'mfusepy', 'fuse'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environment(), check=True
    )
    assert done.stdout == b"set()\n"
