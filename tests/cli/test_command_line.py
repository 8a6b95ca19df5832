"""The command line without a mount: options, `-o`, the environment, error lines, exit codes."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from support.commandline import environment, run
from support.invocation import given, no_environment, plans, the_line
from support.mounts import COMMAND

from epochfs import __version__
from epochfs.cli import main, mount
from epochfs.cli.mount import MountSettings, kernel_words, split_words
from epochfs.config import DEFAULT_URL, Address, TransportOptions
from epochfs.oci.names import Repository

_no_environment = pytest.fixture(autouse=True)(no_environment)
planned = pytest.fixture(plans)


# --- exit codes and error lines ---------------------------------------------------------------


def test_the_version_is_printed_at_once() -> None:
    """At once is what it costs the processor: how long it waits for one is the machine's affair."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("--version") == (0, f"epochfs {__version__}\n", "")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) <= 0.3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["frobnicate", "/mnt"], "No such command 'frobnicate'"),
        (["mount"], "give [SOURCE] MOUNTPOINT"),
        (["mount", "a", "b", "c"], "give [SOURCE] MOUNTPOINT"),
        (["mount", "--frobnicate", "a"], "--frobnicate"),
        (["mount", "ftp://host", "DIR"], "not a registry URL: 'ftp://host'"),
        (["mount", "http://me:secret@host", "DIR"], "must not contain credentials"),
        (["mount", "http://host/UP//x", "DIR"], "empty or relative segment"),
        (["mount", "--cache-size", "huge", "http://h", "DIR"], "not a size: 'huge'"),
        (["mount", "--metadata-ttl", "soon", "http://h", "DIR"], "not a duration: 'soon'"),
        (["mount", "--timeout", "0", "http://h", "DIR"], "must be more than 0"),
        (["mount", "--repo", "a//b", "http://h", "DIR"], "--repo"),
        (["mount", "--verify", "never", "http://h", "DIR"], "--verify"),
        (["mount", "--uid", "-1", "http://h", "DIR"], "--uid"),
        (["mount", "--metrics", "host", "http://h", "DIR"], "not an address: 'host'"),
        (["mount", "--username", "me", "http://h", "DIR"], "need each other"),
        (["mount", "--password-file", "FILE", "http://h", "DIR"], "need each other"),
        (["mount", "-o", "frobnicate", "http://h", "DIR"], "no such mount option: -o frobnicate"),
        (["mount", "-o", "ro,cache_size", "http://h", "DIR"], "-o cache-size needs a value"),
        (["mount", "-o", "allow_other=1", "http://h", "DIR"], "--allow-other"),
        (["mount", "-o", "help", "http://h", "DIR"], "no such mount option: -o help"),
        (["mount", "--connections", "0", "http://h", "DIR"], "--connections"),
        (["umount"], "MOUNTPOINT"),
        (["prefetch"], "MOUNTPOINT|URL"),
        (["prefetch", "ftp://host"], "not a registry URL: 'ftp://host'"),
        (["prefetch", "http://h", "a//b"], "empty or relative segment"),
        (["prefetch", "http://h", "a@sha256:0"], "not a sha256 or sha512 digest"),
        (["prefetch", "http://h", "a:"], "empty or relative segment"),
        (["doctor", "a", "b"], "unexpected extra argument"),
        (["cache"], "Missing command (see 'epochfs cache --help')"),
        (["cache", "frobnicate"], "No such command 'frobnicate'"),
        (["cache", "prune", "--cache-size", "huge"], "not a size: 'huge'"),
        (["cache", "clear", "DIR"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("DIR").mkdir()
    Path("FILE").write_text("secret")
    assert main(arguments) == 2
    line = the_line(capsys)
    assert said in line
    assert "secret" not in line


def test_a_missing_mount_point_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing dir"
    assert main(["mount", "http://h", str(missing)]) == 1
    assert f"'{missing}' does not exist: create it (mkdir -p '{missing}')" in the_line(capsys)


def test_unmounting_what_is_not_mounted_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["umount", str(tmp_path)]) == 1
    assert f"nothing is mounted on '{tmp_path}'" in the_line(capsys)


def test_unmounting_what_is_not_ours_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["umount", "/proc"]) == 1
    assert "not an epochfs mount but proc" in the_line(capsys)


def test_a_reader_of_the_output_that_leaves_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [*COMMAND, "--help"]
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, env=environment(), check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in ("mount", "umount", "prefetch", "cache", "doctor", "demo", "help"):
        assert f"\n  {name} " in listed
        assert main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: epochfs {name} ")
    assert all(option.help for option in mount.command.params if isinstance(option, click.Option))


# --- what the options become ------------------------------------------------------------------


