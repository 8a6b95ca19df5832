"""The `epochfs` command as users run it: a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from epochfs.cli import mountpoint
from epochfs.demo import samples
from epochfs.fuse import mountinfo
from support import CHECKOUT
from support.mounts import COMMAND, NO_MIRRORS
from support.registries import EmbeddedRegistry
from support.scripted import until

HELLO = "library/hello/tags/latest/manifest.json"
"""A file of the samples."""

_OURS = (
    "EPOCH_SERVER",
    "EPOCH_REGISTRY_TOKEN",
    "EPOCH_CA_CERT",
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    *(
        name
        for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
        for name in (proxy, proxy.lower())
    ),
)


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without the variables that epochfs reads, plus `variables`."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    here = str(CHECKOUT)
    return {**kept, "PYTHONPATH": here, **variables}


def start(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    """Start `epochfs` with these arguments, in a session of its own."""
    return subprocess.Popen(
        [*COMMAND, *_without_mirrors(*map(str, arguments))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
        start_new_session=True,
        # What pytest was started with must not decide: a shell's background jobs ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _without_mirrors(name: str, *rest: str) -> list[str]:
    """Return a command line that has NO_MIRRORS, if it may and says nothing of mirrors itself."""
    text = " ".join(rest)
    asks = name in ("mount", "doctor") or (name == "prefetch" and "://" in text)
    told = "hosts-dir" in text or "hosts_dir" in text
    return [name, *NO_MIRRORS, *rest] if asks and not told else [name, *rest]


def run(*arguments: object, timeout: float = 30, **variables: str) -> tuple[int, str, str]:
    """Run `epochfs` to its end; return its exit code, stdout and stderr."""
    with start(*arguments, **variables) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output, errors


def with_samples() -> Iterator[EmbeddedRegistry]:
    """A fixture: an embedded registry that has the samples."""
    with EmbeddedRegistry() as registry:
        samples.load(registry)
        yield registry


def is_mounted(path: Path) -> bool:
    return mountinfo.mounted_on(path) is not None


def mount_point(tmp_path: Path) -> Iterator[Path]:
    """A fixture: an empty directory, on which nothing stays mounted."""
    path = tmp_path / "mount point"
    path.mkdir()
    yield path
    for _ in range(3):
        if is_mounted(path):
            mountpoint.unmount(path, lazy=True)
    assert not is_mounted(path)
    until(lambda: not processes_of(path))


def processes_of(path: Path) -> list[int]:
    """The processes that have this path on their command line."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and os.fsencode(path) in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def nothing_is_left(path: Path) -> None:
    assert not is_mounted(path)
    until(lambda: not processes_of(path))


def one_line(errors: str) -> str:
    """Return what is on stderr, which must be one line of ours."""
    assert errors.startswith("epochfs: ")
    assert errors.count("\n") == 1
    return errors