def test_the_defaults(
    planned: list[MountSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    directory = tmp_path / "mnt"
    directory.mkdir()
    assert main(["mount", str(directory)]) == 0
    [plan] = planned
    assert str(plan.url) == DEFAULT_URL
    assert plan.path == directory
    assert plan.cache.directory == tmp_path / "home" / "epochfs"
    assert plan.cache.size_limit == 10 * 1024**3
    assert plan.listings.metadata_ttl == 60
    assert plan.listings.stale_if_error == 86400
    assert plan.connection.transport == TransportOptions()
    assert plan.connection.credentials == given()
    assert (plan.uid, plan.gid) == (os.getuid(), os.getgid())
    assert not plan.blobs.verify_first
    assert not plan.blobs.unverified_layers
    assert plan.blobs.connections == 8
    assert not plan.foreground
    assert not plan.offline_ok
    assert plan.metrics is None
    assert not plan.allow_other


LONG_OPTIONS = {
    "cache-dir": "/var/cache/e",
    "cache-size": "1.5G",
    "metadata-ttl": "5m",
    "stale-if-error": "1h",
    "manifest-limit": "64M",
    "connections": "3",
    "timeout": "10",
    "repo": "library/nginx",
    "verify": "full",
    "uid": "7",
    "gid": "8",
    "log-file": "/var/log/e",
    "log-level": "debug",
    "username": "me",
    "metrics": "9100",
}
FLAGS = ("allow-other", "tls-skip-verify", "foreground", "offline-ok")


def as_long_options(password: Path) -> list[str]:
    pairs = {**LONG_OPTIONS, "password-file": str(password)}.items()
    return [*(f"--{name}={value}" for name, value in pairs), *(f"--{name}" for name in FLAGS)]


def as_words(password: Path) -> list[str]:
    pairs = {**LONG_OPTIONS, "password-file": str(password)}.items()
    return ["-o", ",".join([*(f"{name}={value}" for name, value in pairs), *FLAGS])]


def as_words_with_underscores(password: Path) -> list[str]:
    words = []
    for word in as_words(password)[1].split(","):
        name, equals, value = word.partition("=")
        words += ["-o", f"{name.replace('-', '_')}{equals}{value}"]
    return words


@pytest.mark.parametrize("written", [as_long_options, as_words, as_words_with_underscores])
def test_every_option_may_be_a_word_of_o(
    written: Callable[[Path], list[str]], planned: list[MountSettings], tmp_path: Path
) -> None:
    directory = tmp_path / "mnt"
    directory.mkdir()
    password = tmp_path / "password-file"
    password.write_text("pass,word\n")
    assert main(["mount", *written(password), "http://host/team", str(directory)]) == 0
    [plan] = planned
    assert str(plan.url) == "http://host/team"
    assert plan.cache.directory == Path("/var/cache/e")
    assert plan.cache.size_limit == 1.5 * 1024**3
    assert plan.listings.metadata_ttl == 300
    assert plan.listings.stale_if_error == 3600
    assert plan.listings.manifest_limit == 64 * 1024**2
    assert plan.listings.repositories == (Repository("library/nginx"),)
    assert plan.connection.repositories == (Repository("library/nginx"),)
    assert plan.connection.transport == TransportOptions(timeout=10, tls_verify=False)
    assert plan.connection.credentials == given("me", "pass,word", password)
    assert plan.blobs.timeout == 10
    assert plan.blobs.connections == 3
    assert plan.blobs.verify_first
    assert (plan.uid, plan.gid) == (7, 8)
    assert plan.allow_other
    assert plan.foreground
    assert plan.log_file == Path("/var/log/e")
    assert plan.metrics == Address("127.0.0.1", 9100)
    assert plan.offline_ok


def test_a_long_option_wins_over_its_word(planned: list[MountSettings], tmp_path: Path) -> None:
    assert main(["mount", "--uid", "7", str(tmp_path), "-o", "uid=8"]) == 0
    assert planned[0].uid == 7


def test_repositories_of_options_and_words_add_up(
    planned: list[MountSettings], tmp_path: Path
) -> None:
    assert main(["mount", "--repo", "b", "-o", "repo=a,repo=c", str(tmp_path)]) == 0
    assert {str(name) for name in planned[0].connection.repositories} == {"a", "b", "c"}


def test_the_words_of_mount_8_are_accepted(planned: list[MountSettings], tmp_path: Path) -> None:
    words = (
        "rw,ro,nosuid,nodev,noexec,noatime,auto,noauto,user,nouser,users,_netdev,nofail,defaults,"
        "dev,suid,exec,relatime,x-systemd.automount,x-gvfs-show,comment=a b,user=root"
    )
    assert main(["http://127.0.0.1:1", str(tmp_path), "-o", words]) == 0
    assert planned[0].kernel_words == ("noatime", "nodev", "noexec", "nosuid")
    assert str(planned[0].url) == "http://127.0.0.1:1"


def test_a_comma_within_a_word_is_escaped() -> None:
    assert split_words([r"a=1\,2,b", "c", ""]) == ["a=1,2", "b", "c"]
    assert kernel_words(["nodev,rw", "nodev"]) == ("nodev",)


def test_paths_are_made_absolute_but_their_links_are_kept(
    planned: list[MountSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "secret").write_text("one")
    (tmp_path / "token").symlink_to("secret")
    monkeypatch.chdir(tmp_path)
    assert main(["mount", "--token-file", "token", "--cache-dir", "cache", "mnt"]) == 0
    assert planned[0].connection.credentials.token_file == tmp_path / "token"
    assert planned[0].cache.directory == tmp_path / "cache"


@pytest.mark.parametrize("option", ["--cache-dir", "--log-file"])
def test_files_under_the_mount_point_are_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mount", option, str(tmp_path / "x"), "http://h", str(tmp_path)]) == 2
    assert f"{option} must not be under the mount point" in the_line(capsys)
